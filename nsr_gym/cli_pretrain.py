"""`nsr-gym pretrain`: make the frozen backbones that ship with the package."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nsr_gym.cli_shared import bars, console, errors
from nsr_gym.errors import InvalidValueError, unknown

if TYPE_CHECKING:
    from nsr_gym.backbones.pretrain_images import Progress, Report

_IMAGES = ("vit-small-32", "resnet-small-32")
_DATA = "tiny-imagenet-32.npz"


def pretrain(
    what: Annotated[
        str, typer.Argument(help=f"Which backbone: digits, {' or '.join(_IMAGES)}.")
    ] = "digits",
    output: Annotated[
        Path, typer.Option(help="Folder for weights and card, and for checkpoints.")
    ] = Path("weights"),
    data: Annotated[
        Path | None,
        typer.Option(help=f"An .npz file of images to pretrain on. ({_DATA} in $NSR_GYM_DATA)"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="cpu (two cores, about an hour) or gpu. (what the device suggests)"),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of a CPU. (what PyTorch takes)")
    ] = None,
) -> None:
    """Pretrain a backbone that ships with the package, exactly as it was made.

    Training on images goes on from its last epoch when the same command is given again.
    """
    if what == "digits":
        if data is not None or recipe is not None or device != "cpu" or threads is not None:
            raise InvalidValueError(
                "Expected no --data, --recipe, --device or --threads for digits: its images come "
                "with scikit-learn, and it is trained in seconds."
            )
        _digits(output)
        return
    if what not in _IMAGES:
        raise unknown("backbone recipe", what, ["digits", *_IMAGES])
    _images(what, data, output, recipe, device, threads)


def _digits(output: Path) -> None:
    from nsr_gym.backbones.pretrain import digits_backbone, pretrain_digits

    card = pretrain_digits(output, lambda epoch, loss: console.print(f"epoch {epoch}: {loss:.3f}"))
    console.print_json(json.dumps(card))
    same = card["fingerprint"] == digits_backbone().fingerprint
    console.print(f"{'equal to' if same else 'not bit by bit equal to'} the shipped weights")


def _images(
    what: str, data: Path | None, output: Path, recipe: str | None, device: str, threads: int | None
) -> None:
    import torch

    from nsr_gym.backbones.pretrain_images import pretrain_images
    from nsr_gym.datasets.packed_files import read_images
    from nsr_gym.datasets.sources import data_root

    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidValueError(
            f"Expected a device of this machine; got {device!r} ({reason})."
        ) from error
    if threads is not None:
        torch.set_num_threads(threads)
    if place.type == "cuda":
        machine = torch.cuda.get_device_name(place)
    else:
        machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    data = data or data_root() / _DATA
    images = read_images(data)
    with epoch_progress(what) as (progress, report):
        card = pretrain_images(
            what, images, recipe=recipe or ("cpu" if place.type == "cpu" else "gpu"),
            folder=output, data_name=data.name, device=place,
            machine=f"{machine}, PyTorch {torch.__version__}",
            progress=progress, report=report,
        )  # fmt: skip
    console.print_json(json.dumps(card))


@contextmanager
def epoch_progress(title: str) -> Iterator[tuple[Progress | None, Report | None]]:
    """Show how far pretraining is, as a bar, or as a line for each epoch where output is piped.

    Args:
        title: what is pretrained.

    Yields:
        What `nsr_gym.backbones.pretrain_images.pretrain_images` takes as `progress` and `report`.
    """
    if not errors.is_terminal:
        yield None, lambda epoch, total, figures: _line(title, epoch, total, figures)
        return
    with bars("{task.fields[word]}") as shown:
        bar = shown.add_task(title, total=None, word="")
        yield (
            lambda done, total, word: shown.update(bar, completed=done, total=total, word=word),
            None,
        )


def _line(title: str, epoch: int, total: int, figures: Mapping[str, float]) -> None:
    errors.print(
        f"{title}: epoch {epoch} of {total}, loss {figures['loss']:.3f}, validation accuracy "
        f"{figures['val_accuracy']:.3f}, {figures['seconds']:.0f} s",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
