"""Episodes that are asked to run on a device keep their tensors there, and end as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from image_file_samples import own_tables, write_cifar100
from playable import TINY, TINY_IMAGES, bank_for
from played_device import DEVICE, place, played_device

from nsr_gym.bank.kinds import BANKS
from nsr_gym.datasets import cifar_files
from nsr_gym.learning.kinds import LEARNERS, MODIFIERS
from nsr_gym.routing import ROUTERS

TOLERANCE = 1e-5
CIFAR, DIGITS = "NSR/SplitCIFAR100-v0", "NSR/CyclicDigits-v0"


def episode(env_id: str, device: str, **arguments: Any) -> list[np.ndarray]:
    """Play an episode of two streams; return all that came of it, and what a router answers."""
    env: Any = gym.make_vec(env_id, 2, vectorization_mode=None, device=device, **arguments)
    observation, _ = env.reset(seed=[1, 2])
    env.action_space.seed(0)
    seen = [observation]
    for _ in range(6):
        observation, reward, *_, info = env.step(env.action_space.sample())
        seen += [observation, reward, np.stack(info["curve"])]
    if arguments.get("access", "bank") == "bank" and arguments.get("learner") != "joint":
        seen.append(np.asarray(env.unwrapped.engine.routed("ncm").accuracy))
    env.close()
    return seen


def parts() -> list[dict[str, Any]]:
    """Return arguments that between them name every part."""
    banks: dict[str, Any] = {name: {"bank": name} for name in BANKS if name != "additive"}
    learners = [{"learner": name, "bank": bank_for(name)} for name in LEARNERS]
    return [
        *banks.values(), *learners,
        *({"router": name} for name in ROUTERS),
        *({"modifiers": [name]} for name in MODIFIERS),
        {"observe_signals": True}, {"head": "trained"}, {"energy": 0.9}, {"capacity": 2},
        {"access": "memoryless"}, {"access": "visit"},
        {"router": "lorahub", "warm_start": "mixture"},
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", parts(), ids=lambda a: "-".join(map(str, a.values())))
def test_every_part_stays_on_the_device(arguments: dict[str, Any]) -> None:
    arguments = TINY | {"support_size": 32} | arguments
    check(DIGITS, arguments)


@pytest.mark.parametrize("backbone", ["resnet-small-32", "vit-small-32"])
@pytest.mark.parametrize("access", ["bank", "memoryless"])
def test_image_backbones_stay_on_the_device(
    backbone: str, access: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_tables(monkeypatch)
    write_cifar100(tmp_path, cifar_files.CIFAR100, "official")
    chosen = {"backbone": backbone, "image_size": 32, "access": access, "root": str(tmp_path)}
    check(CIFAR, TINY_IMAGES | chosen)


def check(env_id: str, arguments: dict[str, Any]) -> None:
    expected = episode(env_id, "cpu", **arguments)
    with played_device() as device:
        found = episode(env_id, "cuda", **arguments)
    assert device.operations > 1000
    for a, b in zip(expected, found, strict=True):
        # Episodes are batched otherwise than on the CPU, so that sums are rounded otherwise.
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


MIXED: list[Callable[[torch.Tensor], Any]] = [
    lambda x: x @ torch.ones(4, 2),
    lambda x: x + torch.from_numpy(np.ones((3, 4), dtype=np.float32)),
    lambda x: torch.cat([x, torch.zeros(1, 4)]),
    lambda x: torch.ones(3) * x.sum(),
    lambda x: x.numpy(),
    lambda x: np.asarray(x),
    lambda x: np.add(x, 1),
    lambda x: torch.zeros(3)[x[:, 0].long()],
    lambda x: x.__setitem__(0, torch.zeros(4)),
    lambda x: torch.zeros(3, 4).add_(x),
    lambda x: x.new_zeros(3, 4) + torch.zeros_like(x, device="cpu"),
]


@pytest.mark.parametrize("mixed", range(len(MIXED)))
def test_the_played_device_refuses_what_a_device_refuses(mixed: int) -> None:
    with played_device():
        x = torch.zeros(3, 4, device="cuda")
        assert x.device == DEVICE
        with pytest.raises(RuntimeError, match=r"device|cuda"):
            MIXED[mixed](x)


def test_the_played_device_follows_tensors_through_gradients_and_moves() -> None:
    with played_device():
        x = torch.arange(6.0).reshape(2, 3).to("cuda").requires_grad_()
        (x * x.new_tensor(2.0)).square().sum().backward()
        assert x.grad is not None
        assert x.grad.device == DEVICE
        assert x.grad.cpu().numpy().tolist() == [[0.0, 8.0, 16.0], [24.0, 32.0, 40.0]]
        x.detach().copy_(torch.ones(2, 3))
        assert place(x.detach()[:, torch.tensor([0])]) == DEVICE
