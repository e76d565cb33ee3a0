"""The samples of a run on disk: ``samples.csv`` in its folder, a row per device and per busy worker at each moment."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..places import elsewhere
from ..store.files import escape_formula
from .samples import Snapshot

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FILE", "Recorder", "load"]

log = logging.getLogger("mgpu_nb")

FILE = "samples.csv"
COLUMNS = (
    "at",  # Unix time, seconds
    "kind",  # device | task
    "device",
    "uuid",
    "slot",
    "task",
    "pid",
    "used",  # bytes: of the device in all, or by the task's worker
    "total",  # bytes
    "ours",  # bytes held by workers of this process
    "utilisation",  # percent
    "temperature",  # degrees Celsius
    "power",  # watts
    "host",  # name of another machine; empty for that of the process that has the run under way
)
DENSE = 2000  # snapshots at the full rate; then increasingly sparse, so that a day takes a few MB
ROWS = 64  # in a snapshot; with more of them it is fewer snapshots


class Recorder:
    """Listener of the sampler that appends snapshots to a run's folder.

    Parameters
    ----------
    folder
        The folder.
    call
        Calls a function from a thread that may wait for a disk; the sampler, which all runs share, must not.
    """

    def __init__(self, folder: Path, call: Callable[[Callable[[], None]], None]) -> None:
        self._call = call
        self._run = str(folder)
        self._file = folder / FILE
        self._first: float | None = None
        self._next = self._last = 0.0
        self._failed = False
        self.peaks: dict[str, int] = {}
        """Peak memory by task, bytes."""

    def __call__(self, snapshot: Snapshot) -> None:
        """Record a snapshot."""
        mine = [worker for worker in snapshot.workers if worker.state.run == self._run]
        for worker in mine:
            if worker.memory is not None:
                name = worker.state.task
                self.peaks[name] = max(worker.memory, self.peaks.get(name, 0))
        if snapshot.at < self._last:  # the clock was set back
            self._first, self._next = None, 0.0
        self._last = snapshot.at
        if not mine or snapshot.at < self._next:
            return
        if self._first is None:
            self._first = snapshot.at
        used = {worker.state.device for worker in mine}
        at = f"{snapshot.at:.3f}"
        rows: list[tuple[Any, ...]] = [
            (
                at,
                "device",
                escape_formula(d.label),
                escape_formula(d.uuid),
                *[""] * 3,
                d.used,
                d.total,
                d.ours,
                d.utilisation,
                d.temperature,
                d.power,
                escape_formula(d.host),
            )
            for d in snapshot.devices
            if d.key in used
        ]
        for worker in mine:
            s = worker.state
            place = (
                at,
                "task",
                escape_formula(s.label),
                escape_formula(s.uuid),
                s.slot,
                escape_formula(s.task),
                s.pid,
            )
            rows.append((*place, worker.memory, *[""] * 5, escape_formula(elsewhere(s.host))))
        self._next = snapshot.at + (snapshot.at - self._first) / DENSE * max(1.0, len(rows) / ROWS)
        self._call(lambda: self._append(rows))

    def _append(self, rows: list[tuple[Any, ...]]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        try:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                if not os.fstat(descriptor).st_size:
                    writer.writerow(COLUMNS)
                writer.writerows(rows)
                os.write(descriptor, text.getvalue().encode(errors="backslashreplace"))
            finally:
                os.close(descriptor)
        except OSError as error:  # the next may be written again
            if not self._failed:
                log.warning("%s cannot be written (%s): the run's samples are incomplete", self._file, error)
            self._failed = True


def load(folder: Path) -> pd.DataFrame:
    """The samples of a run's folder; `at` as UTC time, `host` empty also where an earlier version wrote them.

    Raises
    ------
    FileNotFoundError
        If it has none.
    """
    import pandas as pd

    try:
        heading, _, rows = (folder / FILE).read_text(encoding="utf-8", errors="replace").partition("\n")
        if heading:  # of an earlier version it is shorter, and this one has appended to its file
            heading = ",".join(COLUMNS)
        frame = pd.read_csv(
            io.StringIO(f"{heading}\n{rows}"),
            on_bad_lines="skip",  # the last line may be truncated
            dtype={"host": str},
            keep_default_na=False,  # a host, or a task, may be named "null"
            na_values=[""],
        )
    except (FileNotFoundError, pd.errors.EmptyDataError):
        raise FileNotFoundError(
            f"{folder} holds no samples of memory: the run was over before the first was taken, or it was made by "
            "another version"
        ) from None
    for column in ("used", "total", "ours", "slot", "pid"):
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype("Int64")
    frame["host"] = frame["host"].fillna("")
    frame["at"] = pd.to_datetime(pd.to_numeric(frame["at"], errors="coerce"), unit="s", utc=True)
    return frame
