"""The state of a training run in one file: enough to go on exactly, and nothing pickled.

Environments are not part of it: a run resets them, with seeds of its own, where it writes a state.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nsr_gym.errors import FileFormatError
from nsr_gym.files import write_whole

FORMAT = 1
_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining")
_OFF_POLICY_COUNTERS = ("_n_calls", "exploration_rate")
_BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def write_state(file: Path, model: Any, notes: Mapping[str, Any]) -> None:
    """Write the state of a learner between two rollouts, whole or not at all.

    It holds parameters, the optimiser, counters, the replay buffer where there is one, and the
    generators of random numbers that the learner draws from: those of torch, NumPy and Python,
    which Stable-Baselines3 shares with the whole process, and that of the action space.

    Args:
        file: an existing one is replaced.
        model: of Stable-Baselines3.
        notes: plain JSON of the run's own.
    """
    tensors = {f"policy.{k}": v for k, v in model.policy.state_dict().items()}
    numbers: dict[str, dict[str, float]] = {}
    for index, values in model.policy.optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    generators, described = _generators(model)
    tensors |= generators
    said: dict[str, Any] = {
        "format": FORMAT,
        "notes": dict(notes),
        "optimizer": numbers,
        "generators": described,
        "counters": {name: getattr(model, name) for name in _counters(model)},
    }
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        rows = buffer.buffer_size if buffer.full else buffer.pos
        said["buffer"] = {"pos": buffer.pos, "full": buffer.full}
        for name, array in _arrays(buffer).items():
            tensors[f"buffer.{name}"] = torch.from_numpy(array[:rows])
    # The parts of a policy may share memory, which the format does not know.
    whole = {name: part.detach().cpu().clone().contiguous() for name, part in tensors.items()}
    write_whole(file, lambda path: save_file(whole, path, {"state": json.dumps(said)}))


def read_notes(file: Path) -> dict[str, Any]:
    """Return the notes that a state was written with.

    Raises:
        FileFormatError: the file is damaged, foreign or of a newer version.
    """
    return dict(_read(file)[0]["notes"])


def read_state(file: Path, model: Any) -> dict[str, Any]:
    """Set a learner, built as the one whose state was written, to that state.

    Args:
        file: that `write_state` wrote.
        model: of the same algorithm, network and spaces.

    Returns:
        The notes.

    Raises:
        FileFormatError: the file is damaged, foreign, of a newer version, or of another learner.
    """
    said, tensors = _read(file)
    try:
        _set(model, said, tensors)
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise FileFormatError(
            f"{file} does not fit the learner that is to go on from it ({error}); move the folder "
            "away to begin anew."
        ) from error
    return dict(said["notes"])


@contextmanager
def own_generators() -> Iterator[None]:
    """Let a run draw from the process's generators on one thread, and leave both as they were.

    Sums of several threads come out in no fixed order, so that no run would equal another.
    """
    threads = torch.get_num_threads()
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def _read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            said = json.loads((opened.metadata() or {})["state"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            version = said["format"]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise FileFormatError(
            f"{file} cannot be read as the state of a training run ({error}); move the folder "
            "away to begin anew."
        ) from error
    if version != FORMAT:
        raise FileFormatError(
            f"Expected {file} in format {FORMAT}; got {version!r}, of another version of nsr-gym."
        )
    return said, tensors


def _set(model: Any, said: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    model.policy.load_state_dict(parts["policy"], strict=True)
    optimizer = model.policy.optimizer
    states: dict[int, dict[str, Any]] = {}
    for name, tensor in parts.get("optimizer", {}).items():
        index, _, key = name.partition(".")
        states.setdefault(int(index), {})[key] = tensor
    for index, values in said["optimizer"].items():
        states.setdefault(int(index), {}).update(values)
    # The groups hold what the learner was built with, and a rate that it sets before each update.
    optimizer.load_state_dict(
        {"state": states, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    for name in _counters(model):
        setattr(model, name, said["counters"][name])
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        for name, array in _arrays(buffer).items():
            saved = parts["buffer"][name].numpy()
            array[: len(saved)] = saved
        buffer.pos, buffer.full = said["buffer"]["pos"], said["buffer"]["full"]
    _set_generators(model, parts["generator"], said["generators"])


def _counters(model: Any) -> tuple[str, ...]:
    off_policy = getattr(model, "replay_buffer", None) is not None
    return _COUNTERS + _OFF_POLICY_COUNTERS if off_policy else _COUNTERS


def _arrays(buffer: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a replay buffer, (steps, environments, ...)."""
    arrays: dict[str, np.ndarray] = {}
    for name in _BUFFER:
        value = getattr(buffer, name)
        if isinstance(value, dict):
            arrays |= {f"{name}.{key}": part for key, part in value.items()}
        else:
            arrays[name] = value
    return arrays


def _generators(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the states of all generators: what is long as tensors, the rest as plain JSON."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    tensors = {
        "generator.torch": torch.get_rng_state(),
        "generator.python": torch.tensor(words, dtype=torch.int64),
        "generator.numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
    }
    if torch.device(model.device).type == "cuda":
        tensors["generator.cuda"] = torch.cuda.get_rng_state(model.device)
    described = {
        "python": [version, gauss],
        "numpy": [kind, *rest],
        "actions": model.action_space.np_random.bit_generator.state,
    }
    return tensors, described


def _set_generators(model: Any, tensors: dict[str, torch.Tensor], said: dict[str, Any]) -> None:
    version, gauss = said["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    kind, *rest = said["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, *rest))  # noqa: NPY002
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], model.device)
    model.action_space.np_random.bit_generator.state = said["actions"]
