"""torchvision is imported in one place, on demand, and next to a CPU-only torch too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(code: str, path: Path | None = None) -> None:
    """Run code in a fresh interpreter, warnings as errors, `path` in front of sys.path."""
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def fake(folder: Path, **modules: str) -> Path:
    """Write a package called torchvision with the given modules."""
    package = folder / "torchvision"
    package.mkdir()
    for name, code in modules.items():
        (package / f"{name}.py").write_text(code)
    return folder


# What the real package does: a fake implementation is registered for operators that the
# extension should have declared.
META = """
import torch
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold): ...
@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold): ...
"""
INIT = """
import torch
from . import extension
from torchvision import meta
has_ops = __import__("torchvision").extension.has_ops
"""


def test_digits_never_load_torchvision_or_torch() -> None:
    run(
        """
import sys
import nsr_gym
assert not {"torch", "torchvision", "sklearn", "scipy"} & set(sys.modules)
from nsr_gym.datasets import digits_parts, digits_pool
assert not {"torch", "torchvision", "sklearn", "scipy"} & set(sys.modules)
digits_parts()
for kind in ("permutation", "rotation", "labels"):
    digits_pool(kind, "train", 2).fingerprint
assert not {"torch", "torchvision"} & set(sys.modules)
"""
    )


def test_the_installed_torchvision_loads_with_its_data_sets_and_transforms() -> None:
    run(
        """
from nsr_gym.datasets import load_torchvision
torchvision = load_torchvision()
assert torchvision.datasets.CIFAR100 and torchvision.transforms.ToTensor and torchvision.models
assert load_torchvision() is torchvision
import torchvision as again
assert again is torchvision
"""
    )


def test_a_build_that_works_is_left_untouched(tmp_path: Path) -> None:
    run(
        """
import sys
from nsr_gym.datasets import load_torchvision
assert load_torchvision().works
assert "torch" not in sys.modules  # nothing was declared
""",
        fake(tmp_path, __init__="works = True"),
    )


def test_missing_operators_are_declared_once_even_by_many_threads(tmp_path: Path) -> None:
    run(
        """
import sys
from concurrent.futures import ThreadPoolExecutor
from nsr_gym.datasets import vision
import torch
with ThreadPoolExecutor(8) as workers:
    modules = list(workers.map(lambda _: vision.load_torchvision(), range(16)))
assert all(module is sys.modules["torchvision"] for module in modules)
assert torch.ops.torchvision.nms and torch.ops.torchvision.qnms
assert len(vision._declared) == 2
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError:
    pass  # declared, and honest about not being there
else:
    raise AssertionError
""",
        fake(tmp_path, __init__=INIT, extension="has_ops = False", meta=META),
    )


def test_only_what_is_missing_is_declared_and_the_rest_of_a_failed_import_is_swept_up(
    tmp_path: Path,
) -> None:
    extension = """
import torch
has_ops = True
if not hasattr(torch.ops.torchvision, "nms"):
    torch.library.define(
        "torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    )
"""
    meta = META[META.index('@torch.library.register_fake("torchvision::qnms")') :]
    run(
        """
import sys
from nsr_gym.datasets import vision
try:
    import torchvision
except RuntimeError:
    assert "torchvision.extension" in sys.modules  # a half-imported package lies about
else:
    raise AssertionError
assert vision.load_torchvision().has_ops
assert len(vision._declared) == 1
""",
        fake(tmp_path, __init__=INIT, extension=extension, meta="import torch\n" + meta),
    )


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (None, "is not installed"),
        ("raise RuntimeError('wrong CUDA')", "cannot be imported (wrong CUDA)"),
        ("import nowhere_to_be_found", "cannot be imported (No module named"),
    ],
)
def test_a_torchvision_that_cannot_be_used_is_reported_with_the_remedy(
    tmp_path: Path, init: str | None, message: str
) -> None:
    run(
        f"""
import sys
if {init is None}:
    sys.modules["torchvision"] = None
from nsr_gym.datasets import load_torchvision
from nsr_gym.errors import MissingDependencyError
try:
    load_torchvision()
except MissingDependencyError as error:
    assert {message!r} in str(error), error
    assert "pip install torch torchvision" in str(error)
else:
    raise AssertionError
""",
        fake(tmp_path, __init__=init or ""),
    )
