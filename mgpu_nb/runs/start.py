"""The start of a run: its folder, its ledger and its batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hardware.slots import Slot
from ..store.journal import RunFolder
from ..store.writer import FolderWriter
from ..tasks import Record
from ..telemetry import sampler
from ..telemetry.recorder import Recorder
from .batch import Batch
from .ledger import Ledger, registry
from .plan import Plan, names_of
from .provenance import provenance
from .retry import Origin
from .submitted import job_elsewhere

if TYPE_CHECKING:
    from ..scheduler.dispatcher import Dispatcher

__all__ = ["open_folder", "prepare_folder", "prepared_by", "start"]

_prepare: ContextVar[Callable[[], None] | None] = ContextVar("mgpu_nb-prepare", default=None)


@contextlib.contextmanager
def prepared_by(prepare: Callable[[], None]) -> Iterator[None]:
    """A run that begins within the block calls this once it has its folder, before any task begins."""
    token = _prepare.set(prepare)
    try:
        yield
    finally:
        _prepare.reset(token)


def prepare_folder() -> None:
    """Do what a run that begins has to do for the block, see `prepared_by`."""
    if (prepare := _prepare.get()) is not None:
        prepare()


def start(
    dispatcher: Dispatcher,
    plan: Plan,
    origin: Origin,
    *,
    name: str,
    folder: Path,
    kept: Mapping[str, Record] | None = None,
    python: Mapping[str, Any] | None = None,
) -> Ledger:
    """State of a run whose folder is open, and whose jobs are submitted.

    Parameters
    ----------
    dispatcher
        Where they run.
    plan
        What is to be done.
    origin
        What the run is made of.
    name, folder
        The run and its folder.
    kept
        Records of a retry by task, of those that are not run again.
    python
        What the workers are of, where that is not this process's interpreter.

    Raises
    ------
    OSError
        If the folder cannot be written, or another run writes it (BlockingIOError).
    """

    def slots() -> tuple[Slot, ...]:
        return tuple(slot.slot for slot in dispatcher.slots)

    by_name = {job.name: job for job in plan.jobs}
    names = names_of(origin.tasks) if kept else list(by_name)

    def cancel() -> None:
        batch.cancel()
        dispatcher.cancel(lambda job: by_name.get(job.name) is job)

    ledger = Ledger(
        name,
        folder,
        names,
        slots=slots,
        jobs=by_name,
        cancel=cancel,
        pool=dispatcher.number,
        observe=dispatcher.activity,
    )
    ledger.origin, ledger.after = origin, plan.after
    writer: FolderWriter | None = None
    store = open_folder(
        folder, name, origin, plan, whole=origin.whole and not kept, made=provenance(slots(), python),
        elsewhere=dispatcher.elsewhere,
    )  # fmt: skip
    try:
        prepare_folder()
        ledger.earlier = None if origin.whole else store.earlier
        writer = FolderWriter(store, lambda: ledger.records)
        ledger.written_with(writer, lambda: store.journal)
        batch = Batch(
            ledger, dispatcher, store, writer, by_name, plan.graph, list((kept or {}).values()), plan.rounds
        )
        ledger.recorder = Recorder(folder, writer.call)
        sampler.shared.listen(ledger.recorder)
        registry.add(ledger)
        batch.begin()
    except BaseException:
        registry.discard(ledger)
        if ledger.recorder is not None:
            sampler.shared.leave(ledger.recorder)
        if writer is not None:
            writer.leave(5.0)
        store.close()
        raise
    return ledger


def open_folder(
    folder: Path, name: str, origin: Origin, plan: Plan, *, whole: bool, made: dict[str, Any], elsewhere: bool
) -> RunFolder:
    """The folder of a run, locked; waits for a run of this process that has ended and is still being written there.

    Raises
    ------
    BlockingIOError
        If another run writes it, or a job will.
    OSError
        If it cannot be written.
    """
    if (job := job_elsewhere(folder)) is not None:
        raise BlockingIOError(
            f"{folder} belongs to {job}: wait for it, cancel it by Run.open({str(folder)!r}).cancel(), or choose "
            "another folder"
        )
    for ledger in registry.of_folder(folder):
        if ledger.done:
            ledger.release()
    try:
        return RunFolder(
            folder,
            name,
            origin.seed,
            [(job.name, job.kind, job.fingerprint) for job in plan.jobs],
            whole=whole,
            arguments={job.name: job.arguments for job in plan.jobs},
            made=made,
            after=plan.after,
            elsewhere=elsewhere,
        )
    except BlockingIOError as error:
        if not (others := registry.of_folder(folder)):
            raise
        raise BlockingIOError(
            f"{folder} is being written by run {others[0].name!r} of this process ({others[0].progress}): wait for it, "
            "cancel it (mgpu_nb.pools() lists the runs of each pool), or choose another folder"
        ) from error
