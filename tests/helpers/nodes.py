"""Engines of this machine that have their slots on several nodes, as the scheduler sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from mgpu_nb.cluster.ports import KeptPorts
from mgpu_nb.engines.local import LocalEngine
from mgpu_nb.hardware.slots import Slot


class Nodes(LocalEngine):
    """Workers of this machine, so many on each node; gangs meet at ports that are kept for the slots.

    Parameters
    ----------
    counts
        Number of slots by name of the node.
    address
        Of this machine, where gangs meet.
    """

    def __init__(self, address: str = "127.0.0.1", **counts: int) -> None:
        super().__init__()
        self.counts, self.address = counts, address
        self.kept: KeptPorts | None = None

    def slots(
        self, gpu_ids: Sequence[int | str] | Literal["cpu"] | None, slots: int | None, threads: int | None
    ) -> tuple[Slot, ...]:
        hosts = [host for host, count in self.counts.items() for _ in range(count)]
        found = super().slots("cpu", len(hosts), threads)
        return tuple(replace(slot, host=host) for slot, host in zip(found, hosts, strict=True))

    def warm_up(self) -> None:
        self.kept = self.kept or KeptPorts(self.address, sum(self.counts.values()))
        super().warm_up()

    def meeting_point(self, slot: Slot) -> tuple[str, int]:
        if self.kept is None:
            raise OSError(f"{slot.host} keeps no port")
        return self.address, self.kept.ports[slot.index]

    def close(self) -> None:
        super().close()
        if self.kept is not None:
            self.kept.close()
