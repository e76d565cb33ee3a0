"""What a task can ask about where it runs: `worker()`."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

__all__ = ["Members", "Worker", "cached", "worker"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Members:
    """Tasks of a gang that have started together, in their order.

    Attributes
    ----------
    hosts
        Name of the machine of each.
    on_gpus
        Whether each works on a GPU.
    meeting_point
        Address and port, kept for this gang, at which the first can serve the others. None where all are on the machine
        of the parent process.
    start
        What tells this start of the gang from all others.
    """

    hosts: tuple[str, ...]
    on_gpus: bool
    meeting_point: tuple[str, int] | None
    start: str


@dataclass(frozen=True, slots=True)
class Worker:
    """The worker that runs this task.

    Attributes
    ----------
    slot
        Number of the slot, from 0.
    device
        torch's name of the device to use: ``"cuda:0"`` (a worker sees its own GPU first) or ``"cpu"``.
    devices
        The same for a task that takes several slots, the first of them is `device`.
    gpu_id, uuid
        The GPU as the parent process numbers it, and its UUID; None and ``"cpu:N"`` on a virtual device.
    task, index
        Name of the task and its place in the run; ``""`` and None for a task that was not part of a run.
    seed
        Seed of the task; torch, numpy and random were seeded with it. None outside a run.
    attempt
        1 for the first attempt.
    folder
        The run's folder; None outside a run, and on a machine that shares no file system with the parent process. Put
        files of a task's own into a folder below it that is named after the task.
    folder_note
        Why the task has no folder though it is of a run, and what to do: a sentence that names folder, host and node.
        Empty otherwise.
    state
        What the pool's ``setup`` returned in this worker; None without one.
    members
        Where the tasks of its gang are; None for a task that is of none.
    """

    slot: int
    device: str
    devices: tuple[str, ...]
    gpu_id: int | None
    uuid: str
    task: str = ""
    index: int | None = None
    seed: int | None = None
    attempt: int = 1
    folder: Path | None = None
    folder_note: str = ""
    state: Any = None
    members: Members | None = None
    _send: Callable[[dict[str, Any]], None] | None = None

    def need_folder(self) -> Path:
        """The run's folder, for a task that cannot do without.

        Raises
        ------
        FileNotFoundError
            If it has none: outside a run, or on a machine that does not share it; the message says what to do.
        """
        if self.folder is None:
            raise FileNotFoundError(
                self.folder_note or "a task that is not of a run has no folder: run it by GPUPool.run"
            )
        return self.folder

    def report(self, /, **values: Any) -> None:
        """Report metrics or progress to the parent process while the task runs.

        Every number is a point of `Run.metrics`, drawn by `Run.plot` and, live, in the panel of the run. The last
        value of each name, text and bools too, is in `Record.metrics` and a column of `Run.frame`. By convention
        ``progress`` is the share done, 0 to 1.

        Points have a step: the number in ``step``, else the one in ``epoch``, else one more than that of the last
        report (0 for the first). They travel together, ten times a second: a process that is killed loses those of
        its last tenth of a second. Of each name the first 10,000 points are kept, then every 2nd of them, every 4th
        and so on, and always the first and the last.

        Parameters
        ----------
        **values
            Numbers (also scalars of numpy and torch), strings, bools or None, by name.

        Raises
        ------
        TypeError
            If a value is of another type.

        Examples
        --------
        >>> for epoch in range(3):
        ...     worker().report(epoch=epoch, loss=1 / (1 + epoch), progress=(1 + epoch) / 3)
        """
        plain = {}
        for name, value in values.items():
            if not isinstance(value, (bool, int, float, str, type(None))):
                try:
                    value = value.item()
                except (AttributeError, ValueError, RuntimeError):
                    wanted = "a number, a string, a bool or None"
                    raise TypeError(
                        f"report({name}=...) takes {wanted}, not {type(value).__name__}"
                    ) from None
            # Of a subclass, an IntEnum say, the parent process may not know the class.
            kind = next((k for k in (bool, int, float) if isinstance(value, k)), None)
            plain[name] = str.__str__(value) if isinstance(value, str) else kind and kind(value)
        if self._send is not None:
            self._send(plain)


_current: Worker | None = None
_measure: Callable[[], int] | None = None
_caches: list[OrderedDict[Any, tuple[Any, int]]] = []


def worker() -> Worker:
    """The worker that runs this task.

    Outside a pool (a task function called by hand, in a test or a notebook cell) it is a worker of
    its own: slot 0, the first GPU if torch sees one, no folder, reports that go nowhere.
    """
    if _current is not None:
        return _current
    import torch

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    return Worker(slot=0, device=device, devices=(device,), gpu_id=None, uuid="")


def cached(maxsize: int = 1) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator like `functools.lru_cache` for what a warm worker loads once for many tasks: models, graphs.

    The pool's `memory_growth` replaces workers that keep memory after a task; what is cached here does not count.

    Parameters
    ----------
    maxsize
        Number of values that are kept, the last used.
    """

    def decorate(fn: Callable[P, T]) -> Callable[P, T]:
        values: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        _caches.append(values)

        @functools.wraps(fn)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            key = (args, tuple(sorted(kwargs.items())))
            if key in values:
                values.move_to_end(key)
            else:
                before = _uncached_bytes()
                value = fn(*args, **kwargs)
                size = max(0, _uncached_bytes() - before)
                values[key] = (value, size)
                while len(values) > maxsize:
                    values.popitem(last=False)
            found: T = values[key][0]
            return found

        return call

    return decorate


def cached_bytes() -> int:
    """Bytes that the values of all `cached` functions took when they were loaded in this worker."""
    return sum(size for values in _caches for _, size in values.values())


def _uncached_bytes() -> int:
    return 0 if _measure is None else _measure() - cached_bytes()


def set_worker(current: Worker | None) -> None:
    """Make `current` what `worker` returns in this process."""
    global _current
    _current = current


def measure_with(measure: Callable[[], int]) -> None:
    """Have `measure` tell the bytes in use before and after a value is cached; what was cached before is no growth."""
    global _measure
    _measure = measure
    for values in _caches:
        for key, (value, _) in values.items():
            values[key] = (value, 0)
