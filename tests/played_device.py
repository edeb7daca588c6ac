"""A second device, played on the CPU: where tensors would lie is tracked, and they must not meet.

Where there is no GPU, this still says whether code that was asked to run on a device keeps all its
tensors there: values are computed on the CPU, every tensor carries the place it was asked for, and
an operation on tensors of both places fails as it does with CUDA. What it cannot say is whether
the kernels of a device give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map

CPU, DEVICE = torch.device("cpu"), torch.device("cuda:0")


def place(tensor: Tensor) -> torch.device | None:
    """Return where a tensor is said to lie; None: not known (gradients made by torch itself)."""
    return getattr(tensor, "_place", None)


def _put(value: Any, where: torch.device) -> Any:
    """Say of a result where it lies."""
    if not isinstance(value, Tensor):
        return value
    if place(value) not in (None, where):
        value = value.view_as(value)  # moved, and on the CPU that is the tensor itself
    value._place = where  # type: ignore[attr-defined]
    return value


def _asked(value: Any) -> torch.device | None:
    """Return the place that an argument asks for, None where it asks for none."""
    if isinstance(value, Tensor):
        return place(value)
    if isinstance(value, (str, torch.device)):
        return CPU if torch.device(value).type == "cpu" else DEVICE
    return None


class PlayedDevice(TorchFunctionMode):
    """Inside it, `device="cuda"` can be asked for; see `played_device`.

    Attributes:
        operations: how many worked on tensors of the device.
    """

    def __init__(self) -> None:
        """Count from zero."""
        super().__init__()
        self.operations = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute on the CPU; refuse what a device would refuse."""
        kwargs = dict(kwargs or {})
        name = (resolve_name(func) or getattr(func, "__name__", str(func))).removeprefix("torch.")
        tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        places = {place(tensor) for tensor in tensors}
        if name == "Tensor.device.__get__":
            return DEVICE if place(args[0]) == DEVICE else CPU
        if name == "Tensor.is_cuda.__get__":
            return place(args[0]) == DEVICE
        if name in ("Tensor.numpy", "Tensor.__array__") and DEVICE in places:
            raise RuntimeError("An array of a tensor on the device; copy it to the CPU first.")
        where: torch.device | None
        if name in ("Tensor.to", "Tensor.type_as"):
            asked = [_asked(part) for part in (*args[1:], *kwargs.values())]
            where = next((part for part in asked if part is not None), place(args[0]))
            args = (args[0], *(CPU if _asked(part) == DEVICE and not isinstance(part, Tensor)
                               else part for part in args[1:]))  # fmt: skip
        elif name == "Tensor.cpu":
            where = CPU
        elif name == "Tensor.copy_":
            where = place(args[0])
        elif name in ("Tensor.__getitem__", "Tensor.__setitem__"):
            where = self._indexed(name, args)
        elif kwargs.get("device") is not None:
            where = _asked(kwargs["device"])
        else:
            # A number on the CPU goes with anything; one on the device does not.
            met = {place(t) for t in tensors if t.dim() or place(t) != CPU}
            if {CPU, DEVICE} <= met:
                found = [(str(place(tensor)), tuple(tensor.shape)) for tensor in tensors]
                raise RuntimeError(f"{name} of tensors on several devices: {found}.")
            where = DEVICE if DEVICE in places else CPU if CPU in places or not tensors else None
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        self.operations += DEVICE in places
        result = func(*args, **kwargs)
        return result if where is None else tree_map(lambda part: _put(part, where), result)

    @staticmethod
    def _indexed(name: str, args: Any) -> torch.device | None:
        """Check an index or an assignment; indices on the CPU are allowed."""
        own = place(args[0])
        index = {place(part) for part in tree_leaves(args[1]) if isinstance(part, Tensor)}
        if own == CPU and DEVICE in index:
            raise RuntimeError(f"{name}: indices on the device into a tensor on the CPU.")
        if name.endswith("__setitem__") and isinstance(args[2], Tensor) and args[2].dim():
            values = place(args[2])
            if None not in (own, values) and own != values:
                raise RuntimeError(f"{name}: values on {values} into a tensor on {own}.")
        return own


@contextmanager
def played_device() -> Iterator[PlayedDevice]:
    """Play that there is a CUDA device."""
    from_numpy = torch.from_numpy
    torch.from_numpy = lambda array: _put(from_numpy(array), CPU)  # takes no part in overrides
    try:
        with PlayedDevice() as mode:
            yield mode
    finally:
        torch.from_numpy = from_numpy
