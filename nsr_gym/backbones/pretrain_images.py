"""Pretraining of the small image backbones: a loop that goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor
from torch.nn import functional

from nsr_gym.backbones.base import Backbone, FrozenMap
from nsr_gym.backbones.entrance import Entrance
from nsr_gym.backbones.image_data import batches, channels
from nsr_gym.backbones.image_models import PLANS, Plan
from nsr_gym.backbones.image_recipes import RECIPES, ImageRecipe
from nsr_gym.datasets.packed_files import ImageSet
from nsr_gym.errors import FileFormatError, InvalidValueError, StateError, unknown
from nsr_gym.files import write_whole

Progress = Callable[[int, int, str], None]
"""Called with updates done, updates of the whole run and a word on how it goes."""

Report = Callable[[int, int, Mapping[str, float]], None]
"""Called with epochs done, epochs of the whole run, and of the last one `loss`, `val_accuracy` and
`seconds`."""


def pretrain_images(
    model: str,
    data: ImageSet,
    *,
    recipe: str | ImageRecipe,
    folder: Path,
    data_name: str,
    machine: str,
    plan: Plan | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Train a backbone and write its weights, in half precision, and their card.

    After every epoch all that the next one depends on goes into `{model}.checkpoint.safetensors`;
    the same call then goes on from there and ends, on one machine, at the same bits. The file is
    deleted when the weights are written.

    Args:
        model: name of the network, of `PLANS`; files are called after it.
        data: the images.
        recipe: name of one of the model's recipes, or one of one's own.
        folder: where files go; it is made if it is missing.
        data_name: what the card calls the data.
        machine: what the card says about the machine.
        plan: another network than the model's name stands for.
        device: where to train.
        progress: called after each update.
        report: called after each epoch, once its checkpoint is written.

    Returns:
        The card.

    Raises:
        UnknownNameError: there is no such model or recipe.
        InvalidValueError: the images or their number do not fit.
        StateError: a checkpoint in the folder is of another run, or training diverged.
        FileFormatError: a checkpoint in the folder is damaged.
    """
    if model not in PLANS:
        raise unknown("image backbone", model, PLANS)
    if isinstance(recipe, str) and recipe not in RECIPES[model]:
        raise unknown(f"recipe of {model}", recipe, RECIPES[model])
    chosen = RECIPES[model][recipe] if isinstance(recipe, str) else recipe
    plan = plan or PLANS[model]
    if data.x_train.shape[1] != plan.side or len(data.x_train) < chosen.batch_size:
        raise InvalidValueError(
            f"Expected at least {chosen.batch_size} images of {plan.side} x {plan.side} for "
            f"{model}; got {len(data.x_train)} of {data.x_train.shape[1]} x "
            f"{data.x_train.shape[2]}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    run = _Training(plan, data, chosen, torch.device(device))
    saved = folder / f"{model}.checkpoint.safetensors"
    run.load(saved)
    while run.epoch < chosen.epochs:
        before = run.seconds
        run.train_epoch(progress)
        write_whole(saved, lambda file: file.write_bytes(run.dump()))
        if report is not None:
            figures = run.history[-1] | {"seconds": run.seconds - before}
            report(run.epoch, chosen.epochs, figures)
    half = {name: part.cpu().half() for name, part in plan.folded(run.weights).items()}
    if not all(bool(part.isfinite().all()) for part in half.values()):
        raise StateError("Training diverged; lower the recipe's learning rate.")
    payload = dump_tensors(half)
    backbone = plan.backbone(half, entrance=run.entrance, device=device)
    card = {
        "model": model,
        "plan": asdict(plan),  # type: ignore[call-overload]
        "mean": run.entrance.mean,
        "std": run.entrance.std,
        "data": data_name,
        "data_sha256": data.sha256,
        "images": len(data.x_train),
        "classes": data.classes,
        "recipe": recipe if isinstance(recipe, str) else "own",
        **asdict(chosen),
        "val_accuracy": round(image_accuracy(backbone, data.x_val, data.y_val), 4),
        "history": run.history,
        "seconds": round(run.seconds),
        "machine": machine,
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    text = json.dumps(card, indent=2) + "\n"
    write_whole(folder / f"{model}.safetensors", lambda file: file.write_bytes(payload))
    write_whole(folder / f"{model}.json", lambda file: file.write_text(text))
    saved.unlink()
    return card


@torch.no_grad()
def image_accuracy(backbone: Backbone, x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of images (n, H, W, 3) uint8 that the bare backbone names rightly."""
    right, frozen = 0, FrozenMap(backbone)
    for first in range(0, len(x), 512):
        part = torch.tensor(x[first : first + 512], device=backbone.device)
        images = part.permute(0, 3, 1, 2).float() / 255.0
        answers = backbone.head(backbone.forward(backbone.prefix(images), frozen)).argmax(-1)
        right += int((answers.cpu().numpy() == y[first : first + 512]).sum())
    return right / len(x)


class _Training:
    """The state of a run: weights, moments, epochs done."""

    def __init__(
        self, plan: Plan, data: ImageSet, recipe: ImageRecipe, device: torch.device
    ) -> None:
        self.plan, self.data, self.recipe, self.device = plan, data, recipe, device
        mean, std = channels(data.x_train)
        self.entrance = Entrance(mean=mean, std=std)
        start = plan.initial(data.classes, torch.Generator().manual_seed(recipe.seed))
        self.weights = {
            name: part.to(device).requires_grad_(plan.trainable(name))
            for name, part in start.items()
        }
        self.trained = {name: p for name, p in self.weights.items() if p.requires_grad}
        decayed = {n for n, p in self.trained.items() if p.ndim > 1 and n != "position"}
        groups = [
            {"params": [p for n, p in self.trained.items() if (n in decayed) == decay],
             "weight_decay": recipe.weight_decay * decay}
            for decay in (True, False)
        ]  # fmt: skip
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate)
        self.epoch, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        # The images' order in memory is the order in which channels-last products read them.
        self.x = torch.tensor(data.x_train, device=device).permute(0, 3, 1, 2)
        self.y = torch.tensor(data.y_train, device=device)
        self.steps = len(data.x_train) // recipe.batch_size

    def train_epoch(self, progress: Progress | None) -> None:
        """Go through the images once."""
        recipe, began = self.recipe, time.perf_counter()
        drawn = np.random.SeedSequence([recipe.seed, self.epoch]).generate_state(2, np.uint64)
        rng = torch.Generator().manual_seed(int(drawn[0] >> 1))
        mixing = np.random.default_rng(int(drawn[1]))
        share = recipe.share if self.epoch < recipe.epochs - recipe.whole else 1.0
        losses = torch.zeros(self.steps)
        for step, (x, y) in enumerate(batches(self.x, self.y, recipe.batch_size, rng)):
            done = self.epoch * self.steps + step
            self._rate(done)
            losses[step] = self._update(x, y, share, rng, mixing)
            if progress is not None:
                seen = losses[max(0, step - 49) : step + 1].mean()
                progress(done + 1, recipe.epochs * self.steps, f"loss {float(seen):.3f}")
        backbone = self.plan.backbone(
            self.plan.folded(self.weights), entrance=self.entrance, device=self.device
        )
        self.epoch += 1
        self.seconds += time.perf_counter() - began
        self.history.append(
            {
                "loss": round(float(losses.mean()), 4),
                "val_accuracy": round(
                    image_accuracy(backbone, self.data.x_val, self.data.y_val), 4
                ),
            }
        )

    def _rate(self, done: int) -> None:
        total = self.recipe.epochs * self.steps
        rising = max(1.0, self.recipe.warmup * total)
        if done < rising:
            factor = (done + 1) / rising
        else:
            factor = 0.5 * (1.0 + math.cos(math.pi * (done - rising) / max(1.0, total - rising)))
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * min(1.0, factor)

    def _update(
        self, x: Tensor, y: Tensor, share: float, rng: torch.Generator, mixing: np.random.Generator
    ) -> Tensor:
        x, weight = self.entrance(x, self.plan.side), 1.0
        other = y
        if self.recipe.mixup > 0:
            weight = float(mixing.beta(self.recipe.mixup, self.recipe.mixup))
            x, other = weight * x + (1.0 - weight) * x.flip(0), y.flip(0)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bfloat16):
            logits = self.plan.logits(self.weights, x, share, rng).float()
        loss = torch.zeros((), device=self.device)
        for labels, part in ((y, weight), (other, 1.0 - weight)):
            if part > 0:
                loss = loss + part * functional.cross_entropy(
                    logits, labels, label_smoothing=self.recipe.smoothing
                )
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.detach()

    def _identity(self) -> dict[str, Any]:
        plan = asdict(self.plan)  # type: ignore[call-overload]
        return {"plan": plan, "recipe": asdict(self.recipe), "data": self.data.sha256}

    def dump(self) -> bytes:
        """Return all that the next epoch depends on."""
        tensors = {f"weights/{name}": part.detach() for name, part in self.weights.items()}
        for name, part in self.trained.items():
            for moment, values in self.optimiser.state[part].items():
                tensors[f"{moment}/{name}"] = values
        state = {"epoch": self.epoch, "seconds": self.seconds, "history": self.history}
        text = json.dumps(self._identity() | state, sort_keys=True)
        tensors = {name: part.cpu().contiguous() for name, part in tensors.items()}
        return dump_tensors(tensors, metadata={"state": text})

    def load(self, path: Path) -> None:
        """Go on from a checkpoint, where there is one."""
        if not path.exists():
            return
        remedy = f"Delete {path} to begin anew, or choose another folder."
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            own = json.loads(json.dumps(self._identity()))
            other = [name for name, value in own.items() if state[name] != value]
            if other:
                raise StateError(
                    f"The checkpoint {path} is of a run with another {' and '.join(other)}. "
                    + remedy
                )
            for name, part in self.weights.items():
                part.data.copy_(tensors[f"weights/{name}"])
            for name, part in self.trained.items():
                self.optimiser.state[part] = {
                    moment: tensors[f"{moment}/{name}"].to(
                        "cpu" if moment == "step" else self.device
                    )
                    for moment in ("step", "exp_avg", "exp_avg_sq")
                }
            self.epoch, self.seconds = int(state["epoch"]), float(state["seconds"])
            self.history = list(state["history"])
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
            if isinstance(error, StateError):
                raise
            raise FileFormatError(
                f"The checkpoint {path} is damaged ({error}). {remedy}"
            ) from error
