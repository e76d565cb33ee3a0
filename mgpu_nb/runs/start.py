"""The start of a run: its folder, its ledger and its batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..store.journal import RunFolder
from ..tasks import Record
from ..telemetry import sampler
from ..telemetry.recorder import Recorder
from .batch import Batch
from .ledger import Ledger, registry
from .plan import Plan, names_of
from .provenance import provenance
from .retry import Origin

if TYPE_CHECKING:
    from ..scheduler.dispatcher import Dispatcher

__all__ = ["start"]


def start(
    dispatcher: Dispatcher,
    plan: Plan,
    origin: Origin,
    *,
    name: str,
    folder: Path,
    kept: Mapping[str, Record] | None = None,
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

    Raises
    ------
    OSError
        If the folder cannot be written, or another run writes it (BlockingIOError).
    """
    slots = tuple(slot.slot for slot in dispatcher.slots)
    of_tasks = [(job.name, job.kind, job.fingerprint) for job in plan.jobs]
    try:
        store = RunFolder(
            folder,
            name,
            origin.seed,
            of_tasks,
            whole=origin.whole and not kept,
            arguments={job.name: job.arguments for job in plan.jobs},
            made=provenance(slots),
            after=plan.after,
        )
    except BlockingIOError as error:
        if (other := registry.of_folder(folder)) is None:
            raise
        raise BlockingIOError(
            f"{folder} is being written by run {other.name!r} of this process ({other.progress}): wait for it, "
            "cancel it (mgpu_nb.pools() lists the runs of each pool), or choose another folder"
        ) from error
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
    ledger.earlier = None if origin.whole else store.earlier
    batch = Batch(ledger, dispatcher, store, by_name, list((kept or {}).values()), plan.rounds)
    ledger.recorder = Recorder(folder)
    sampler.shared.listen(ledger.recorder)
    registry.add(ledger)
    try:
        batch.begin()
    except BaseException:
        registry.discard(ledger)
        sampler.shared.leave(ledger.recorder)
        store.close()
        raise
    return ledger
