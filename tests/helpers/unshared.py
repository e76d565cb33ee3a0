"""An engine whose slots are on several hosts, all of them this machine, of which some have not the folders of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from mgpu_nb.engines.base import Begin, Payload, TaskMeta
from mgpu_nb.engines.local import LocalEngine, LocalWorker
from mgpu_nb.hardware.slots import Slot


class Unshared(LocalEngine):
    """Slots on hosts.

    Parameters
    ----------
    hosts
        Host of each slot.
    without
        Hosts that have not the folders of runs: they are given tokens that are nowhere.
    """

    def __init__(self, *hosts: str, without: Sequence[str] = ()) -> None:
        super().__init__()
        self.hosts, self.without = hosts, without
        self.tokens: list[str | None] = []  # that workers were told, in order

    @property
    def expected(self) -> int | None:
        return len(self.hosts)

    def waits_for(self) -> str:
        return ""

    def described(self, host: str) -> Mapping[str, Any]:
        return {"path": f"/{host}/python", "python": "3.11.7", "packages": {"torch": "2.9.0"}}

    def slots(
        self, gpu_ids: Sequence[int | str] | Literal["cpu"] | None, slots: int | None, threads: int | None
    ) -> tuple[Slot, ...]:
        found = super().slots("cpu", len(self.hosts), 1)
        return tuple(replace(slot, host=host) for slot, host in zip(found, self.hosts, strict=True))

    def start(self, begin: Begin, setup: Payload) -> LocalWorker:
        host = self.hosts[begin.slot]
        worker = super().start(replace(begin, node=host, parent="laptop"), setup)
        assign = worker.assign

        def hiding(job: int, meta: TaskMeta | None, payload: Payload) -> None:
            if meta is not None and meta.name:
                self.tokens.append(meta.token)
                if host in self.without and meta.token:
                    meta = meta._replace(token=".shared-elsewhere")
            assign(job, meta, payload)

        worker.assign = hiding  # type: ignore[method-assign]
        return worker
