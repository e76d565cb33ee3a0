"""Frames over a Unix socket, with file descriptors: the messages of parent process, server and workers."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["Channel", "Frame"]

_HEADER = struct.Struct("!BBIQQ")  # kind, number of descriptors, length of meta, length of body, ident
_CHUNK = 2**18
_MAX_FDS = 8
_ANCILLARY = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


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

    def send(
        self, kind: int, ident: int = 0, meta: bytes = b"", body: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        """Send a frame; any thread may. The descriptors are the sender's to close once nothing is pending.

        Raises
        ------
        OSError
            Where the other end is gone.
        """
        header = _HEADER.pack(kind, len(fds), len(meta), len(body), ident)
        small = len(body) < _CHUNK
        parts = [memoryview(header + meta + body)] if small else [memoryview(header + meta), memoryview(body)]
        with self._lock:
            for part in parts:
                self._outbox.append((part, fds))
                fds = ()
            self._flush()

    def send_many(self, kind: int, frames: Sequence[tuple[int, bytes]]) -> None:
        """Send small frames, each an ident and a body, in one go."""
        packed = b"".join(_HEADER.pack(kind, 0, 0, len(body), ident) + body for ident, body in frames)
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

    def receive(self) -> Iterator[Frame]:
        """Frames that have arrived; a blocking channel waits for at least one. `closed` tells the end."""
        while not self.closed:
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
            if flags & socket.MSG_CTRUNC:  # no descriptor was left to take it
                self._fds.append(-1)
            if not size:
                self.closed = True
                return
            self._inbox += self._buffer[:size]
            if frames := list(self._parse()):
                yield from frames
                if self._blocking or size < _CHUNK:
                    return
            elif not self._blocking and size < _CHUNK:
                return

    def _parse(self) -> Iterator[Frame]:
        inbox = self._inbox
        start = 0
        while len(inbox) - start >= _HEADER.size:
            kind, n_fds, n_meta, n_body, ident = _HEADER.unpack_from(inbox, start)
            meta = start + _HEADER.size
            body = meta + n_meta
            end = body + n_body
            if len(inbox) < end:
                break
            fds = tuple(self._fds.popleft() for _ in range(n_fds))
            yield Frame(kind, ident, bytes(inbox[meta:body]), bytes(inbox[body:end]), fds)
            start = end
        del inbox[:start]

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
