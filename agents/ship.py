"""Trains the controllers that come with the suite, and puts them where agents find them.

`python -m nsr_gym.agents.ship [--runs FOLDER] [NAME ...]` trains those named (all without names) on
the train split by the hyper-parameter files, seed 0, plays the best one of each run on held-out
streams of the test split and writes what it reached there into its card.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nsr_gym.agents.card import TENSORS, read_card
from nsr_gym.agents.controller import TRAINED
from nsr_gym.agents.foreign import CARD
from nsr_gym.agents.training import BEST, TrainingConfig, train
from nsr_gym.evaluation.rollout import play
from nsr_gym.files import write_whole
from nsr_gym.registration import DIGITS

SHIPPED: Mapping[str, str] = {
    **{name: f"{name}Digits" for name in DIGITS},
    "SplitCIFAR100": "SplitCIFAR100",
    "FiveDatasets": "FiveDatasets",
}
"""Name -> its environment's, without namespace and version."""
_VALIDATION: dict[str, dict[str, Any]] = {"Mixed": {"eval_every": 65_536, "eval_episodes": 128}}
"""Where episodes differ most, the choice of the best takes more of them."""
CARD_SEEDS = tuple(range(20))
"""Streams of the test split whose mean reward stands in the card."""


def held_out(folder: Path) -> dict[str, Any]:
    """Play a controller on the held-out streams of its card, in the environment it was trained in.

    Args:
        folder: of the controller.

    Returns:
        Mean reward of a visit over all episodes (`per_visit`), the reward, split and seeds.
    """
    card = read_card(folder)
    arguments = {name: value for name, value in card.arguments.items() if name != "split"}
    table = play(
        card.environment,
        "ppo",
        CARD_SEEDS,
        arguments={**arguments, "split": "test"},
        agent_arguments={"folder": str(folder)},
    )
    reward = str(card.arguments["reward"])
    value = table.groupby("seed")[f"reward_{reward}"].mean().mean()
    return {
        "per_visit": round(float(value), 6),
        "reward": reward,
        "split": "test",
        "seeds": [CARD_SEEDS[0], CARD_SEEDS[-1]],
    }


def ship(name: str, runs: Path) -> Path:
    """Train a controller and put it among those of the suite; returns its folder."""
    environment = f"NSR/{SHIPPED[name]}Recorded-v0"
    config = TrainingConfig.from_files(environment, network="pointer", **_VALIDATION.get(name, {}))
    result = train(config, runs / name, progress=_say)
    folder = TRAINED / f"{_slug(SHIPPED[name])}-ppo"
    folder.mkdir(parents=True, exist_ok=True)
    for file in (TENSORS, CARD):
        content = (result.folder / BEST / file).read_bytes()
        write_whole(folder / file, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]
    card = json.loads((folder / CARD).read_text())
    card["scores"]["held_out"] = held_out(folder)
    text = json.dumps(card, indent=2) + "\n"
    write_whole(folder / CARD, lambda path: path.write_text(text))
    print(f"{name}: {card['scores']}", flush=True)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SHIPPED)} (all)")
    parser.add_argument("--runs", type=Path, default=Path("runs/controllers/shipped"))
    asked = parser.parse_args(arguments)
    for name in asked.names:
        if name not in SHIPPED:
            parser.error(f"expected names among {', '.join(SHIPPED)}; got {name!r}")
    for name in asked.names or SHIPPED:
        ship(name, asked.runs)


def _slug(name: str) -> str:
    """Return a name with its words apart: CyclicDigits is cyclic-digits."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def _say(steps: int, total: int, score: Any) -> None:
    if score is not None:
        print(f"{steps:,} of {total:,} steps: {score['return']:.3f}", flush=True)


if __name__ == "__main__":
    main()
