"""Pictures of an episode: the bank as a table, accuracies per task over visits."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import unknown

if TYPE_CHECKING:
    from nsr_gym.envs.engine import EpisodeEngine

RENDER_MODES = ("ansi", "rgb_array")
RENDER_FPS = 4


def check_render_mode(mode: str | None) -> None:
    """Refuse a render mode that does not exist.

    Raises:
        UnknownNameError: it does not exist.
    """
    if mode is not None and mode not in RENDER_MODES:
        raise unknown("render mode", mode, RENDER_MODES)


def render(engine: EpisodeEngine, row: int, mode: str) -> str | NDArray[np.uint8]:
    """Render one episode of an engine.

    Args:
        engine: the engine.
        row: the episode.
        mode: `"ansi"` for a table of the memory, `"rgb_array"` for a picture (h, w, 3) uint8.

    Returns:
        The text or the picture.
    """
    return _table(engine, row) if mode == "ansi" else _picture(engine, row)


def _table(engine: EpisodeEngine, row: int) -> str:
    stream, config = engine.streams[row], engine.config
    if stream is None:
        return "no episode yet"
    visit = int(engine.visit[row])
    head = f"visit {visit}/{config.num_visits}  split {config.split}  access {config.access}"
    if visit < config.num_visits:
        head += f"  next task: {stream.tasks[stream.visits[visit]]}"
    if visit:
        head += f"\nlast: {stream.tasks[stream.visits[visit - 1]]}"
        head += f"  accuracy {engine.accuracy[row, visit - 1]:.3f}"
    lines = engine.memory.describe(row)
    return textwrap.dedent(head) + "\n" + "\n".join(lines)


def _picture(engine: EpisodeEngine, row: int) -> NDArray[np.uint8]:
    # The object interface keeps pyplot's global state out of it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    config, stream = engine.config, engine.streams[row]
    tasks, visits = config.num_tasks, config.num_visits
    grid = np.full((tasks, visits), np.nan)
    if stream is not None:
        order = np.asarray(stream.visits)
        grid[order, np.arange(visits)] = engine.accuracy[row]
    figure = Figure(figsize=(10, 1.6 + 0.28 * tasks), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image: Any = axes.imshow(
        grid, aspect="auto", vmin=0.0, vmax=1.0, cmap="viridis", interpolation="nearest"
    )
    axes.set_facecolor("0.93")
    for cycle in range(1, -(-visits // tasks)):
        axes.axvline(cycle * tasks - 0.5, color="0.6", linewidth=0.8)
    if stream is not None:
        axes.set_yticks(range(tasks), [textwrap.shorten(n, 24) for n in stream.tasks], fontsize=8)
        done = int(engine.visit[row])
        mean = "" if done == 0 else f", mean {np.nanmean(engine.accuracy[row, :done]):.3f}"
        axes.set_title(
            f"accuracy after each visit ({done} of {visits}{mean}), {config.split} split, "
            f"{config.access} access",
            fontsize=10,
        )
    axes.set_xlabel("visit")
    figure.colorbar(image, ax=axes, label="accuracy", pad=0.01)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
