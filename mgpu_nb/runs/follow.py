"""A run that another process has under way: its journal is followed until that process releases the folder."""

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
from ..store.reading import Entries
from ..store.tail import JournalTail
from .ledger import Ledger

__all__ = ["follow"]

log = logging.getLogger("mgpu_nb")

PERIOD = 0.5  # seconds between two looks at the journal


def follow(folder: Path) -> Ledger | None:
    """State of a run that another process is writing, kept up to date; None if its journal has no header of ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the last line may be under way
            journal = read_journal(folder)
    except ValueError:
        return None  # who reads it whole says so
    tail = JournalTail(folder, journal)
    records, prints = (
        journal.records,
        {task["name"]: task["fingerprint"] for task in journal.headers[-1]["tasks"]},
    )
    assert isinstance(records, Entries)  # noqa: S101 (read from a file)

    def counts(name: str) -> bool:
        """Whether the record is of the present call, or one that this has taken over: others are run again."""
        if name not in prints or records.places[name].start > journal.begins:
            return True
        entry = records[name]
        return bool(entry["status"] == "ok" and entry.get("fingerprint") == prints[name])

    ledger = Ledger(journal.header["name"], folder, journal.tasks)
    ledger.of_journal, ledger.after = journal.arguments, journal.after
    ledger.written_by(journal.header["pid"], journal.header["host"], journal.header["at"])
    for name in journal.tasks:
        if name in records and counts(name):
            ledger.ended(journal.record(folder, name))
    watch = threading.Thread(
        target=_watch, args=(weakref.ref(ledger), tail, folder), name="mgpu_nb-follow", daemon=True
    )
    watch.start()
    return ledger


def _watch(watched: weakref.ref[Ledger], tail: JournalTail, folder: Path) -> None:
    """Add records as they are written, for as long as somebody has the run and its writer the folder."""
    while (ledger := watched()) is not None:
        try:
            held = is_held(folder)  # asked first: all that was written until then is read
            going_on = _add(ledger, tail.read(), folder) and held
        except Exception:
            log.exception("run %r: its journal cannot be followed any more", ledger.name)
            going_on = False
        if not going_on:
            ledger.close()
            return
        del ledger
        time.sleep(PERIOD)


def _add(ledger: Ledger, entries: list[dict[str, Any]], folder: Path) -> bool:
    """Add new records; False if another call has begun, whose tasks are another matter."""
    for entry in entries:
        if entry.get("event") == "run":
            return False
        if entry.get("event") == "record" and ledger.has(entry["name"]):
            ledger.ended(record_of(entry, folder))
    return True
