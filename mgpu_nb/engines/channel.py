"""Frames over a Unix socket, with file descriptors: the messages of parent process, server and workers."""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from .awake import awake

__all__ = ["BrokenChannel", "Channel", "Frame"]

_MARK = b"\xf5mgn"  # begins every frame: what others write to the descriptor is seen at its first byte
_HEADER = struct.Struct(
    "!4sBBIQQ"
)  # mark, kind, number of descriptors, length of meta, length of body, ident
_LONGEST_META = 2**30
_LONGEST_BODY = 2**40
_CHUNK = 2**18
_READS = 64  # chunks at once: who writes without pause must not keep a loop from its other channels
_MAX_FDS = 8
_ANCILLARY = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_TRUNCATED = int(socket.MSG_CTRUNC)  # plain: what enum makes of flags takes as long as to receive a message


class BrokenChannel(Exception):
    """What came are no frames: somebody else wrote to the descriptor, or a writer was torn."""


class Frame(NamedTuple):
    """One message: what it is, whom it is about, a few facts, a value, descriptors."""

    kind: int
    ident: int
    meta: bytes
    body: bytes
    fds: tuple[int, ...]


class Channel:
    """One end of a connection.

    Blocking in a worker. In the parent process it does not block: what the socket does not take waits in the
    outbox (see `pending` and `flush`), so that a worker that was stopped stops nobody else.
    """

    def __init__(self, sock: socket.socket, *, blocking: bool) -> None:
        sock.setblocking(blocking)
        self._sock = sock
        self._blocking = blocking
        self._buffer = memoryview(bytearray(_CHUNK))  # one for all: a fresh one each time costs page faults
        self._inbox = bytearray()
        self._fds: deque[int] = deque()
        self._outbox: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._lock = threading.Lock()
        self._broken = ""
        self._truncated = False  # no descriptor was left to take those of the frame that comes next
        self._arrivals: Any = None
        self.received = 0  # bytes so far
        self.closed = False

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Two connected sockets, neither of which a started program inherits."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def fileno(self) -> int:
        """Descriptor to wait on."""
        return self._sock.fileno()

    @property
    def pending(self) -> bool:
        """Whether something waits for the socket to take it."""
        return bool(self._outbox)

    @property
    def partial(self) -> bool:
        """Whether a frame has begun to arrive and is not complete."""
        return bool(self._inbox)

    def send(
        self, kind: int, ident: int = 0, meta: bytes = b"", body: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        """Send a frame; any thread may. The descriptors are the sender's to close once nothing is pending.

        Raises
        ------
        OSError
            Where the other end is gone.
        """
        header = _HEADER.pack(_MARK, kind, len(fds), len(meta), len(body), ident)
        small = len(body) < _CHUNK
        parts = [memoryview(header + meta + body)] if small else [memoryview(header + meta), memoryview(body)]
        with self._lock:
            for part in parts:
                self._outbox.append((part, fds))
                fds = ()
            self._flush()

    def send_many(self, kind: int, frames: Sequence[tuple[int, bytes]]) -> None:
        """Send small frames, each an ident and a body, in one go."""
        packed = b"".join(_HEADER.pack(_MARK, kind, 0, 0, len(body), ident) + body for ident, body in frames)
        with self._lock:
            self._outbox.append((memoryview(packed), ()))
            self._flush()

    def flush(self) -> bool:
        """Send what is pending, as far as the socket takes it; return whether that was all."""
        with self._lock:
            self._flush()
            return not self._outbox

    def _flush(self) -> None:
        while self._outbox:
            data, fds = self._outbox[0]
            try:
                if fds:
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                    sent = self._sock.sendmsg([data], [rights])
                else:
                    sent = self._sock.send(data)
            except BlockingIOError:
                return
            if sent == len(data):
                self._outbox.popleft()
            else:  # the descriptors went with the first byte
                self._outbox[0] = (data[sent:], ())

    def linger(self, seconds: float) -> None:
        """Wait awake, for so long, until something has come; for a blocking channel, before it receives."""
        if self._arrivals is None:
            self._arrivals = select.poll()
            self._arrivals.register(self._sock, select.POLLIN)
        awake(partial(self._arrivals.poll, 0), seconds)

    def receive(self) -> Iterator[Frame]:
        """Frames that have arrived; a blocking channel waits for at least one. `closed` tells the end.

        Raises
        ------
        BrokenChannel
            After the last good frame, if what follows it is none.
        """
        reads = 0
        while not self.closed:
            if self._broken:
                raise BrokenChannel(self._broken)
            try:
                size, ancillary, flags, _ = self._sock.recvmsg_into([self._buffer], _ANCILLARY, _CLOEXEC)
            except BlockingIOError:
                return
            except ConnectionError:
                size, ancillary, flags = 0, [], 0
            for level, kind, packed in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds = array.array("i")
                    fds.frombytes(packed[: len(packed) // fds.itemsize * fds.itemsize])
                    self._fds.extend(fds)
            if flags & _TRUNCATED:
                self._truncated = True
            if not size:
                self.closed = True
                return
            self.received += size
            self._inbox += self._buffer[:size]
            if frames := self._parse():
                yield from frames
                if self._blocking and not self._broken:
                    return
            reads += 1
            if not self._blocking and not self._broken and (size < _CHUNK or reads >= _READS):
                return

    def _parse(self) -> list[Frame]:
        """Take complete frames from the inbox; notes in `_broken` why what follows is none."""
        inbox, frames = self._inbox, []
        start = 0
        while len(inbox) - start >= _HEADER.size:
            mark, kind, n_fds, n_meta, n_body, ident = _HEADER.unpack_from(inbox, start)
            meta = start + _HEADER.size
            body = meta + n_meta
            end = body + n_body
            if mark != _MARK or n_meta > _LONGEST_META or n_body > _LONGEST_BODY:
                self._broken = f"no message begins with {bytes(inbox[start:meta])!r}"
                break
            if len(self._fds) < n_fds and not self._take_missing(n_fds):  # they come with the first byte
                break
            if len(inbox) < end:
                break
            fds = tuple(self._fds.popleft() for _ in range(n_fds)) if n_fds else ()
            frames.append(Frame(kind, ident, bytes(inbox[meta:body]), bytes(inbox[body:end]), fds))
            start = end
        del inbox[:start]
        if not inbox:
            if self._fds:
                self._broken = "descriptors came that no message announced"
            self._truncated = False
        elif not _MARK.startswith(rest := bytes(inbox[: len(_MARK)])) and not self._broken:
            self._broken = f"no message begins with {rest!r}"
        return frames

    def _take_missing(self, announced: int) -> bool:
        """Put -1 in place of descriptors for which none was left; False if they were never sent."""
        if not self._truncated:
            self._broken = f"a message announced {announced} descriptors, {len(self._fds)} came"
            return False
        self._fds.extend([-1] * (announced - len(self._fds)))
        self._truncated = False
        return True

    def shut(self) -> None:
        """Shut the sending side; the other end may still send."""
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket."""
        self.closed = True
        self._sock.close()
        while self._fds:
            if (fd := self._fds.popleft()) >= 0:
                os.close(fd)
