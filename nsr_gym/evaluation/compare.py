"""Environments x agents x seeds, run by local processes, resumed where they were stopped."""

from __future__ import annotations

import hashlib
import importlib
import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import pandas as pd

from nsr_gym.errors import FileFormatError, InvalidValueError, StateError, unknown
from nsr_gym.evaluation.cells import VISITS, Cell, ResultFolder, read_parquet, write_parquet
from nsr_gym.evaluation.rollout import check_arguments, opened
from nsr_gym.registration import environment_family
from nsr_gym.registry import agent_spec

_PACKAGES = ("nsr-gym", "gymnasium", "torch", "numpy", "scipy", "pandas", "scikit-learn")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared.

    Attributes:
        environments: ids.
        agents: registered names, each run at its own access level.
        seeds: the same for every agent: common random numbers.
        arguments: of the environments, plain JSON.
        agent_arguments: agent -> arguments of its constructor, plain JSON.
        routers: see `nsr_gym.evaluation.rollout.play`.
        block: seeds that one cell plays side by side.
    """

    environments: tuple[str, ...]
    agents: tuple[str, ...]
    seeds: tuple[int, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    agent_arguments: dict[str, dict[str, Any]] = field(default_factory=dict)
    routers: tuple[str, ...] = ()
    block: int = 10

    def __post_init__(self) -> None:
        """Check every name before anything runs.

        Raises:
            UnknownNameError: an environment or agent that does not exist.
            InvalidValueError: nothing to compare, repeated or negative seeds, or an agent that
                plays none of the environments.
        """
        for name in self.environments:
            check_environment(name)
        for name in self.agent_arguments:
            if name not in self.agents:
                raise unknown("agent of this comparison", name, self.agents)
        for what in ("environments", "agents", "seeds"):
            values = getattr(self, what)
            if len(values) == 0 or len(set(values)) != len(values):
                raise InvalidValueError(
                    f"Expected at least one of {what}, each once; got {list(values)}."
                )
        families = {environment_family(name) for name in self.environments}
        for name in self.agents:
            spec = agent_spec(name)
            if not families & set(spec.plays):
                spec.environment_arguments(min(families))
        if min(self.seeds) < 0 or self.block < 1:
            raise InvalidValueError(
                "Expected seeds that are not negative and a block of at least 1; got "
                f"{list(self.seeds)} and {self.block}."
            )
        check_arguments(self.arguments)

    def cells(self) -> list[Cell]:
        """Return the units of work, in the order of the table.

        An agent that does not play one of the environments is left out there.
        """
        return [
            Cell(
                environment=environment,
                agent=agent,
                seeds=self.seeds[first : first + self.block],
                arguments=self.arguments,
                agent_arguments=self.agent_arguments.get(agent, {}),
                routers=self.routers,
                spec=agent_spec(agent),
            )
            for environment in self.environments
            for agent in self.agents
            if environment_family(environment) in agent_spec(agent).plays
            for first in range(0, len(self.seeds), self.block)
        ]


def check_environment(name: str) -> None:
    """Refuse an id that is no environment of the suite (namespace `NSR`).

    Args:
        name: the id; `"module:id"` imports the module that registers it first.

    Raises:
        ImportError: there is no such module.
        UnknownNameError: there is no such id; the message names the closest.
    """
    known = [key for key in gym.registry if key.startswith("NSR/")]
    module, _, bare = name.rpartition(":")
    if module:
        importlib.import_module(module)
    if bare not in gym.registry or not bare.startswith("NSR/"):
        raise unknown("environment of the suite", name, known)


def run(
    comparison: Comparison,
    folder: Path,
    *,
    workers: int | None = None,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Run a comparison into a folder and return the long table.

    Args:
        comparison: what to run.
        folder: `runs/<name>`. A folder with the same comparison is gone on with; finished
            cells are never run again.
        workers: processes; None takes one for each core. 1 runs everything in this process.
        resume: False refuses a folder that is there already.
        progress: called with the visits made and cells finished since the last call.

    Raises:
        StateError: the folder holds another comparison, or `resume` is False and it is there.
        FileFormatError: a file in the folder is damaged.
    """
    count = _cores() if workers is None else workers
    if count < 1:
        raise InvalidValueError(f"Expected at least one worker; got {count}.")
    results, cells = ResultFolder(folder), comparison.cells()
    local = [c.agent for c in cells if c.spec and c.spec.entry_point.startswith("__main__:")]
    if local and count > 1:
        raise InvalidValueError(
            f"Agent {local[0]!r} is defined in the main script, where other processes cannot find "
            "it; move it into a module or run with one worker."
        )
    if results.read_manifest() is None:
        # A run killed in its first moment leaves hidden files at most.
        if folder.exists() and any(file.name[0] != "." for file in folder.iterdir()):
            raise StateError(f"{folder} is not empty and holds no comparison; choose another name.")
        # Wrong arguments are to be found before anything is written.
        for cell in {(cell.environment, cell.agent): cell for cell in cells}.values():
            with opened(cell.environment, cell.agent, 1, cell.arguments, cell.agent_arguments):
                pass
    folder.mkdir(parents=True, exist_ok=True)
    with results.lock():
        _claim(results, comparison, resume)
        return _run_locked(results, cells, count, progress)


def load(folder: Path) -> pd.DataFrame:
    """Read the long table of a finished comparison.

    Raises:
        FileFormatError: there is none, or it is damaged.
    """
    if not (folder / VISITS).exists():
        raise FileFormatError(
            f"{folder} holds no finished comparison; make one with `nsr-gym compare`."
        )
    return read_parquet(folder / VISITS)


def _run_locked(
    results: ResultFolder,
    cells: list[Cell],
    count: int,
    progress: Callable[[int, int], None] | None,
) -> pd.DataFrame:
    results.remove_leftovers()
    done = results.finished(cells)
    todo = [cell for cell in cells if cell.key not in done]
    began = time.time()
    report = progress or (lambda visits, finished: None)
    report(0, len(done))
    if count == 1 or len(todo) <= 1:
        for cell in todo:
            results.write_cell(cell, cell.run(lambda visits: report(visits, 0)))
            report(0, 1)
    else:
        _run_pool(todo, results, min(count, len(todo)), report)
    table = results.table(cells)
    table.insert(0, "run", results.path.name)
    write_parquet(results.path / VISITS, table)
    manifest = results.read_manifest() or {}
    manifest["streams"] = _streams(table)
    manifest["seconds"] = manifest.get("seconds", 0.0) + time.time() - began
    manifest["finished"] = True
    results.write_manifest(manifest)
    return table


def _claim(results: ResultFolder, comparison: Comparison, resume: bool) -> None:
    """Write the manifest, or make sure that the one there is of the same comparison."""
    wanted = {"comparison": _plain(asdict(comparison)), "installation": installation()}
    found = results.read_manifest()
    # A manifest without any result, of a run that failed at once, binds nobody.
    void = found is not None and not found["finished"] and not any(results.cell_files())
    if found is None or void:
        results.write_manifest(wanted | {"format": 1, "finished": False})
        return
    if not resume:
        raise StateError(f"{results.path} is there already; choose another name.")
    for part, values in wanted.items():
        there = found.get(part) or {}
        other = {k: (there.get(k), v) for k, v in values.items() if there.get(k) != v}
        if other:
            listed = "; ".join(f"{k}: {a!r} there, {b!r} now" for k, (a, b) in other.items())
            raise StateError(
                f"{results.path} holds results of another {part} ({listed}). Choose another "
                "name or move the folder away; nothing was overwritten."
            )


def _run_pool(
    todo: list[Cell], results: ResultFolder, workers: int, report: Callable[[int, int], None]
) -> None:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    seen = 0

    def tick(finished: int) -> None:
        nonlocal seen
        now = counter.value
        report(now - seen, finished)
        seen = now

    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(counter,)
    )
    try:
        waiting = {pool.submit(_work, cell, results) for cell in todo}
        while waiting:
            finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            tick(len(finished))
    except BrokenProcessPool as error:
        raise StateError(
            "A worker process was killed (out of memory?). Finished cells are kept: run the same "
            "command again, with fewer --workers or a smaller --block."
        ) from error
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    pool.shutdown()


_counter: Any = None


def _start_worker(counter: Any) -> None:
    global _counter
    _counter = counter
    # Stopping is the parent's business; without a parent there is nothing to work for.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    import torch

    # One thread for each process: the products are small, and cores are shared by cells.
    torch.set_num_threads(1)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(cell: Cell, results: ResultFolder) -> None:
    def count(visits: int) -> None:
        with _counter.get_lock():
            _counter.value += visits

    results.write_cell(cell, cell.run(count))


def _streams(table: pd.DataFrame) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    columns = ["environment", "seed", "stream_hash"]
    for environment, seed, stream in table[columns].drop_duplicates().itertuples(index=False):
        found.setdefault(str(environment), {})[str(seed)] = str(stream)
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installation(*more: str) -> dict[str, str]:
    """Return what results depend on: versions of packages, and a hash of the suite's own code.

    Args:
        *more: packages beside those that every comparison uses.
    """
    versions = {name: metadata.version(name) for name in (*_PACKAGES, *more)}
    return versions | {"python": platform.python_version(), "source": _source_hash()}


def _source_hash() -> str:
    """Hash the suite's own code and data: a version number says little of a working copy."""
    import nsr_gym.agents
    import nsr_gym.envs

    digest = hashlib.sha256()
    for package in (nsr_gym, nsr_gym.envs, nsr_gym.agents):
        root = Path(package.__path__[0])
        for file in sorted(root.rglob("*")):
            if file.is_file() and file.suffix in (".py", ".json", ".safetensors"):
                digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Turn tuples into lists, as a round trip through JSON would."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
