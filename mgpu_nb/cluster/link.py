"""Frames between a pool and its agents: one TLS connection each, with large values inline."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..engines.segment import ALIGNMENT, SMALL
from ..engines.servers import runtime

__all__ = ["BrokenLink", "Link", "LinkFrame"]

_MARK = b"\xf5mgl"  # begins every frame
# mark, kind, number of segments, length of meta, worker, ident, length of body; then the length of each segment
_HEADER = struct.Struct("!4sBBIQQQ")
_LONGEST_META = 2**30
_LONGEST = 2**40  # of a body and of a segment
_MOST_SEGMENTS = 8
_RECORD = 2**14  # bytes that TLS sends at once
_PIECE = 2**18  # bytes of a file that are in memory at once, and from which on a body is not copied
_TURN = 2**21  # bytes in one go: no link keeps a loop from the others

_IDLE, _INTERVAL, _PROBES = 3, 2, 4  # seconds, seconds, count: a machine that is gone is noticed in 11 s
_UNANSWERED = 10_000  # ms that sent data may stay without an answer


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


class Link:
    """One end of an authenticated connection between a pool and an agent.

    It never blocks: what the socket does not take waits in the outbox (see `pending` and `flush`). An event loop calls
    `receive` when the descriptor is readable, and again at once while `more`; any thread may `send`. A connection that
    is torn raises nowhere: `closed` says it, once all that had arrived was received, and `reason` says why.

    Parameters
    ----------
    sock
        Connected, with the handshakes done.
    files
        Whether segments are received into memory files (an agent hands them on to workers), else into memory.

    Attributes
    ----------
    closed
        Whether the connection has ended.
    reason
        How it ended, as a clause; empty if it was closed here.
    more
        Whether data waits of which the descriptor tells nothing: `receive` is to be called again.
    received
        Bytes so far.
    peer
        Address of the other end.
    """

    def __init__(self, sock: ssl.SSLSocket, *, files: bool) -> None:
        self.peer = _tune(sock)
        sock.setblocking(False)
        self._sock = sock
        self._files = files
        self._owner = os.getpid()
        self._lock = threading.Lock()  # OpenSSL's objects are for one thread at a time
        self._outbox: deque[memoryview | _File] = deque()
        self._sending = memoryview(b"")  # what TLS was given; it wants the same again until all is gone
        self._scratch = memoryview(bytearray(_PIECE))
        self._buffer = memoryview(bytearray(_PIECE))
        self._inbox = bytearray()
        self._begun: _Begun | None = None
        self.closed = self.more = False
        self.reason = ""
        self.received = 0
        runtime.channels.add(self)

    def fileno(self) -> int:
        """Descriptor to wait on."""
        return self._sock.fileno()

    @property
    def pending(self) -> bool:
        """Whether something waits for the socket to take it."""
        return bool(self._sending or self._outbox)

    @property
    def partial(self) -> bool:
        """Whether a frame has begun to arrive and is not complete."""
        return bool(self._inbox or self._begun)

    def send(
        self,
        kind: int,
        worker: int = 0,
        ident: int = 0,
        meta: bytes = b"",
        body: bytes = b"",
        segments: Sequence[tuple[int, int] | memoryview] = (),
    ) -> None:
        """Send a frame, or begin to; any thread may. Nothing happens on a link that has ended.

        Parameters
        ----------
        segments
            Descriptors of memory files with their sizes, or memory. Those up to `engines.segment.SMALL` bytes are
            copied at once and can be used again; a larger file stays open until it is sent and can be closed by its
            owner, larger memory must not change until nothing is pending. A file that has become shorter is filled up
            with zeros.

        Raises
        ------
        ValueError
            For more than the other end would take.
        OSError
            If no descriptor is left to keep a file, or a file cannot be read; nothing was sent.
        """
        sizes = [part.nbytes if isinstance(part, memoryview) else part[1] for part in segments]
        if len(meta) > _LONGEST_META or len(sizes) > _MOST_SEGMENTS or max((len(body), *sizes)) > _LONGEST:
            raise ValueError(f"too much for one message: {len(meta)}, {len(body)} and {sizes} bytes")
        header = _HEADER.pack(_MARK, kind, len(sizes), len(meta), worker, ident, len(body))
        header += struct.pack(f"!{len(sizes)}Q", *sizes) + meta
        items: list[memoryview | _File]
        items = [memoryview(header + body)] if len(body) < _PIECE else [memoryview(header), memoryview(body)]
        with contextlib.ExitStack() as failed:
            for part, size in zip(segments, sizes, strict=True):
                item = _copied(part, size) if size <= SMALL else _kept(part, size)
                if isinstance(item, _File):
                    failed.callback(item.close)
                items.append(item)
            with self._lock:
                if self.closed:
                    return
                self._outbox.extend(item for item in items if len(item))
                failed.pop_all()
        self.flush()

    def flush(self) -> bool:
        """Send what is pending, as far as the socket takes it and for some megabytes; return whether that was all."""
        left = _TURN
        while left > 0:
            with self._lock:  # anew for each record: another thread receives in between
                if self.closed or not self.pending:
                    return True
                try:
                    if not self._sending:
                        self._sending = self._next()
                    sent = self._sock.send(self._sending)
                except (ssl.SSLWantWriteError, ssl.SSLWantReadError, BlockingIOError):
                    return False
                except OSError as error:
                    self._stop_sending(error)
                    return True
                self._sending = self._sending[sent:]
            left -= sent
        return not self.pending

    def _next(self) -> memoryview:
        """What is to be sent next: small ones together, of a file a piece."""
        head = self._outbox[0]
        if isinstance(head, _File):
            piece = head.read(self._scratch)
            if not len(head):
                self._outbox.popleft()
                head.close()
            return piece
        self._outbox.popleft()
        size, together = len(head), [head]
        while self._outbox and size < _RECORD:
            head = self._outbox[0]
            if isinstance(head, _File) or size + len(head) > _RECORD:
                break
            together.append(head)
            size += len(head)
            self._outbox.popleft()
        return together[0] if len(together) == 1 else memoryview(b"".join(together))

    def _stop_sending(self, error: OSError) -> None:
        """Send no more. What had arrived can still be received; then it is seen that the connection has ended."""
        self.reason = self.reason or _words(error)
        self._forget()
        with contextlib.suppress(OSError):  # of the socket alone: ssl's own would read on without TLS
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def _forget(self) -> None:
        for item in self._outbox:
            if isinstance(item, _File):
                item.close()
        self._outbox.clear()
        self._sending = memoryview(b"")

    def receive(self) -> Iterator[LinkFrame]:
        """Frames that have arrived, up to some megabytes.

        Raises
        ------
        BrokenLink
            After the last good frame, if what follows it is none.
        """
        left = _TURN
        while not self.closed:
            while (frame := self._parse()) is not None:
                yield frame
            if left <= 0 or not (size := self._read()):
                break
            left -= size
        with self._lock:
            self.more = not self.closed and self._sock.pending() > 0

    def _read(self) -> int:
        """Read what is there of one record; 0 if nothing is."""
        place = self._begun.place if self._begun is not None else self._buffer
        with self._lock:
            if self.closed:
                return 0
            try:
                size = self._sock.recv_into(place)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                return 0
            except OSError as error:
                size = 0
                self.reason = self.reason or _words(error)
            if not size:
                self.reason = self.reason or "the other end closed the connection"
                self.closed = True
                self._forget()
                return 0
        self.received += size
        if self._begun is not None:
            self._begun.advance(size)
        else:
            self._inbox += self._buffer[:size]
        return size

    def _parse(self) -> LinkFrame | None:
        """The next frame, if all of it is there."""
        if self._begun is None:
            self._begun = self._begin()
        begun = self._begun
        if begun is None or not begun.fill(self._inbox):
            return None
        self._begun = None
        return begun.frame()

    def _begin(self) -> _Begun | None:
        """Take what comes before its segments from the inbox, if all of that is there."""
        inbox = self._inbox
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
        sizes = struct.unpack_from(f"!{count}Q", inbox, _HEADER.size)
        if any(size > _LONGEST for size in sizes):
            raise BrokenLink("no message has a segment of so many bytes")
        body = meta + n_meta
        end = body + n_body
        if len(inbox) < end:
            return None
        head = (kind, worker, ident, bytes(inbox[meta:body]), bytes(inbox[body:end]))
        del inbox[:end]
        return _Begun(head, sizes, files=self._files)

    def close(self) -> None:
        """Close it; what is pending is not sent."""
        if self._owner == os.getpid():
            with self._lock:
                self._close()
        else:  # in a fork: a thread that held the lock is not here
            self._close()

    def _close(self) -> None:
        self.closed, self.more = True, False
        self._forget()
        if self._begun is not None:
            self._begun.close()
            self._begun = None
        self._inbox.clear()
        self._sock.close()


class _File:
    """A memory file that is to be sent."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = os.dup(fd)
        self._at, self._size = 0, size

    def __len__(self) -> int:
        return self._size - self._at

    def read(self, buffer: memoryview) -> memoryview:
        """The next piece of it, in the buffer."""
        piece = buffer[: min(len(buffer), len(self))]
        _read(self._fd, piece, self._at)
        self._at += len(piece)
        return piece

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _read(fd: int, into: memoryview, at: int) -> None:
    """Read from a memory file; what it has no more becomes zeros: its length was told already."""
    done = 0
    while done < len(into):
        size = os.preadv(fd, [into[done:]], at + done)
        if not size:
            into[done:] = bytes(len(into) - done)
            return
        done += size


def _copied(part: tuple[int, int] | memoryview, size: int) -> memoryview:
    if isinstance(part, memoryview):
        return memoryview(part.tobytes())
    copy = memoryview(bytearray(size))
    _read(part[0], copy, 0)
    return copy


def _kept(part: tuple[int, int] | memoryview, size: int) -> memoryview | _File:
    return part.cast("B") if isinstance(part, memoryview) else _File(part[0], size)


class _Begun:
    """A frame whose segments are arriving: each is received into its place."""

    def __init__(
        self, head: tuple[int, int, int, bytes, bytes], sizes: Sequence[int], *, files: bool
    ) -> None:
        self._head = head
        self._sizes = deque(sizes)
        self._files = files
        self._memory: list[memoryview] = []
        self._fds: list[int] = []
        self.place = memoryview(b"")  # what is still empty of the segment that arrives

    def fill(self, inbox: bytearray) -> bool:
        """Fill the places with what came already; return whether all are full."""
        while True:
            if len(self.place):
                size = min(len(self.place), len(inbox))
                self.place[:size] = inbox[:size]
                del inbox[:size]
                self.advance(size)
                if len(self.place):
                    return False
            if not self._sizes:
                return True
            self.place = self._open(self._sizes.popleft())

    def _open(self, size: int) -> memoryview:
        if not self._files:
            self._memory.append(_memory(size))
            return self._memory[-1]
        fd = os.memfd_create("mgpu_nb", os.MFD_CLOEXEC)
        self._fds.append(fd)
        os.ftruncate(fd, size)
        return memoryview(mmap.mmap(fd, size)) if size else memoryview(b"")

    def advance(self, size: int) -> None:
        """Note that so many bytes were received into `place`."""
        self.place = self.place[size:]

    def frame(self) -> LinkFrame:
        """The whole frame."""
        return LinkFrame(*self._head, tuple(self._memory), tuple(self._fds))

    def close(self) -> None:
        """Give up what had arrived."""
        self.place = memoryview(b"")
        for fd in self._fds:
            os.close(fd)


def _memory(size: int) -> memoryview:
    """Aligned memory; of a large one huge pages are asked for."""
    if size > SMALL:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_HUGEPAGE)
        return memoryview(pages)
    memory = bytearray(size + ALIGNMENT)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % ALIGNMENT
    return memoryview(memory)[start : start + size]


def _tune(sock: socket.socket) -> str:
    """Have small frames sent at once and a machine that is gone noticed; return the address of the other end."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": _IDLE, "TCP_KEEPINTVL": _INTERVAL, "TCP_KEEPCNT": _PROBES}
    for name, value in {**options, "TCP_USER_TIMEOUT": _UNANSWERED}.items():
        if (option := getattr(socket, name, None)) is not None:  # not every system has each
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    try:
        return str(sock.getpeername()[0])
    except OSError:
        return ""  # it has gone already, as the first read will say


def _words(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()
