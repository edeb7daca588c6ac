"""`nsr-gym bank`: look into bank files, exchange entries with PEFT, check that files are whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.table import Table

from nsr_gym.cli_shared import console
from nsr_gym.errors import FileFormatError, InvalidValueError, StateError, unknown

if TYPE_CHECKING:
    from nsr_gym.backbones.base import Backbone
    from nsr_gym.bank.bank import TaskKnowledgeBank

bank = typer.Typer(
    name="bank",
    help="Bank files: list, show, export to PEFT, import from PEFT, verify.",
    no_args_is_help=True,
)
_BACKBONES = ("digits",)

_File = Annotated[Path, typer.Argument(help="A bank file that `save_bank` wrote.")]
_Slot = Annotated[int, typer.Argument(help="The entry's slot, as `list` shows it.")]
_Row = Annotated[int, typer.Option(help="Which bank of a file of many.")]
_Modules = Annotated[
    list[str] | None,
    typer.Option(
        "--module", help="SITE=PATH of its module in the base model; repeatable. (the site's name)"
    ),
]
_Backbone = Annotated[
    str | None, typer.Option(help="The frozen network that entries belong to: digits. (unsaid)")
]
_FanIn = Annotated[
    bool, typer.Option("--fan-in-fan-out", help="The base model keeps weights as GPT-2 does.")
]


@bank.command("list")
def list_entries(
    file: _File,
    row: Annotated[
        int | None, typer.Option(help="Which bank of a file of many. (all of them)")
    ] = None,
) -> None:
    """List the entries of a bank file."""
    from nsr_gym.bank import load_bank

    banks = load_bank(file)
    rows = range(banks.num_banks) if row is None else [_row(banks, row)]
    table = Table(box=None, pad_edge=False)
    for name in ("bank", "slot", "rank", "accuracy", "recalled", "reserved at", "used at"):
        table.add_column(name, justify="right")
    for name in banks.tags:
        table.add_column(name, justify="right")
    for r in rows:
        for slot in np.flatnonzero(banks.occupied[r]):
            numbers = [r, slot, banks.rank[r, slot]]
            cells = [str(number) for number in numbers] + [f"{banks.accuracy[r, slot]:.3f}"]
            counters = (banks.times_recalled, banks.reserved_at, banks.used_at)
            cells += [str(array[r, slot]) for array in (*counters, *banks.tags.values())]
            table.add_row(*cells)
    console.print(table)
    held, size = banks.entries[list(rows)].sum(), banks.nbytes(list(rows)).sum()
    kind = "no factors" if banks.store is None else f"{banks.store.kind} store"
    _say(
        f"{held} entries in {len(rows)} bank{'s' * (len(rows) != 1)}, {size:,} bytes, {kind}, "
        f"retention {banks.retention}"
    )


@bank.command()
def show(file: _File, slot: _Slot, row: _Row = 0) -> None:
    """Show one entry: its sites, singular values and counters."""
    from nsr_gym.bank import load_bank
    from nsr_gym.exchange.canonical import singular_values, trimmed

    banks = load_bank(file)
    _check_entry(banks, slot, row)
    embedding = banks.embedding[row, slot]
    facts: dict[str, Any] = {
        "rank": banks.rank[row, slot],
        "accuracy": f"{banks.accuracy[row, slot]:.4f}",
        "importance": f"{banks.importance[row, slot]:.4f}",
        "reserved at visit": banks.reserved_at[row, slot],
        "used at visit": banks.used_at[row, slot],
        "times recalled": banks.times_recalled[row, slot],
        "version": banks.version[row, slot],
        "embedding": f"{len(embedding)} numbers, first {np.round(embedding[:4], 4).tolist()}",
    }
    facts |= {f"tag {name}": column[row, slot] for name, column in banks.tags.items()}
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in facts.items():
        table.add_row(name, str(value))
    console.print(table)
    if not _holds_factors(banks):
        _say("the bank holds no factors")
        return
    sites = Table(box=None, pad_edge=False)
    for name in ("site", "d_out x d_in", "rank", "singular values"):
        sites.add_column(name)
    for name, (up, down) in banks.factors([slot], rows=[row]).items():
        left, right = trimmed(up[0], down[0])
        values = ", ".join(f"{value:.4g}" for value in singular_values(left, right).tolist())
        size = f"{up.shape[1]} x {down.shape[2]}"
        sites.add_row(name, size, str(left.shape[1]), values)
    console.print(sites)


@bank.command()
def export(
    file: _File,
    slot: _Slot,
    folder: Annotated[Path, typer.Argument(help="Folder of the adapter, written whole.")],
    row: _Row = 0,
    profile: Annotated[
        str, typer.Option(help="peft (a rank for each layer) or serving (one rank for all).")
    ] = "peft",
    dtype: Annotated[
        str | None, typer.Option(help="float16, float32 or float64. (the bank's)")
    ] = None,
    serving_rank: Annotated[
        int | None, typer.Option(help="The one rank of serving. (the entry's highest)")
    ] = None,
    module: _Modules = None,
    backbone: _Backbone = None,
    base_model: Annotated[
        str | None, typer.Option(help="Name of the base model, for PEFT. (none)")
    ] = None,
    fan_in_fan_out: _FanIn = False,
    task: Annotated[str | None, typer.Option(help="Name of the task, for the record.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence, for the record.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export.")
    ] = False,
) -> None:
    """Write an entry as an adapter folder that PEFT, LoRAX and vLLM read."""
    from nsr_gym.bank import load_bank
    from nsr_gym.exchange import export_entry

    banks = load_bank(file)
    _check_entry(banks, slot, row)
    record = export_entry(
        banks, slot, folder, row=row, profile=profile, modules=_modules(module), dtype=dtype,
        serving_rank=serving_rank, backbone=_backbone(backbone), backbone_name=backbone,
        base_model=base_model, fan_in_fan_out=fan_in_fan_out, task=task, licence=licence,
        overwrite=overwrite,
    )  # fmt: skip
    ranks = ", ".join(f"{site.module} {site.rank}" for site in record.sites.values())
    size = sum(path.stat().st_size for path in folder.iterdir())
    _say(f"{folder}: {record.profile}, {record.dtype}, ranks {ranks}; {size:,} bytes")


@bank.command("import")
def import_folder(
    folder: Annotated[Path, typer.Argument(help="An adapter folder of PEFT's.")],
    file: Annotated[Path, typer.Argument(help="The bank file that the entry is added to.")],
    row: _Row = 0,
    module: _Modules = None,
    backbone: _Backbone = None,
    fan_in_fan_out: _FanIn = False,
    embedding: Annotated[
        Path | None,
        typer.Option(help=".npy file of the task's embedding. (the one in nsr_entry.json)"),
    ] = None,
    accuracy: Annotated[float | None, typer.Option(help="To keep with the entry.")] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut the adapter to the bank's highest rank.")
    ] = False,
    new: Annotated[
        bool, typer.Option("--new", help="Make the bank file, with the adapter's own layers.")
    ] = False,
    max_rank: Annotated[
        int | None,
        typer.Option(help="With --new, the highest rank of an entry. (the adapter's, at least 8)"),
    ] = None,
) -> None:
    """Add an adapter folder to a bank file, which is replaced whole or not at all."""
    from nsr_gym.bank import load_bank, save_bank
    from nsr_gym.exchange import bank_for, import_entry

    vector = None if embedding is None else _read_embedding(embedding)
    modules = _modules(module)
    if new:
        if file.exists():
            raise StateError(f"{file} exists already; leave --new out to add to it.")
        banks = bank_for(folder, embedding=vector, modules=modules, max_rank=max_rank)
    elif max_rank is not None:
        raise InvalidValueError("--max-rank is for a --new bank; this one has its own.")
    elif file.is_file():
        banks = load_bank(file)
    else:
        raise FileNotFoundError(f"There is no bank file {file}; --new makes one.")
    _row(banks, row)
    made = import_entry(
        banks, folder, row=row, modules=modules, backbone=_backbone(backbone),
        fan_in_fan_out=fan_in_fan_out, embedding=vector, accuracy=accuracy, truncate=truncate,
    )  # fmt: skip
    save_bank(banks, file)
    slot, evicted = int(made.slot[0]), int(made.evicted[0])
    gone = f", {evicted} evicted by {banks.retention}" if evicted else ""
    _say(f"{file}: bank {row}, slot {slot}, rank {banks.rank[row, slot]}{gone}")


@bank.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A bank file or an adapter folder.")],
) -> None:
    """Check that a bank file or an adapter folder is whole and what it claims to be."""
    from nsr_gym.exchange import verify_bank, verify_folder

    found = verify_folder(path) if path.is_dir() else verify_bank(path)
    what = {"bank": f"bank file of {found.entries} entries", "export": "export of a bank's entry"}
    _say(f"{path}: {what.get(found.kind, 'foreign adapter')}; in order: {', '.join(found.facts)}")


def _read_embedding(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FileFormatError(f"{path} is no .npy file of numbers ({error}).") from error
    if not isinstance(array, np.ndarray) or array.ndim != 1:
        raise InvalidValueError(f"Expected one vector in {path}; got {np.shape(array)}.")
    return array


def _modules(settings: list[str] | None) -> dict[str, str] | None:
    if settings is None:
        return None
    found = {}
    for setting in settings:
        name, sign, path = setting.partition("=")
        if not sign or not name or not path:
            raise InvalidValueError(f"Expected --module SITE=PATH; got {setting!r}.")
        found[name] = path
    return found


def _backbone(name: str | None) -> Backbone | None:
    if name is None:
        return None
    if name not in _BACKBONES:
        raise unknown("backbone", name, _BACKBONES)
    from nsr_gym.backbones.pretrain import digits_backbone

    return digits_backbone()


def _row(banks: TaskKnowledgeBank, row: int) -> int:
    if not 0 <= row < banks.num_banks:
        raise InvalidValueError(
            f"Expected --row from 0 to {banks.num_banks - 1}, the banks in this file; got {row}."
        )
    return row


def _check_entry(banks: TaskKnowledgeBank, slot: int, row: int) -> None:
    _row(banks, row)
    held = np.flatnonzero(banks.occupied[row]).tolist()
    if slot not in held:
        there = f"the slots with entries are {held}" if held else "it has no entries"
        raise InvalidValueError(f"Slot {slot} of bank {row} holds no entry; {there}.")


def _holds_factors(banks: TaskKnowledgeBank) -> bool:
    return banks.store is not None and banks.store.kind != "counted"


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
