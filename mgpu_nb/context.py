"""What a task can ask about where it runs: `worker()`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Worker", "worker"]


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
        The GPU as the kernel names it, and its UUID; None and ``"cpu:N"`` on a virtual device.
    task, index
        Name of the task and its place in the run; ``""`` and None for a task that was not part of a run.
    seed
        Seed of the task; torch, numpy and random were seeded with it. None outside a run.
    attempt
        1 for the first attempt.
    folder
        The run's folder; None outside a run. Put files of a task's own into a folder below it that is named
        after the task.
    state
        What the pool's ``setup`` returned in this worker; None without one.
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
    state: Any = None
    _send: Callable[[dict[str, Any]], None] | None = None

    def report(self, **values: Any) -> None:
        """Send progress or metrics to the kernel while the task runs.

        The last value of each name is kept in `Record.metrics` and is a column of `Run.frame`. By
        convention ``progress`` is the share done, 0 to 1.

        Raises
        ------
        TypeError
            Where a value is neither a number, a string, a bool nor None. Scalars of numpy and torch are numbers.
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
            # Of a subclass, an IntEnum say, the kernel may not know the class.
            kind = next((k for k in (bool, int, float) if isinstance(value, k)), None)
            plain[name] = str.__str__(value) if isinstance(value, str) else kind and kind(value)
        if self._send is not None:
            self._send(plain)


_current: Worker | None = None


def worker() -> Worker:
    """Return the worker that runs this task.

    Outside a pool (a task function called by hand, in a test or a notebook cell) it is a worker of
    its own: slot 0, the first GPU where torch sees one, no folder, reports that go nowhere.
    """
    if _current is not None:
        return _current
    import torch

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    return Worker(slot=0, device=device, devices=(device,), gpu_id=None, uuid="")


def set_worker(current: Worker | None) -> None:
    """Make `current` what `worker` returns in this process."""
    global _current
    _current = current
