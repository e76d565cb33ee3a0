"""Who wants to hear of a run as it goes on: `Listener`, and two of them, for TensorBoard and for Weights & Biases.

`Run.listen` takes them:

>>> run = pool.run(tasks).listen(TensorBoard("runs/tensorboard"))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .tasks import Record

__all__ = ["Listener", "Started", "TensorBoard", "WandB"]


class Started(NamedTuple):
    """An attempt at a task that has begun.

    Attributes
    ----------
    task, attempt
        Name of the task, number of the attempt, from 1.
    arguments
        Arguments of the task by the names of the function's parameters, as in `Record.arguments`.
    run, folder
        Name and folder of the run.
    """

    task: str
    attempt: int
    arguments: Mapping[str, Any]
    run: str
    folder: Path


class Listener:
    """Base of what `Run.listen` takes: its methods do nothing, override those that you need.

    All are called from one thread that is not that of the pool, so they may be slow. An exception is logged, the first
    of each listener, and harms nobody.
    """

    def started(self, attempt: Started) -> None:
        """Hear of an attempt at a task, before anything else of it."""

    def reported(self, task: str, step: float, values: Mapping[str, float]) -> None:
        """Hear of numbers that a task has reported: those that `Run.metrics` has, within a second."""

    def ended(self, record: Record) -> None:
        """Hear that a task has ended."""

    def close(self) -> None:
        """Hear that nothing more will come."""


class TensorBoard(Listener):
    """Writes a run for TensorBoard: a folder per task, with its metrics, arguments and outcome.

    Parameters
    ----------
    folder
        Where the folders go, ``<folder>/<run>/<task>``: ``tensorboard --logdir <folder>`` shows them. A further attempt
        has its own, ``<task>-attempt-2``.

    Raises
    ------
    ImportError
        If tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        _need("tensorboard", "mgpu-nb[tensorboard]")
        self.folder = Path(folder).expanduser().absolute()
        self._open: dict[str, tuple[Any, Started]] = {}

    def started(self, attempt: Started) -> None:
        """Open the files of an attempt."""
        from torch.utils.tensorboard import SummaryWriter

        self._close(attempt.task)
        name = attempt.task if attempt.attempt == 1 else f"{attempt.task}-attempt-{attempt.attempt}"
        writer = SummaryWriter(str(self.folder / attempt.folder.name / name))
        self._open[attempt.task] = writer, attempt

    def reported(self, task: str, step: float, values: Mapping[str, float]) -> None:
        """Add scalars; a step that is not whole is rounded down, TensorBoard knows no others."""
        writer, _ = self._open[task]
        for name, value in values.items():
            writer.add_scalar(name, float(value), math.floor(step))

    def ended(self, record: Record) -> None:
        """Add arguments, last values and outcome as hyperparameters, an error as text, and close the files."""
        if record.name not in self._open:  # it never began
            return
        writer, attempt = self._open[record.name]
        plain = {name: value if _plain(value) else str(value) for name, value in attempt.arguments.items()}
        last = {name: value for name, value in record.metrics.items() if type(value) in (int, float)}
        if record.seconds is not None:
            last["seconds"] = record.seconds
        # Below the tag of a curve there must be one scalar per step, so that of a hyperparameter has another.
        last = {f"last/{name}": float(value) for name, value in last.items()}
        writer.add_hparams({**plain, "status": record.status}, last, run_name=".")
        if record.error:
            writer.add_text("error", record.error)
        self._close(record.name)

    def close(self) -> None:
        """Close all files."""
        for task in list(self._open):
            self._close(task)

    def _close(self, task: str) -> None:
        writer, _ = self._open.pop(task, (None, None))
        if writer is not None:
            writer.close()


class WandB(Listener):
    """Sends a run to Weights & Biases: a run of theirs per task, with its arguments as config, in one group.

    All are written from this process. ``mode="offline"`` writes files that ``wandb sync`` sends later.

    Parameters
    ----------
    project
        Their project.
    mode
        ``"online"``, ``"offline"`` or ``"disabled"``; by default what their settings say.
    dir
        Folder for their files; ``wandb/`` in the working directory by default.
    **options
        Further options of ``wandb.init``: ``entity``, ``tags``.

    Raises
    ------
    ImportError
        If wandb is not installed.
    """

    def __init__(
        self,
        project: str,
        *,
        mode: Literal["online", "offline", "disabled"] | None = None,
        dir: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        _need("wandb", "wandb")
        place = {} if dir is None else {"dir": str(Path(dir).expanduser().absolute())}
        self._options = {"project": project, "mode": mode, **place, **options}
        self._open: dict[str, Any] = {}

    def started(self, attempt: Started) -> None:
        """Begin a run of theirs; one of an earlier attempt has failed."""
        import wandb

        self._finish(attempt.task, 1)
        more = {} if attempt.attempt == 1 else {"attempt": attempt.attempt}
        begun = wandb.init(
            **{
                "group": attempt.folder.name,
                "name": attempt.task if not more else f"{attempt.task} (attempt {attempt.attempt})",
                "config": {**attempt.arguments, **more},
                "reinit": "create_new",  # beside those of other tasks
                "settings": wandb.Settings(console="off"),  # what this process prints is not the task's
                **self._options,
            }
        )
        # Their own steps only go up, and are whole.
        begun.define_metric("step")
        begun.define_metric("*", step_metric="step")
        self._open[attempt.task] = begun

    def reported(self, task: str, step: float, values: Mapping[str, float]) -> None:
        """Log values by step."""
        self._open[task].log({**values, "step": step})

    def ended(self, record: Record) -> None:
        """Add the outcome and the last values that are no numbers, and finish."""
        if record.name in self._open:
            texts = {name: value for name, value in record.metrics.items() if not _number(value)}
            where = {"device": record.device, "host": record.host}
            outcome = {"status": record.status, "seconds": record.seconds, **where}
            self._open[record.name].summary.update({**texts, **outcome})
            self._finish(record.name, 0 if record.ok else 1)

    def close(self) -> None:
        """Finish what is left: tasks without a record."""
        for task in list(self._open):
            self._finish(task, 1)

    def _finish(self, task: str, code: int) -> None:
        if (begun := self._open.pop(task, None)) is not None:
            begun.finish(exit_code=code)


def _need(module: str, wanted: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"the package {module} is not installed: pip install '{wanted}'", name=module)


def _plain(value: object) -> bool:
    return isinstance(value, (bool, int, float, str))


def _number(value: object) -> bool:
    return type(value) in (int, float)
