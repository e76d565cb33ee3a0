"""The open pools of this process: which cell made each, and who has a device already."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..engines.base import Engine
from ..errors import warn_user
from ..hardware.slots import Slot
from ..notebook import after_cell, cell, cell_number
from ..output import clean
from ..places import elsewhere
from .dispatcher import Dispatcher

__all__ = ["OpenPool", "OpenPools", "opened"]

ENDS = 60.0  # seconds that a pool whose tasks are cancelled may take to end


@dataclass(eq=False)
class OpenPool:
    """A pool that has not ended: its dispatcher, the handle that a user has or had, and where it was made."""

    dispatcher: Dispatcher
    handle: weakref.ref[Any]
    engine: Engine
    isolation: str
    cell: str
    execution: str
    cell_number: int | None

    @property
    def devices(self) -> set[str]:
        """What its slots share memory on."""
        return {state.group for state in self.dispatcher.slots}

    @property
    def left_open(self) -> bool:
        """Whether it does not end by itself, or has plain calls, which no run names."""
        calls = any(slot.task and not slot.run for slot in self.dispatcher.activity().slots)
        return calls or not self.dispatcher.closing

    @property
    def words(self) -> str:
        """What it is and does."""
        activity = self.dispatcher.activity()
        labels = list(dict.fromkeys(slot.place for slot in activity.slots)) or ["nothing yet"]
        where = ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
        runs = dict.fromkeys(slot.run_name for slot in activity.slots if slot.run)
        does = [f"runs {name!r}" for name in runs]
        made = [] if self.cell_number is None else [f"made in cell [{self.cell_number}]"]
        size = len(activity.slots)
        return f"pool {self.dispatcher.number} ({'; '.join([f'{size} slots on {where}', *does, *made])})"


class OpenPools:
    """The pools of this process whose thread still runs."""

    def __init__(self) -> None:
        self._pools: list[OpenPool] = []
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)  # the parent's pools are not the child's

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._pools = []

    def add(self, handle: Any, dispatcher: Dispatcher, engine: Engine, isolation: str) -> None:
        """Take a pool that is about to start."""
        with self._lock:
            self._pools = [pool for pool in self._pools if not pool.dispatcher.ended]
            self._pools.append(
                OpenPool(dispatcher, weakref.ref(handle), engine, isolation, *cell(), cell_number())
            )

    @property
    def pools(self) -> list[OpenPool]:
        """All of them, in the order in which they were made."""
        return [pool for pool in self._pools.copy() if not pool.dispatcher.ended]

    def left_behind(self, cell: str, execution: str) -> list[OpenPool]:
        """Pools that another execution of the same cell made, also those that end once their tasks have."""
        return [p for p in self.pools if cell and p.cell == cell and p.execution != execution]

    def end(self, pools: Sequence[OpenPool]) -> None:
        """Cancel all tasks of pools, and wait for the ends of these.

        Raises
        ------
        TimeoutError
            If one does not end.
        """
        for pool in pools:
            pool.dispatcher.close(cancel_running=True)
        for pool in pools:
            pool.dispatcher.thread.join(ENDS)
            if pool.dispatcher.thread.is_alive():
                raise TimeoutError(f"{pool.words} has not ended {ENDS:g} s after its tasks were cancelled")

    def warn_of_taken(self, slots: Sequence[Slot], known: Sequence[OpenPool]) -> None:
        """Warn of a second pool on devices of another that is open; `known` are named otherwise."""
        groups = {slot.group: slot for slot in slots}
        for pool in self.pools:
            shared = [slot for group, slot in groups.items() if group in pool.devices]
            if not shared or pool in known or pool.dispatcher.closing:
                continue
            what = ", ".join(slot.place if slot.kind == "cuda" else _cores_of(slot) for slot in shared[:4])
            more = f" and {len(shared) - 4} more" if len(shared) > 4 else ""
            warn_user(
                f"a second pool takes {what}{more} beside {pool.words}: neither knows what the other uses. Use that "
                f"pool; or end it: {self.shutdown_of(pool)}; or give share=True if this is meant"
            )

    def tell_of_earlier(self, pools: Sequence[OpenPool]) -> None:
        """Name the pools that an earlier execution of the cell left, once the cell has ended.

        A cell that assigns its pool to a name drops the earlier one, which ends by itself unless it has tasks.
        """
        number = cell_number()

        def at_end() -> None:
            for pool in pools:
                if pool.left_open and not pool.dispatcher.ended:
                    warn_user(
                        f"an earlier execution of this cell left {pool.words} open: {self.shutdown_of(pool)} ends it, "
                        'GPUPool(rerun="cancel") does so by itself and cancels its tasks',
                        number,
                    )

        if pools:
            after_cell(at_end)

    def shutdown_of(self, pool: OpenPool) -> str:
        """The call that ends a pool."""
        open_now = self.pools
        place = open_now.index(pool) if pool in open_now else 0
        return f"mgpu_nb.pools()[{place}].shutdown(cancel_futures=True)"


def _cores_of(slot: Slot) -> str:
    """Whose cores a virtual device takes."""
    there = elsewhere(slot.host)
    return f"the cores of {clean(there)}" if there else "the cores of this machine"


opened = OpenPools()
