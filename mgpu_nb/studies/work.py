"""What a study measures: tasks, or the ranks of a gang."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import Interrupted
from ..pool import GPUPool
from ..runs.run import Run
from ..tasks import Task
from ..workloads.base import Workload, pool_options, workload_of

__all__ = ["Work", "calls", "finish", "is_config"]


@dataclass(frozen=True)
class Work:
    """Tasks, or a config of a gang, and what they need of a pool.

    Attributes
    ----------
    tasks
        The same on each number of slots; none for a gang.
    gang
        Starts a gang: of a number of slots, in a pool, with its files in a folder.
    options
        Options of `GPUPool` that it needs.
    """

    tasks: tuple[Task, ...] = ()
    gang: Callable[[int, GPUPool, Path], Run] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_config(cls, config: Any, most: int) -> Work:
        """Work of the config of a workload on at most so many slots."""
        workload = workload_of(config)
        options = pool_options(workload, config)
        slots = options.pop("slots")
        del options["gpu_ids"]
        if workload.launch is not None:
            return cls(gang=_Gang(workload, config), options=options)
        assert workload.tasks is not None  # noqa: S101 (checked when it was made)
        return cls(tuple(workload.tasks(config, slots or most)), options=options)

    def start(self, pool: GPUPool, slots: int, folder: Path) -> Run:
        """Start it once; return at once."""
        if self.gang is not None:
            return self.gang(slots, pool, folder)
        return pool.run(self.tasks, name="speedup", folder=folder)

    def warm_up(self, pool: GPUPool, beat: Callable[[float], None]) -> None:
        """Start the workers, and run the cheapest tasks once. A gang starts processes of its own."""
        some = sorted(self.tasks, key=lambda task: task.cost or 0.0)[: 2 * len(pool.slots)]
        free = [task for task in some if not task.after and task.devices == 1]
        with tempfile.TemporaryDirectory(prefix="mgpu_nb-") as unwanted:
            if free:
                finish(pool.run(free, name="warm-up", folder=unwanted), beat)


@dataclass(frozen=True)
class _Gang:
    """A workload whose tasks are ranks: each number of slots is a world size."""

    workload: Workload
    config: Any

    def __call__(self, slots: int, pool: GPUPool, folder: Path) -> Run:
        assert self.workload.launch is not None  # noqa: S101 (by `Work.of_config`)
        options = {"world_size": slots, "gpu_ids": None, "output_dir": str(folder)}
        there = {name: value for name, value in options.items() if hasattr(self.config, name)}
        return self.workload.launch(replace(self.config, **there), pool, folder)


def finish(run: Run, beat: Callable[[float], None]) -> None:
    """Wait for a run; raise what went wrong. Its values are not read, and it is not shown.

    `beat` is called each second with the share of its tasks that have ended. An interrupt cancels the run.
    """
    try:
        while not run.done:
            try:
                run.wait(1.0, progress=False)
            except TimeoutError:
                beat(run.progress.done / len(run.tasks))
        run.wait(progress=False)  # its folder is written
    except KeyboardInterrupt:
        run.cancel()
        raise Interrupted("the study was interrupted, what it ran is cancelled") from None
    if not all(record.ok for record in run.records):
        run.results()


def calls(fn: Callable[..., Any] | str, inputs: Iterable[Any] | None) -> tuple[Task, ...]:
    """A task for each input, which is its only argument."""
    name = getattr(fn, "__name__", str(fn))
    if is_dataclass(fn) and inputs is None:
        raise TypeError(f"{name} is a class: give a config, {name}(...), or a function with inputs")
    if inputs is None:
        raise TypeError(
            f"{name} needs inputs, one for each call: speedup({name}, inputs, slots=[1, 2]); for calls with several "
            "arguments give tasks: speedup([Task(fn, ...), ...], slots=[1, 2])"
        )
    if not isinstance(inputs, Iterable):
        raise TypeError(f"inputs must be a sequence, one item for each call of {name}, got {inputs!r}")
    tasks = tuple(Task(fn, item) for item in inputs)
    if not tasks:
        raise ValueError(f"inputs is empty: give at least one for {name} to be called with")
    return tasks


def is_config(work: object) -> bool:
    """Whether it is an instance of a dataclass, as configs of workloads are; `Task` is one, too."""
    return is_dataclass(work) and not isinstance(work, (type, Task))
