"""Pictures of an episode: the bank as a table, accuracies per task over visits."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
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
    plan, config = engine.plans[row], engine.config
    if plan is None:
        return "no episode yet"
    stream, visit = plan.stream, int(engine.visit[row])
    head = f"visit {visit}/{stream.num_visits}  split {config.split}  access {config.access}"
    if plan.family:
        head += f"  family {plan.family}"
    if visit < stream.num_visits:
        head += f"  next task: {stream.tasks[stream.visits[visit]]}"
    if visit:
        head += f"\nlast: {stream.tasks[stream.visits[visit - 1]]}"
        head += f"  accuracy {engine.accuracy[row, visit - 1]:.3f}"
    lines = engine.memory.describe(row)
    return textwrap.dedent(head) + "\n" + "\n".join(lines)


def _picture(engine: EpisodeEngine, row: int) -> NDArray[np.uint8]:
    config, plan = engine.config, engine.plans[row]
    if plan is None:
        return draw_grid(np.zeros(0, dtype=np.int64), np.zeros(0), config.max_tasks)
    stream = plan.stream
    done = int(engine.visit[row])
    mean = "" if done == 0 else f", mean {np.nanmean(engine.accuracy[row, :done]):.3f}"
    return draw_grid(
        np.asarray(stream.visits),
        engine.accuracy[row, : stream.num_visits],
        stream.num_tasks,
        names=[textwrap.shorten(name, 24) for name in stream.tasks],
        title=f"accuracy after each visit ({done} of {stream.num_visits}{mean}), "
        f"{config.split} split, {config.access} access",
        label="accuracy",
        high=1.0,
    )


def draw_grid(
    order: NDArray[np.int64],
    values: NDArray[np.float64],
    num_tasks: int,
    *,
    names: Sequence[str] | None = None,
    title: str = "no episode yet",
    label: str = "",
    high: float | None = None,
) -> NDArray[np.uint8]:
    """Draw one value for each visit: tasks down, visits across.

    Args:
        order: (V,) the visited tasks.
        values: (V,) at least 0, NaN where there is none yet.
        num_tasks: M.
        names: of the tasks; None numbers them.
        title: above the picture.
        label: of the colours.
        high: value of the brightest colour; None takes the largest value.

    Returns:
        (h, w, 3) uint8.
    """
    # The object interface keeps pyplot's global state out of it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    visits = max(1, len(order))
    grid = np.full((num_tasks, visits), np.nan)
    grid[order, np.arange(len(order))] = values
    figure = Figure(figsize=(10, 1.6 + 0.28 * min(num_tasks, 40)), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if high is None:
        high = float(np.nanmax(grid, initial=0.0)) or 1.0
    image: Any = axes.imshow(
        grid, aspect="auto", vmin=0.0, vmax=high, cmap="viridis", interpolation="nearest"
    )
    axes.set_facecolor("0.93")
    for cycle in range(1, -(-visits // num_tasks)):
        axes.axvline(cycle * num_tasks - 0.5, color="0.6", linewidth=0.8)
    if num_tasks <= 40:
        axes.set_yticks(range(num_tasks), names or [str(i) for i in range(num_tasks)], fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("visit")
    figure.colorbar(image, ax=axes, label=label, pad=0.01)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
