"""Pools that run in a batch job of their own, whatever becomes of the process that made them."""

from __future__ import annotations

import inspect
import os
import shlex
import shutil
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Protocol, TypeVar

from ..distributed.slurm import BatchJob, SubmitError, render_commands, submit
from ..engines.base import NodeState
from ..hardware.slots import Slot
from ..pool import GPUPool
from ..runs.follow import SUBMITTED
from ..runs.ledger import Ledger, registry
from ..runs.listing import Listing
from ..runs.plan import Plan, run_folder
from ..runs.provenance import provenance
from ..runs.retry import Origin
from ..runs.run import Run
from ..runs.start import open_folder, prepare_folder
from ..runs.submitted import DETACHED, write_job
from ..store.files import atomic_write
from ..tables import escape
from ..tasks import Record
from ..views.lists import nodes_table, runs_table
from .orders import Order
from .slurm_jobs import environment_of_jobs
from .submitted import SCRIPT

__all__ = ["DetachedCluster", "DetachedPool"]

T = TypeVar("T")

# Options of the pool that are of this process alone, or that go with no cluster.
_STAY = ("cluster", "rerun", "share", "engine", "python", "pick")


class DetachedCluster(Protocol):
    """What a detached pool asks of what it was made with."""

    @property
    def nodes(self) -> int:
        """Number of nodes."""

    @property
    def port(self) -> int:
        """Port that agents dial."""

    @property
    def environment(self) -> str | None:
        """Folder of another environment for the job."""

    def job(self, nodes: int) -> BatchJob:
        """What the job asks the cluster for."""


class DetachedPool(GPUPool):
    """A pool whose runs are batch jobs: each has a pool of its own on the first node of its job.

    Made by ``GPUPool(cluster=Slurm(detach=True))``, with the same options. This process follows the runs, and may end.
    """

    _detached = True

    def __init__(self, *args: Any, **options: Any) -> None:
        given = inspect.signature(GPUPool.__init__).bind(self, *args, **options).arguments
        self._cluster: DetachedCluster = given["cluster"]
        self._given = {name: value for name, value in given.items() if name not in ("self", *_STAY)}
        self._ledgers: list[weakref.ref[Ledger]] = []  # those under way are kept by the registry
        self._closed = False
        super().__init__(*args, **options)

    def _open(self, *_: Any, **__: Any) -> None:
        """Nothing is started in this process."""

    def _close_unused(self) -> None:
        """Nothing was."""

    def _check_owner(self) -> None:
        super()._check_owner()
        if self._closed:
            raise RuntimeError("the pool was shut down: make a new one")

    # Runs.

    def _run(
        self,
        origin: Origin,
        name: str,
        folder: str | os.PathLike[str] | None,
        kept: Mapping[str, Record] | None = None,
        after: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Run:
        __tracebackhide__ = True
        if kept is not None or after is not None:
            self._refuse(
                "run.retry(pool)", f"pool.run(tasks, name={name!r}, folder=...) with the folder of the run"
            )
        return super()._run(origin, name, folder)

    def _begin(
        self,
        plan: Plan,
        origin: Origin,
        name: str,
        folder: str | os.PathLike[str] | None,
        kept: Mapping[str, Record] | None,
    ) -> Run:
        """Submit the job of a run."""
        del kept  # a retry is refused
        for job in plan.jobs:  # they were pickled to see that they can be
            job.payload.release()
        place = run_folder(folder, name)
        new = not place.exists() or not any(place.iterdir())
        try:
            number = self._submit(plan, origin, name, place)
        except BaseException:
            if new:  # what was not submitted leaves nothing
                shutil.rmtree(place, ignore_errors=True)
            raise
        write_job(place, "slurm", number, self._cluster.nodes)
        for earlier in registry.of_folder(place):  # whose job has ended, which is not noticed yet
            registry.discard(earlier)
        run = Run.open(place)
        if not run.done:
            registry.add(run._ledger)
        self._ledgers.append(weakref.ref(run._ledger))
        return run

    def _submit(self, plan: Plan, origin: Origin, name: str, place: Path) -> int:
        job = self._cluster.job(self._cluster.nodes)
        script = place / DETACHED / SCRIPT
        render_commands(job, (), script.parent)  # what it refuses is refused before anything is written
        made = {**provenance(()), SUBMITTED: "slurm"}
        open_folder(place, name, origin, plan, whole=origin.whole, made=made, elsewhere=False).close()
        prepare_folder()
        order = Order(
            self._given,
            self._cluster.port,
            list(origin.tasks),
            name,
            origin.seed,
            origin.retry_alone,
            origin.gang,
            origin.by_round,
            origin.whole,
        )
        digest = order.write(place)
        python = sys.executable if self._cluster.environment is None else "python"
        command = [python, "-m", "mgpu_nb", "detached", str(place), "--sha256", digest]
        # In place of the shell, so that signals for the script are the pool's.
        lines = [f"exec {shlex.join(command)}"]
        with atomic_write(script) as part:
            part.write_text(render_commands(job, lines, script.parent), encoding="utf-8")
            part.chmod(0o700)
        try:
            return submit(script, env=environment_of_jobs(os.environ))
        except SubmitError as error:
            raise OSError(str(error).replace("cpus_per_task", "cpus_per_node")) from error

    @property
    def runs(self) -> Listing[Run]:
        """Runs of this pool as they were submitted, displayed as a table; of ended ones those that somebody has."""
        ledgers = self._known()
        return Listing([Run._of(ledger) for ledger in ledgers], lambda: runs_table(ledgers))

    def _known(self) -> list[Ledger]:
        return [ledger for ref in self._ledgers if (ledger := ref()) is not None]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more runs. Those that were submitted go on; `cancel_futures` cancels them."""
        del wait
        left = [] if self._closed else [run for run in self._known() if not run.done]
        self._closed = True
        for run in left:
            if cancel_futures:
                run.cancel()
            else:
                note = f"run {run.name!r} goes on in {run.job}; Run.open({str(run.folder)!r}) follows it"
                sys.stderr.write(f"{note}, .cancel() of that ends it\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Shut down; what was submitted goes on."""
        self.shutdown()
        return None

    # What only the process has that runs the pool.

    @property
    def slots(self) -> tuple[Slot, ...]:
        """None here: those of a run are in its job."""
        return ()

    @property
    def nodes(self) -> Listing[NodeState]:
        """None here: those of a run are in its job."""
        return Listing((), lambda: nodes_table((), ""))

    @property
    def expected_slots(self) -> int | None:
        """Number of slots of each run."""
        expected: int | None = self._engine.expected  # type: ignore[attr-defined]
        return expected

    def wait_for_slots(self, count: int | None = None, timeout: float | None = None) -> tuple[Slot, ...]:
        """Refused: the slots of a run are in its job.

        Raises
        ------
        RuntimeError
            Always.
        """
        del count, timeout
        self._refuse("wait_for_slots", "run.wait() of a run")

    def logs(self) -> dict[int, str]:
        """Refused: what `setup` prints is in the output of the job.

        Raises
        ------
        RuntimeError
            Always.
        """
        self._refuse("logs", f"the output of the job, {DETACHED}/slurm-<number>.out in the folder of the run")

    def _call(
        self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], name: str
    ) -> NoReturn:
        del fn, args, kwargs, name
        self._refuse("submit and map", "pool.run([Task(fn, ...)]), whose values are in its folder")

    def _refuse(self, what: str, instead: str) -> NoReturn:
        raise RuntimeError(
            f"{what}: a detached pool has runs alone, each in a batch job of its own. Take {instead}, or leave "
            "detach=True out for a pool that this process runs"
        )

    def __repr__(self) -> str:
        expected = self.expected_slots
        slots = f"{expected} slots in each run" if expected else "slots in each run"
        runs = f"{len(self._ledgers)} runs, {sum(not run.done for run in self._known())} under way"
        return f"GPUPool(detached: {slots}; {runs}; isolation={self.isolation!r}{', closed' * self._closed})"

    def _repr_html_(self) -> str:
        return f"<div>{escape(repr(self))}</div>{self.runs._repr_html_() if self._ledgers else ''}"
