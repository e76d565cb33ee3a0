"""Values of a run, or the error that there is in place of one."""

from __future__ import annotations

from typing import Any, NoReturn

from ..errors import TaskError, add_note
from ..places import device_name
from ..store.journal import NOT_STORED
from ..tasks import Record, count_failed
from .ledger import Ledger

__all__ = ["values_of"]

_OF_OTHERS = ("cancelled", "skipped")  # statuses that another task's failure may have caused


def values_of(run: Ledger) -> list[Any]:
    """Values of a run that has ended, in order of submission.

    Raises
    ------
    Exception
        The first error in that order, with a note that says whose it is.
    """
    __tracebackhide__ = True
    by_name = {record.name: record for record in run.records}
    values = []
    # The cause comes before the tasks that were cancelled or skipped because of it.
    causes = [n for n in run.tasks if n in by_name and by_name[n].status not in _OF_OTHERS]
    for name in [*causes, *run.tasks]:
        record = by_name.get(name)
        if record is None:
            _raise(
                TaskError(
                    f"task {name!r} has no record: the run was interrupted. Run its tasks into {run.folder} again"
                )
            )
        if record.status != "ok":
            error = record.exception or TaskError(
                f"task {name!r} ended {record.status}: {record.error}\n{record.traceback}"
            )
            add_note(error, _note(run, record))
            _raise(error)
        if any(note.startswith(NOT_STORED) for note in record.notes):
            _raise(
                TaskError(
                    f"task {name!r} was ok, but {'; '.join(record.notes)}. "
                    f"Run its tasks into {run.folder} again"
                )
            )
        values.append(record.value)
    return values[len(causes) :]


def _note(run: Ledger, record: Record) -> str:
    """What an error does not say: whose it is, how many others there are, where the output is."""
    counts = run.progress.counts
    others = {status: counts[status] for status in _OF_OTHERS if status in counts}
    failed = count_failed(counts)
    words = [f"{failed} of {len(run.tasks)} failed"] * bool(failed)
    words += [f"{count} of {len(run.tasks)} {status}" for status, count in others.items()]
    where = f" on {device_name(record.device, record.host)}" if record.device else ""
    logs = f"; run.logs({record.name!r})" if record.attempt else ""
    return f"task {record.name!r} of run {run.name!r}{where}; {', '.join(words)}{logs}"


def _raise(error: BaseException) -> NoReturn:
    """Raise an error; the last frame that is ours, for a traceback shows that even if it is hidden."""
    __tracebackhide__ = True
    raise error.with_traceback(None)  # else that of an earlier call would stay
