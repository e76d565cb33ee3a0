"""The way into a pool: its port and its invitation, open while agents are expected."""

from __future__ import annotations

import logging
from pathlib import Path

from ..engines.base import Watcher
from .door import Door

__all__ = ["Entrance"]

log = logging.getLogger("mgpu_nb")

REOPEN = 1.0  # seconds until a port that could not be opened is tried again


class Entrance:
    """A door with its invitation in a file. Its methods are for the thread of the loop.

    Parameters
    ----------
    door
        Not open yet; it is opened, and closed again where that fails.

    Attributes
    ----------
    trouble
        Why no agent can come in though one is expected, as a clause; empty if it can.

    Raises
    ------
    OSError
        If the address of the door is none of this machine, the port is taken, or the invitation cannot be written.
    """

    def __init__(self, door: Door, loop: Watcher) -> None:
        self.trouble = ""
        self._door, self._loop = door, loop
        self._expects = True
        try:
            self._invitation = door.open().write()
        except BaseException:
            door.close()
            raise

    @property
    def file(self) -> Path:
        """The invitation."""
        assert self._invitation.path is not None  # noqa: S101 (it was written)
        return self._invitation.path

    def open(self) -> None:
        """Let agents in: before another is asked for, for it reads the invitation."""
        self._expects = True
        try:
            opened = self._door.open()
            if opened.port != self._invitation.port:
                self._invitation = opened.write(self.file)
                log.warning(
                    "another program has the port of the pool, agents dial port %d now: copies of %s are out of date",
                    opened.port, self.file,
                )  # fmt: skip
            self.trouble = ""
        except OSError as error:
            self.trouble = f"no agent can come in, which is tried again: {error}"
            self._loop.call_later(REOPEN, self._try_again)

    def _try_again(self) -> None:
        if self._expects:
            self.open()

    def shut(self) -> None:
        """Let nobody in until it is opened again."""
        self._expects, self.trouble = False, ""
        self._door.close()

    def close(self) -> None:
        """Let nobody in any more, and remove the invitation."""
        self.shut()
        self._invitation.remove()
