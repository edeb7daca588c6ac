"""What an `adapter_config.json` of Hugging Face PEFT says about each layer, by PEFT's own rules.

PEFT looks a layer's rank and alpha up by regular expressions that match the end of the layer's
path, and scales its update by alpha / r (or alpha / sqrt(r), rsLoRA). A per-layer rank without a
per-layer alpha therefore rescales that layer, without a warning; whoever reads the files has to
compute the scale as PEFT does, and whoever writes them has to leave it nothing to compute. The
rules here were checked against PEFT 0.21.2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nsr_gym.errors import FileFormatError, InvalidValueError, unknown

Config = Mapping[str, Any]

PREFIX = "base_model.model."
"""How PEFT's tensor names begin; without it PEFT loads nothing and only warns."""

_NEUTRAL = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules",
    "task_type", "use_rslora",
})  # fmt: skip
"""Keys that change nothing in a trained adapter's update, or that the rules below look at."""

_WHY = {
    "use_dora": "DoRA rescales the frozen weight, which is no low-rank update",
    "lora_bias": "a bias on B is no part of a low-rank update",
    "modules_to_save": "whole modules are no low-rank update; keep heads in files of their own",
    "layer_replication": "the replicated layers are not those of the backbone",
    "trainable_token_indices": "embeddings are no sites",
    "target_parameters": "bare parameters are no sites",
}

_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the frozen weight as it is."""


def lora_config(
    ranks: Mapping[str, int],
    *,
    rank: int,
    base_model: str | None,
    fan_in_fan_out: bool = False,
) -> dict[str, Any]:
    """Return the configuration under which every layer's scale is 1.

    `lora_alpha` is r and `alpha_pattern` is `rank_pattern`, so that PEFT, which scales layer by
    layer, and loaders that read only `r` and `lora_alpha` (LoRAX, vLLM) agree. Pattern keys are
    the escaped full path behind `^`: a plain key matches the end of any path, and its dots any
    character. Nothing is said of layers that the file has no tensors for.

    Args:
        ranks: full path of each module in the file -> its rank, at least 1.
        rank: `r`, for the layers without a pattern.
        base_model: name of the base model, where it has one.
        fan_in_fan_out: whether the modules keep their weights as (d_in, d_out).
    """
    pattern = {f"^{re.escape(path)}": r for path, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": None,
        "base_model_name_or_path": base_model,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def check_config(config: Config, where: object, *, fan_in_fan_out: bool = False) -> None:
    """Refuse a configuration whose adapter is not a sum of plain low-rank updates.

    Args:
        config: the parsed `adapter_config.json`.
        where: the file, for messages.
        fan_in_fan_out: whether the sites' weights are stored as (d_in, d_out).

    Raises:
        FileFormatError: another method than LoRA; DoRA, biases, embeddings, whole modules or
            replicated layers; an initialisation that changes the frozen weights; a key that is
            set and unknown here; ranks, alphas or patterns of another kind than numbers.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise FileFormatError(f"{where} has peft_type {kind!r}; only 'LORA' can be taken over.")
    for key, value in config.items():
        if key not in _NEUTRAL and value not in (None, False, 0, "", [], {}):
            why = _WHY.get(key, "this package does not know what it changes")
            raise FileFormatError(
                f"{where} sets {key} to {value!r}, which cannot be taken over: {why}. Merge the "
                "adapter with PEFT and fit a plain LoRA to the difference, or train without it."
            )
    bias = config.get("bias", "none")
    if bias != "none":
        raise FileFormatError(
            f"{where} has bias {bias!r}; biases are no part of a low-rank update, only 'none' can "
            "be taken over."
        )
    start = config.get("init_lora_weights")
    if not any(start is plain or start == plain for plain in _PLAIN_STARTS):
        raise FileFormatError(
            f"{where} has init_lora_weights {start!r}, which changes the frozen weights; convert "
            "it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)."
        )
    turned = config.get("fan_in_fan_out", False)
    if turned is not fan_in_fan_out:
        stored = "(d_in, d_out)" if turned else "(d_out, d_in)"
        raise FileFormatError(
            f"{where} is for weights stored as {stored} (fan_in_fan_out {turned!r}), which is not "
            f"what the sites are; pass fan_in_fan_out={turned!r} where the base model is one of "
            "GPT-2's kind and its sites give (d_out, d_in) all the same."
        )
    _check_numbers(config, where)


def module_paths(sites: Mapping[str, Any], modules: Mapping[str, str] | None) -> dict[str, str]:
    """Return the path of every site's module, a site's own name where none is given.

    Raises:
        UnknownNameError: a path is given for a site that does not exist.
        InvalidValueError: two sites have one path.
    """
    for name in modules or {}:
        if name not in sites:
            raise unknown("site", name, sites)
    paths = {name: name for name in sites} | dict(modules or {})
    if len(set(paths.values())) < len(paths):
        raise InvalidValueError(f"Expected a module of its own for every site; got {paths}.")
    return paths


def rank_of(config: Config, path: str) -> int:
    """Return the rank that PEFT gives the layer at this path."""
    rank: int = _looked_up(config.get("rank_pattern"), path, config.get("r", 8))
    return rank


def scale_of(config: Config, path: str) -> float:
    """Return what PEFT multiplies the update B A of the layer at this path by."""
    alpha = _looked_up(config.get("alpha_pattern"), path, config.get("lora_alpha", 8))
    rank = rank_of(config, path)
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def is_target(config: Config, path: str) -> bool:
    """Return whether PEFT gives the layer at this path an adapter."""
    excluded = config.get("exclude_modules") or ()
    if _named(excluded, path):
        return False
    targets = config.get("target_modules") or ()
    if targets == "all-linear":
        return True
    if not _named(targets, path):
        return False
    layers = config.get("layers_to_transform")
    # As PEFT has it, the choice of layers is for names that match the end of a path only.
    if isinstance(targets, str) or path in targets or layers is None or layers == []:
        return True
    # The first number in the path, or the one behind a named list of layers.
    names = config.get("layers_pattern") or ()
    found = None
    for name in [names] if isinstance(names, str) else names:
        found = found or re.match(rf"(?:^|.*?\.){name}\.(\d+)\.", path)
    if not names:
        found = re.match(r".*?\.[^.]*\.(\d+)\.", path)
    chosen = [layers] if isinstance(layers, int) else layers
    return found is not None and int(found[1]) in chosen


def _named(names: str | Sequence[str], path: str) -> bool:
    """Whether a regular expression matches the path, or a list names the end of it."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return path in names or any(path.endswith(f".{name}") for name in names)


def _looked_up(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of the path."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    # Where none matches, PEFT looks the path itself up, character by character.
    return (patterns or {}).get(path, default)


def _check_numbers(config: Config, where: object) -> None:
    for name, numbers, kinds in (
        ("r", {"r": config.get("r", 8)}, int),
        ("lora_alpha", {"lora_alpha": config.get("lora_alpha", 8)}, (int, float)),
        ("rank_pattern", config.get("rank_pattern") or {}, int),
        ("alpha_pattern", config.get("alpha_pattern") or {}, (int, float)),
    ):
        if not isinstance(numbers, dict):
            raise FileFormatError(f"{where}: expected {name} as an object; got {numbers!r}.")
        for key, value in numbers.items():
            good = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
            if not good or (kinds is int and value < 1):
                what = "whole numbers of at least 1" if kinds is int else "finite numbers"
                raise FileFormatError(f"{where}: {name} takes {what}; {key!r} has {value!r}.")
    texts = [*(config.get("rank_pattern") or {}), *(config.get("alpha_pattern") or {})]
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        value = config.get(name)
        listed = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            raise FileFormatError(
                f"{where}: expected {name} as a name or a list of names; got {value!r}."
            )
        if isinstance(value, str) or name == "layers_pattern":
            texts += listed
    layers = config.get("layers_to_transform")
    numbers = layers if isinstance(layers, list) else [0 if layers is None else layers]
    if not all(isinstance(number, int) for number in numbers):
        raise FileFormatError(
            f"{where}: expected layers_to_transform as whole numbers; got {layers!r}."
        )
    for text in texts:
        try:
            re.compile(text)
        except re.error as error:
            raise FileFormatError(
                f"{where}: {text!r} is no regular expression ({error})."
            ) from error
