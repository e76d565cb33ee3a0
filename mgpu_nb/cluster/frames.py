"""Frames of a link: their form on the wire, and how they are put together again."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from .segments import LENT, LentPlace, MemoryFilePlace, MemoryPlace

__all__ = ["TAKEN", "Arriving", "BrokenLink", "LinkFrame", "begin", "pack_head"]

TAKEN = 96
"""Kind of the frame by which a link says that it has opened what was lent to it; its ident is the number of files."""

_MARK = b"\xf5mgl"  # begins every frame
# mark, kind, number of segments, length of meta, worker, ident, length of body; then the length of each segment
_HEADER = struct.Struct("!4sBBIQQQ")
_LONGEST_META = 2**30
_LONGEST = 2**40  # of a body and of a segment
_MOST_SEGMENTS = 8


class BrokenLink(Exception):
    """What came are no frames."""


class LinkFrame(NamedTuple):
    """One message: what it is, of which worker, whom it is about, a few facts, a value, its segments.

    `fds` are memory files that belong to the receiver (-1 for one for which no descriptor or memory was left),
    `memory` is writable and aligned; which of both is filled is the link's choice, see `Link`.
    """

    kind: int
    worker: int
    ident: int
    meta: bytes
    body: bytes
    memory: tuple[memoryview, ...]
    fds: tuple[int, ...]


def pack_head(kind: int, worker: int, ident: int, meta: bytes, body: int, sizes: Sequence[int]) -> bytes:
    """What comes before the body of a frame, given its length and those of its segments.

    Raises
    ------
    ValueError
        For more than the other end would take.
    """
    longest = max(body, *(size & ~LENT for size in sizes)) if sizes else body
    if len(meta) > _LONGEST_META or len(sizes) > _MOST_SEGMENTS or longest > _LONGEST:
        raise ValueError(f"too much for one message: {len(meta)}, {body} and {list(sizes)} bytes")
    head = _HEADER.pack(_MARK, kind, len(sizes), len(meta), worker, ident, body)
    return head + struct.pack(f"!{len(sizes)}Q", *sizes) + meta if sizes else head + meta


def begin(inbox: bytearray, buffer: memoryview | None, lender: int | None) -> LinkFrame | Arriving | None:
    """Take a frame without segments from the inbox, or what comes before those, if all of that is there.

    Parameters
    ----------
    buffer
        By way of which segments go to memory files; None to have them in memory.
    lender
        Process that may lend segments.

    Raises
    ------
    BrokenLink
        If no frame begins so.
    """
    if len(inbox) < _HEADER.size:
        if not _MARK.startswith(inbox[: len(_MARK)]):
            raise BrokenLink("no message begins so")
        return None
    mark, kind, count, n_meta, worker, ident, n_body = _HEADER.unpack_from(inbox)
    if mark != _MARK or count > _MOST_SEGMENTS or n_meta > _LONGEST_META or n_body > _LONGEST:
        raise BrokenLink("no message begins so")
    meta = _HEADER.size + 8 * count
    if len(inbox) < meta:
        return None
    sizes = struct.unpack_from(f"!{count}Q", inbox, _HEADER.size) if count else ()
    if sizes and max(size & ~LENT for size in sizes) > _LONGEST:
        raise BrokenLink("no message has a segment of so many bytes")
    if lender is None and any(size & LENT for size in sizes):
        raise BrokenLink("it lends a segment to a process that cannot open it")
    body = meta + n_meta
    end = body + n_body
    if len(inbox) < end:
        return None
    head = (kind, worker, ident, bytes(inbox[meta:body]), bytes(inbox[body:end]))
    del inbox[:end]
    return Arriving(head, sizes, buffer, lender or 0) if sizes else LinkFrame(*head, (), ())


class Arriving:
    """A frame whose segments are arriving: each is received into its place."""

    def __init__(
        self,
        head: tuple[int, int, int, bytes, bytes],
        sizes: Sequence[int],
        buffer: memoryview | None,
        lender: int,
    ):
        self._head = head
        self._sizes = deque(sizes)
        self.lent = sum(bool(size & LENT) for size in sizes)
        self._buffer, self._lender = buffer, lender  # of what goes to files, None for memory; of what is lent
        self._full: list[MemoryPlace | MemoryFilePlace | LentPlace] = []
        self._place: MemoryPlace | MemoryFilePlace | LentPlace | None = None

    @property
    def room(self) -> memoryview:
        """Where the next bytes are to be received."""
        return memoryview(b"") if self._place is None else self._place.room

    def advance(self, size: int) -> None:
        """Note that so many bytes were received into `room`."""
        if self._place is not None:
            self._place.advance(size)

    def fill(self, inbox: bytearray) -> bool:
        """Fill the places with what came already; return whether all are full."""
        while True:
            while self._place is not None and (room := self._place.room) and inbox:
                size = min(len(room), len(inbox))
                room[:size] = memoryview(inbox)[:size]
                del inbox[:size]
                self._place.advance(size)
            if self._place is not None:
                if self._place.room:
                    return False
                if isinstance(self._place, LentPlace):
                    self._open(self._place)
                self._full.append(self._place)
                self._place = None
            if not self._sizes:
                return True
            self._place = self._place_for(self._sizes.popleft())

    def _open(self, place: LentPlace) -> None:
        try:
            place.open()
        except OSError as error:
            raise BrokenLink(f"it lent what it has no more: {error}") from error

    def _place_for(self, size: int) -> MemoryPlace | MemoryFilePlace | LentPlace:
        if size & LENT:
            return LentPlace(self._lender, file=self._buffer is not None)
        return MemoryPlace(size) if self._buffer is None else MemoryFilePlace(size, self._buffer)

    def frame(self) -> LinkFrame:
        """The whole frame."""
        if self._buffer is None:
            views = (place.view for place in self._full if not isinstance(place, MemoryFilePlace))
            return LinkFrame(*self._head, tuple(views), ())
        fds = (place.fd for place in self._full if not isinstance(place, MemoryPlace))
        return LinkFrame(*self._head, (), tuple(fds))

    def close(self) -> None:
        """Give up what had arrived."""
        for place in (*self._full, self._place):
            if place is not None:
                place.close()
