"""`runs`: the runs that a folder holds, as their journals record them."""

from __future__ import annotations

import json
import os
import socket
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..store.journal import Journal, read_journal
from ..store.lock import is_held
from ..tables import Table
from ..tasks import count_failed, time_covered
from ..views.markup import shown_path
from .follow import SUBMITTED
from .run import Run
from .submitted import submitted_job

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PastRun", "PastRuns", "find_runs"]

# A run's own folder, one below it, and one below a workload's.
_PATTERNS = ("journal.jsonl", "*/journal.jsonl", "*/*/journal.jsonl")


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """What the journal of a run says of it.

    Attributes
    ----------
    name, folder
        The run, and its folder.
    began, seconds
        Start, Unix time in seconds, and the seconds in which any of its tasks ran; None if unknown.
    tasks, ok, failed, cancelled, skipped
        Numbers of tasks.
    state
        ``done``, ``under way``, ``waits`` (the job of a cluster that it was given to has not begun), ``interrupted``
        (tasks are left and nobody runs them) or ``damaged``; of an unfinished run of another machine ``under way or
        interrupted``.
    problem
        Why it is damaged.
    host, pid, program, folder_of_program
        Machine, process, notebook or command line, and the folder it was started in.
    python, packages, cuda, platform, gpus
        Versions, by name, and number of GPUs by name.
    nodes
        What the other machines on which tasks ran are made of, by name: ``python``, ``packages``, and ``path``, that of
        the interpreter.
    commit, dirty
        Git commit of that folder, and whether tracked files differed from it; empty and None if unknown.
    """

    name: str
    folder: Path
    began: float | None = None
    seconds: float | None = None
    tasks: int = 0
    ok: int = 0
    failed: int = 0
    cancelled: int = 0
    skipped: int = 0
    state: str = "damaged"
    problem: str = ""
    host: str = ""
    pid: int | None = None
    program: str = ""
    folder_of_program: str = ""
    python: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    cuda: str | None = None
    platform: str = ""
    gpus: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    commit: str = ""
    dirty: bool | None = None


class PastRuns(Sequence[Run]):
    """Runs of a folder, the newest first: a table to look at, and each item is the `Run`, opened.

    Attributes
    ----------
    rows
        What is known of each, a `PastRun`.
    """

    def __init__(self, rows: Sequence[PastRun], folder: Path) -> None:
        self.rows = tuple(rows)
        self.folder = folder

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Run: ...

    @overload
    def __getitem__(self, index: slice) -> PastRuns: ...

    def __getitem__(self, index: int | slice) -> Run | PastRuns:
        if isinstance(index, slice):
            return PastRuns(self.rows[index], self.folder)
        return Run.open(self.rows[index].folder)

    def __iter__(self) -> Iterator[Run]:
        return (Run.open(row.folder) for row in self.rows)

    def frame(self) -> pd.DataFrame:
        """A row per run, with the attributes of `PastRun`; times are those of this machine's clock."""
        import pandas as pd

        rows = [{**asdict(row), "folder": str(row.folder)} for row in self.rows]
        frame = pd.DataFrame(rows, columns=list(PastRun.__dataclass_fields__))
        began = [None if row.began is None else datetime.fromtimestamp(round(row.began)) for row in self.rows]
        frame["began"] = pd.Series(began, dtype="datetime64[s]")
        return frame

    def table(self) -> Table:
        """The runs for display; columns without a value are left out."""
        columns: dict[tuple[str, str], list[str]] = {
            ("name", ""): [row.name for row in self.rows],
            ("began", ""): [_local(row.began) for row in self.rows],
            ("time", "n"): [_duration(row.seconds) for row in self.rows],
            ("state", ""): [row.state for row in self.rows],
            ("tasks", "n"): [str(row.tasks or "") for row in self.rows],
        }
        for status in ("ok", "failed", "cancelled", "skipped"):
            columns[status, "n"] = [str(getattr(row, status) or "") for row in self.rows]
        columns |= {
            ("git", ""): [row.commit[:8] + (" + changes" if row.dirty else "") for row in self.rows],
            ("python", "o"): [row.python for row in self.rows],
            ("torch", "o"): [row.packages.get("torch", "") for row in self.rows],
            ("machine", "o"): [_machine(row) for row in self.rows],
            ("folder", "t"): [shown_path(row.folder) for row in self.rows],
            ("problem", "t"): [row.problem for row in self.rows],
        }
        shown = {head: cells for head, cells in columns.items() if any(cells)}
        above = [] if self.rows else [f"no runs in {self.folder}"]
        return Table(list(shown), zip(*shown.values(), strict=True), "runs of the folder", above)

    def __str__(self) -> str:
        return str(self.table()).rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table().to_html()


def find_runs(folder: str | os.PathLike[str] = "runs") -> PastRuns:
    """Runs in a folder and up to two levels below it, the newest first; displayed as a table.

    ``runs()[0]`` opens the newest, ``runs().frame()`` has versions, git commit, machine and program of each.

    Parameters
    ----------
    folder
        Where to look.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.

    Examples
    --------
    >>> mgpu_nb.runs("runs")[0].frame()  # doctest: +SKIP
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(
            f"{os.fspath(folder)!r} is not a folder (here is {Path.cwd()}): give the folder of runs"
        )
    found = [file.parent for pattern in _PATTERNS for file in path.glob(pattern)]
    rows = [_row(each) for each in dict.fromkeys(found)]
    return PastRuns(sorted(rows, key=lambda row: row.began or 0.0, reverse=True), path)


def _row(folder: Path) -> PastRun:
    try:
        if (
            not (folder / "journal.jsonl").stat().st_size
        ):  # a rank that torchrun started has no tasks of its own
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            return PastRun(name=str(config["workload"]), folder=folder, state="done")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a truncated line: its task is run again
            return _of_journal(folder, read_journal(folder))
    except Exception as error:  # whatever somebody put there
        return PastRun(name=folder.name, folder=folder, problem=f"{error}" or type(error).__name__)


def _of_journal(folder: Path, journal: Journal) -> PastRun:
    header, tasks = journal.header, journal.tasks
    counts: Counter[str] = Counter()
    times: list[tuple[float | None, float | None]] = []
    for name in tasks:
        if name in journal.records:
            record = journal.records[name]
            counts[record["status"]] += 1
            times.append((record.get("started"), record.get("finished")))
    made: dict[str, Any] = header.get("made") or {}
    git = made.get("git") or {}
    return PastRun(
        name=str(header["name"]),
        folder=folder,
        began=float(journal.headers[0]["at"]),
        seconds=time_covered(times) or None,
        tasks=len(tasks),
        ok=counts["ok"],
        failed=count_failed(counts),
        cancelled=counts["cancelled"],
        skipped=counts["skipped"],
        state="done" if len(times) == len(tasks) else _state(folder, header),
        host=str(header.get("host", "")),
        pid=header.get("pid"),
        program=made.get("program", ""),
        folder_of_program=made.get("folder", ""),
        python=made.get("python", ""),
        packages=made.get("packages", {}),
        cuda=made.get("cuda"),
        platform=made.get("platform", ""),
        gpus=made.get("gpus", {}),
        nodes=journal.nodes,
        commit=git.get("commit", ""),
        dirty=git.get("dirty"),
    )


def _state(folder: Path, header: dict[str, Any]) -> str:
    """State of a run that has tasks without a record."""
    if is_held(folder):
        return "under way"
    if (job := submitted_job(folder)) is not None:
        made = header.get("made") or {}
        return "interrupted" if not job.is_active() else "waits" if SUBMITTED in made else "under way"
    # The locks of some file systems are seen on one machine alone.
    return "interrupted" if header.get("host") == socket.gethostname() else "under way or interrupted"


def _local(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def _machine(row: PastRun) -> str:
    gpus = ", ".join(f"{count} x {name}" for name, count in row.gpus.items())
    return ", ".join(filter(None, (row.host, gpus)))
