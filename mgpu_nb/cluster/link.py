"""Frames between a pool and its agents: one TLS connection each, with large values inline."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence

from ..engines.segment import SMALL
from ..engines.servers import runtime
from .frames import TAKEN, Arriving, BrokenLink, LinkFrame, begin, pack_head
from .segments import LENT, MemoryFile, copy_segment

__all__ = ["BrokenLink", "Link", "LinkFrame", "words_of"]

_RECORD = 2**14  # bytes that TLS sends at once
_PIECE = 2**18  # bytes of a file that are in memory at once, and from which on a body is not copied
_TURN = 2**21  # bytes in one go: no link keeps a loop from the others

# seconds, seconds, count: where nothing is under way, a machine that is gone is noticed in 11 s
_IDLE, _INTERVAL, _PROBES = 3, 2, 4
_SILENCE = 10.0  # seconds without an answer, where something is under way
_TCP_INFO = struct.Struct("=3xB20xI28xI")  # of struct tcp_info: tcpi_probes, tcpi_unacked, tcpi_last_ack_recv


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
    waiting
        Bytes of memory that wait to be sent, without those of files.
    peer
        Address of the other end.
    lends
        Whether the process at the other end can open the memory files of this one: large ones are lent then, see
        `neighbours`.
    lender
        Number of the process at the other end, if this one can open its memory files.
    """

    def __init__(self, sock: ssl.SSLSocket, *, files: bool) -> None:
        self.peer = _tune(sock)
        sock.setblocking(False)
        self._sock = sock
        self._files = files
        self._owner = os.getpid()
        self._lock = threading.Lock()  # OpenSSL's objects are for one thread at a time
        self._outbox: deque[memoryview | MemoryFile] = deque()
        self._sending = memoryview(b"")  # what TLS was given; it wants the same again until all is gone
        self._scratch = memoryview(bytearray(_PIECE))
        self._buffer = memoryview(bytearray(_PIECE))
        self._inbox = bytearray()
        self._arriving: Arriving | None = None
        self.closed = self.more = False
        self.reason = ""
        self.received = self.waiting = 0
        self.lends = False
        self.lender: int | None = None
        self._lent: deque[MemoryFile] = deque()  # that the other end has not opened yet
        runtime.channels.add(self)

    def fileno(self) -> int:
        """Descriptor to wait on."""
        return self._sock.fileno()

    @property
    def address(self) -> str:
        """Address of this end; by it this machine is reached from where the other one is.

        Raises
        ------
        OSError
            If the connection has ended.
        """
        return str(self._sock.getsockname()[0])

    @property
    def pending(self) -> bool:
        """Whether something waits for the socket to take it."""
        return bool(self._sending or self._outbox)

    @property
    def partial(self) -> bool:
        """Whether a frame has begun to arrive and is not complete."""
        return bool(self._inbox or self._arriving)

    def send(
        self,
        kind: int,
        worker: int = 0,
        ident: int = 0,
        meta: bytes = b"",
        body: bytes = b"",
        segments: Sequence[tuple[int, int] | memoryview] = (),
        *,
        flush: bool = True,
    ) -> None:
        """Send a frame, or begin to; any thread may. Nothing happens on a link that has ended.

        Parameters
        ----------
        segments
            Descriptors of memory files with their sizes, or memory. Those up to `engines.segment.SMALL` bytes are
            copied at once and can be used again; a larger file stays open until it is sent and can be closed by its
            owner, larger memory must not change until nothing is pending. A file that has become shorter is filled up
            with zeros.
        flush
            False leaves the sending to the loop: for a thread that an interrupt may strike, as it does the main one.
            Nobody knows then whether TLS had sent a record, so the connection would be torn.

        Raises
        ------
        ValueError
            For more than the other end would take.
        OSError
            If no descriptor is left to keep a file, or a file cannot be read; nothing was sent.
        """
        sizes = [part.nbytes if isinstance(part, memoryview) else part[1] for part in segments]
        lent: list[MemoryFile] = []
        if self.lends:
            lends = [isinstance(part, tuple) and part[1] > SMALL for part in segments]
            sizes = [size | LENT if lend else size for size, lend in zip(sizes, lends, strict=True)]
        head = pack_head(kind, worker, ident, meta, len(body), sizes)
        if not segments and len(body) < _PIECE:  # as most are
            items: list[memoryview | MemoryFile] = [memoryview(head + body)]
        else:
            items = [memoryview(head), memoryview(body)]
            for segment, size in zip(segments, sizes, strict=True):
                if size & LENT and isinstance(segment, tuple):
                    lent.append(MemoryFile(*segment))
                    items.append(lent[-1].number)
                elif size <= SMALL:
                    items.append(copy_segment(segment))
                elif isinstance(segment, memoryview):
                    items.append(segment.cast("B"))
                else:
                    items.append(MemoryFile(*segment))
            items = [item for item in items if len(item)]
        with self._lock:
            if self.closed:
                return
            self._outbox.extend(items)
            self.waiting += sum([len(item) for item in items if isinstance(item, memoryview)])
            self._lent.extend(lent)
        if flush:
            self.flush()

    def flush(self) -> bool:
        """Send what is pending, as far as the socket takes it and for some megabytes; return whether that was all."""
        left = _TURN
        while left > 0:
            with self._lock:  # given up now and then, for a thread that receives
                if self.closed or not self.pending:
                    return True
                try:
                    left -= self._send_piece()
                except (ssl.SSLWantWriteError, ssl.SSLWantReadError, BlockingIOError):
                    return False
                except OSError as error:
                    self._stop_sending(error)
                    return True
        return not self.pending

    def _send_piece(self) -> int:
        """Send what is next, or the beginning of it; return the number of bytes."""
        if not self._sending:
            self._sending = self._next()
        piece, size = self._sending, 0
        try:
            while piece and size < _PIECE:
                sent = self._sock.send(piece)  # a record at the most
                piece = piece[sent:]
                size += sent
        finally:
            self._sending = piece
        return size

    def _next(self) -> memoryview:
        """What is to be sent next: small ones together, of a file a piece."""
        head = self._outbox[0]
        if isinstance(head, MemoryFile):
            piece = head.read(self._scratch)
            if not len(head):
                self._outbox.popleft()
                head.close()
            return piece
        self._outbox.popleft()
        self.waiting -= len(head)
        if not self._outbox:
            return head
        size, together = len(head), [head]
        while self._outbox and size < _RECORD:
            head = self._outbox[0]
            if isinstance(head, MemoryFile) or size + len(head) > _RECORD:
                break
            together.append(head)
            size += len(head)
            self.waiting -= len(head)
            self._outbox.popleft()
        return together[0] if len(together) == 1 else memoryview(b"".join(together))

    def _stop_sending(self, error: OSError) -> None:
        """Send no more. What had arrived can still be received; then it is seen that the connection has ended."""
        self.reason = self.reason or words_of(error)
        self._forget()
        with contextlib.suppress(OSError):  # of the socket alone: ssl's own would read on without TLS
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def _forget(self) -> None:
        for item in self._outbox:
            if isinstance(item, MemoryFile):
                item.close()
        self._outbox.clear()
        self.waiting = 0
        while self._lent:
            self._lent.popleft().close()
        self._sending = memoryview(b"")

    def receive(self) -> Iterator[LinkFrame]:
        """Frames that have arrived, up to some megabytes.

        Raises
        ------
        BrokenLink
            After the last good frame, if what follows it is none.
        """
        left = _TURN
        while True:
            while (frame := self._parse()) is not None:
                if frame.kind == TAKEN:
                    self._take_back(frame.ident)
                else:
                    yield frame
            if self.closed or left <= 0 or not (size := self._read()):
                break
            # A short record was most likely the last; if not, the descriptor is still readable.
            left = left - size if size >= _RECORD or self._arriving is not None or self._inbox else 0
        with self._lock:
            self.more = not self.closed and self._sock.pending() > 0

    def _read(self) -> int:
        """Read what is there, into one place; 0 if nothing is."""
        place, size = self._buffer if self._arriving is None else self._arriving.room, 0
        with self._lock:
            if self.closed:
                return 0
            try:
                while size < min(len(place), _PIECE):
                    size += (got := self._sock.recv_into(place[size:]))  # of one record
                    if not got:
                        self._ended("the other end closed the connection")
                    if got < _RECORD:
                        break
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                pass
            except OSError as error:
                self._ended(words_of(error))
        self.received += size
        if self._arriving is None:
            self._inbox += place[:size]
        else:
            self._arriving.advance(size)
        return size

    def _ended(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.closed = True
        self._forget()

    def _parse(self) -> LinkFrame | None:
        """The next frame, if all of it is there."""
        if self._arriving is None:
            if not self._inbox:
                return None
            begun = begin(self._inbox, self._buffer if self._files else None, self.lender)
            if not isinstance(begun, Arriving):
                return begun
            self._arriving = begun
        if not self._arriving.fill(self._inbox):
            return None
        frame, lent, self._arriving = self._arriving.frame(), self._arriving.lent, None
        if lent:
            self.send(TAKEN, ident=lent)
        return frame

    def _take_back(self, count: int) -> None:
        """Close files that the other end has opened."""
        with self._lock:
            if count > len(self._lent) and not self.closed:
                raise BrokenLink("it took what was not lent to it")
            while self._lent and count:
                self._lent.popleft().close()
                count -= 1

    def check(self) -> bool:
        """Whether the machine at the other end can be reached; to be called every few seconds. If not, it is `closed`.

        A machine that answers is reached, whatever the process there does: it may be stopped, or compute and read
        nothing for a minute, for which ``TCP_USER_TIMEOUT`` would end the connection.
        """
        if self._owner == os.getpid() and hasattr(socket, "TCP_INFO"):
            with self._lock:
                if not self.closed:
                    info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
                    probes, unanswered, silence = _TCP_INFO.unpack(info)
                    if silence > _SILENCE * 1000 and (unanswered or probes > 1):
                        self.reason = (
                            self.reason or f"its machine has not answered for {silence / 1000:.0f} s"
                        )
                        self.closed = True
                        self._forget()
        return not self.closed

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
        if self._arriving is not None:
            self._arriving.close()
            self._arriving = None
        self._inbox.clear()
        self._sock.close()


def _tune(sock: socket.socket) -> str:
    """Have small frames sent at once and a machine that is gone noticed; return the address of the other end."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", _IDLE), ("TCP_KEEPINTVL", _INTERVAL), ("TCP_KEEPCNT", _PROBES)):
        if (option := getattr(socket, name, None)) is not None:  # not every system has each
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    try:
        return str(sock.getpeername()[0])
    except OSError:
        return ""  # it has gone already, as the first read will say


def words_of(error: OSError) -> str:
    """What became of a connection, as a clause."""
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | BrokenPipeError):
        return "the other end closed the connection"
    return (error.strerror or str(error) or type(error).__name__).lower()
