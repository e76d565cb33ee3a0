"""A run that another process has under way: its journal is followed until that process releases the folder.

One that was given to a job of a cluster is followed from its submission on, until the job has ended.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

from ..store.journal import read_journal, record_of
from ..store.lock import is_held
from ..store.reading import Entries, Journal
from ..store.tail import JournalTail
from .ledger import Ledger
from .submitted import SubmittedJob, submitted_job

__all__ = ["SUBMITTED", "follow"]

log = logging.getLogger("mgpu_nb")

PERIOD = 0.5  # seconds between two looks at the journal
SUBMITTED = "submitted"
"""What the header of a run is made with that a job is to begin: its own header follows."""


def follow(folder: Path) -> Ledger | None:
    """State of a run that another process is writing, or a job will, kept up to date.

    None if there is neither, or its journal has no header of ours.
    """
    job = submitted_job(folder)
    if job is None and not is_held(folder):
        return None
    try:
        journal = _read(folder)
    except ValueError:
        return None  # who reads it whole says so
    known = _those_that_count(journal)
    whole = len(known) == len(journal.tasks)
    waits = job is not None and not job.is_own and not whole and job.is_active()
    if not (waits or _is_written(folder, job, journal.headers[-1])):
        return None
    ledger = Ledger(journal.header["name"], folder, journal.tasks)
    ledger.of_journal, ledger.after = journal.arguments, journal.after
    if job is not None and not job.is_own and job.is_active():
        ledger.written_in(job, journal.header["at"])
    else:  # somebody has gone on with what a job has left
        ledger.written_by(journal.header["pid"], journal.header["host"], journal.header["at"])
        job = None
    for name in known:
        ledger.ended(journal.record(folder, name))
    watch = threading.Thread(
        target=_watch,
        args=(weakref.ref(ledger), _Reader(folder, journal), job),
        name="mgpu_nb-follow",
        daemon=True,
    )
    watch.start()
    return ledger


def _is_written(folder: Path, job: SubmittedJob | None, header: dict[str, Any]) -> bool:
    """Whether somebody has the folder of the call with this header; a job may have left no more than a lock file."""
    is_over = job is not None and (header.get("made") or {}).get("job") == job.number and job.has_ended
    return is_held(folder) and not is_over


def _read(folder: Path) -> Journal:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the last line may be under way
        return read_journal(folder)


def _is_submission(header: dict[str, Any]) -> bool:
    """Whether a header is that of a run whose job has not begun it."""
    return SUBMITTED in (header.get("made") or {})


def _those_that_count(journal: Journal) -> list[str]:
    """Tasks that have a record of the present call, or one that this has taken over: others are run again.

    While the call has not begun there are none: what it takes over is decided where it runs.
    """
    if _is_submission(journal.headers[-1]):
        return []
    records = journal.records
    assert isinstance(records, Entries)  # noqa: S101 (read from a file)
    prints = {task["name"]: task["fingerprint"] for task in journal.headers[-1]["tasks"]}

    def counts(name: str) -> bool:
        if name not in prints or records.places[name].start > journal.begins:
            return True
        entry = records[name]
        return bool(entry["status"] == "ok" and entry.get("fingerprint") == prints[name])

    return [name for name in journal.tasks if name in records and counts(name)]


class _Reader:
    """Reads of a journal what its writer appends, and adds it to the state of the run."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.folder = folder
        self._tail = JournalTail(folder, journal)
        self.header = journal.headers[-1]
        """That of the call that is followed."""

    def add(self, ledger: Ledger) -> bool:
        """Add new records; False if another call has begun, whose tasks are another matter."""
        for entry in self._tail.read():
            if entry.get("event") == "run":
                if not _is_submission(self.header) or _is_submission(entry):
                    return False
                self.header = entry
                journal = _read(self.folder)
                for name in _those_that_count(journal):
                    if ledger.has(name) and ledger.record(name) is None:
                        ledger.ended(journal.record(self.folder, name))
            if entry.get("event") == "record" and self._is_new(entry, ledger):
                ledger.ended(record_of(entry, self.folder))
        return True

    def _is_new(self, entry: dict[str, Any], ledger: Ledger) -> bool:
        if not ledger.has(entry["name"]):
            return False
        known = ledger.record(entry["name"])  # it was read with the header
        return known is None or known.finished != entry.get("finished") or known.status != entry.get("status")


def _watch(watched: weakref.ref[Ledger], reader: _Reader, job: SubmittedJob | None) -> None:
    """Add records as they are written, for as long as somebody has the run and its writer the folder."""
    while (ledger := watched()) is not None:
        try:
            # Asked first: all that was written until then is read. Not all file systems show a lock to other machines.
            held = (job is not None and not ledger.done and job.is_active()) or _is_written(
                reader.folder, job, reader.header
            )
            going_on = reader.add(ledger) and held
        except Exception:
            log.exception("run %r: its journal cannot be followed any more", ledger.name)
            going_on = False
        if not going_on:
            ledger.close()
            return
        del ledger
        time.sleep(PERIOD)
