"""The thread of an agent that reads the devices of its node: a driver that hangs must not make the node look lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from ..telemetry.node_reading import read_node
from ..telemetry.samples import WorkerState

__all__ = ["Readings"]

log = logging.getLogger("mgpu_nb.agent")

BUSY, IDLE = (
    0.5,
    4.0,
)  # seconds between readings with workers and without; older than 10 s they count as unknown


class Readings(threading.Thread):
    """Reads devices and memory of workers from time to time.

    Parameters
    ----------
    states
        Returns the workers, one state for each device that one works on.
    send
        Called by this thread with each reading, as `NodeReading.unpack` takes it.
    """

    def __init__(self, states: Callable[[], Sequence[WorkerState]], send: Callable[[bytes], None]) -> None:
        super().__init__(name="mgpu_nb-readings", daemon=True)
        self._states, self._send = states, send
        self._over = threading.Event()

    def run(self) -> None:
        """Read until it is closed."""
        busy = True
        while not self._over.is_set():
            try:
                states = self._states()
                busy = bool(states)
                self._send(read_node(states))
            except Exception:
                log.debug("the devices could not be read", exc_info=True)
            self._over.wait(BUSY if busy else IDLE)

    def close(self) -> None:
        """Have it end; it is not waited for, a driver may hang."""
        self._over.set()
