"""Which layers an adapter folder of PEFT's has tensors for, and whether all of it fits together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nsr_gym.errors import FileFormatError, unknown
from nsr_gym.exchange.entry_file import CONFIG_FILE, TENSOR_FILE, EntryRecord, read_tensors
from nsr_gym.exchange.peft_rules import PREFIX, is_target, rank_of
from nsr_gym.lowrank_core import Factors

_KEY = re.compile(re.escape(PREFIX) + r"(?P<path>.+)\.lora_(?P<letter>[AB])\.weight")


def adapter_layers(folder: str | Path) -> dict[str, tuple[int, int, int]]:
    """Return (d_out, d_in, rank) of every layer that an adapter folder has, by module path.

    Raises:
        FileNotFoundError: there is no tensor file.
        FileFormatError: it is damaged, a pickle, holds other tensors than LoRA's, or none.
    """
    path = Path(folder) / TENSOR_FILE
    pairs = pair_up(read_tensors(path), None, path)
    if not pairs:
        raise FileFormatError(f"{path} has no tensors: there is no adapter in it.")
    return {
        name: (int(up.shape[0]), int(down.shape[1]), int(up.shape[1]))
        for name, (up, down) in pairs.items()
    }


def pair_up(
    tensors: Mapping[str, Tensor], paths: Mapping[str, str] | None, where: Path
) -> dict[str, Factors]:
    """Sort all tensors into (B, A) by site, or by module path where no paths are given."""
    names = None if paths is None else {path: name for name, path in paths.items()}
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise FileFormatError(
                f"{where} holds {key!r}; only '{PREFIX}<module path>.lora_A.weight' and "
                "'...lora_B.weight' can be taken over, without an adapter's name in them."
            )
        path = match["path"]
        if names is not None and path not in names:
            raise unknown(f"site for the module that {where} adapts,", path, names)
        if tensor.ndim != 2:
            raise FileFormatError(f"{where}: expected a matrix in {key!r}; got {tensor.ndim}-d.")
        found.setdefault(path if names is None else names[path], {})[match["letter"]] = tensor
    for name, parts in found.items():
        if len(parts) < 2 or parts["A"].shape[0] != parts["B"].shape[1]:
            shapes = {letter: tuple(part.shape) for letter, part in parts.items()}
            raise FileFormatError(
                f"{where}: {name!r} needs lora_A (r, d_in) and lora_B (d_out, r); got {shapes}."
            )
    return {name: (parts["B"], parts["A"]) for name, parts in found.items()}


def check_layers(
    config: Mapping[str, Any],
    pairs: Mapping[str, Factors],
    sites: Mapping[str, tuple[int, int]],
    paths: Mapping[str, str],
    record: EntryRecord | None,
    folder: Path,
) -> None:
    """Check that files, configuration and sites agree on layers, ranks and shapes."""
    # A name in target_modules stands for every path that ends with it, also for one whose update
    # was zero and left out.
    zero = {site.module for site in record.sites.values() if site.rank == 0} if record else set()
    for name, path in paths.items():
        if name not in pairs:
            if is_target(config, path) and path not in zero:
                raise FileFormatError(
                    f"{folder / CONFIG_FILE} names the layer {path!r}, {TENSOR_FILE} has no "
                    "tensors for it; the file is incomplete."
                )
            continue
        if not is_target(config, path):
            raise FileFormatError(
                f"{folder / TENSOR_FILE} has tensors for {path!r}, which target_modules in "
                f"{CONFIG_FILE} does not name: PEFT would leave them out."
            )
        up, down = pairs[name]
        size = (int(up.shape[0]), int(down.shape[1]))
        if size != sites[name]:
            raise FileFormatError(
                f"Site {name!r} is a map of (d_out, d_in) = {sites[name]}; the adapter in {folder} "
                f"is for one of {size}. Is it for another model?"
            )
        if up.shape[1] != rank_of(config, path):
            raise FileFormatError(
                f"{path!r} has rank {up.shape[1]} in {folder / TENSOR_FILE} and "
                f"{rank_of(config, path)} by r and rank_pattern in {CONFIG_FILE}."
            )
