"""Messages of a worker that mean the same to the scheduler wherever the worker is."""

from __future__ import annotations

from typing import Protocol

from .base import WorkerEvents, WorkerHandle
from .protocol import Message, unpack_logged, unpack_memory, unpack_reported

__all__ = ["tell"]


class _Worker(WorkerHandle, Protocol):
    def skipped(self) -> None: ...


def tell(events: WorkerEvents, worker: _Worker, kind: int, ident: int, meta: bytes, body: bytes) -> bool:
    """Take what a worker says beside the end of a job; False for a message of another kind.

    Raises
    ------
    Exception
        If the message cannot be read.
    """
    if kind == Message.REPORT:
        events.report(worker, ident, unpack_reported(meta, body))
    elif kind == Message.ASK:
        events.asks(worker, ident, meta.decode())
    elif kind == Message.LOG:
        events.logged(worker, ident, unpack_logged(meta))
    elif kind == Message.MEMORY:
        worker.reported = unpack_memory(meta)
    elif kind == Message.SKIPPED:
        worker.skipped()
    else:
        return False
    return True
