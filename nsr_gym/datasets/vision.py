"""The one place that imports torchvision, and only when an image data set is asked for.

Builds of torchvision from the package index are linked against a CUDA build of torch. Next
to a CPU-only torch their extension does not load, and the import ends with "operator
torchvision::nms does not exist" although data sets, transforms and models need no such
operator. Declaring the names is enough for the import to succeed; calling one of them
still raises, and nothing here calls them.
"""

from __future__ import annotations

import importlib
import re
import sys
import threading
from types import ModuleType
from typing import Any

from nsr_gym.errors import MissingDependencyError

_LOCK = threading.RLock()
_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_SCHEMAS = {"nms": _BOXES, "qnms": _BOXES}
_MISSING = re.compile(r"operator torchvision::\w+ does not exist")
# An operator's declaration ends with the library object that made it.
_declared: list[Any] = []


def load_torchvision() -> ModuleType:
    """Import torchvision, `torchvision.datasets` and `torchvision.transforms` included.

    A build that works is imported as it is. Where the import stops at a missing operator, the
    missing ones are declared and the import is done once more. Safe to call again and from
    several threads.

    Returns:
        The module.

    Raises:
        MissingDependencyError: torchvision is not installed or does not fit the installed torch.
    """
    with _LOCK:
        if "torchvision" not in sys.modules:
            _forget()
        try:
            return importlib.import_module("torchvision")
        except ImportError as error:
            raise _unusable(error) from error
        except RuntimeError as error:
            if not _MISSING.search(str(error)):
                raise _unusable(error) from error
        _forget()
        _declare_missing()
        try:
            return importlib.import_module("torchvision")
        except (ImportError, RuntimeError) as error:
            raise _unusable(error) from error


def _forget() -> None:
    """Drop what an import that failed left behind: the next one would take it for whole."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def _declare_missing() -> None:
    import torch

    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(name + schema)
            _declared.append(library)


def _unusable(error: Exception) -> MissingDependencyError:
    if isinstance(error, ModuleNotFoundError) and error.name == "torchvision":
        problem = "torchvision is needed for image data sets and is not installed"
    else:
        problem = f"torchvision is installed but cannot be imported ({error})"
    return MissingDependencyError(
        f"{problem}; install the release that belongs to your torch, for instance with "
        "`pip install torch torchvision`."
    )
