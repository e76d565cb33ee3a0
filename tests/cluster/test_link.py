"""Frames over TLS between a pool and an agent."""

import ctypes
import errno
import gc
import mmap
import os
import resource
import signal
import socket
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from links import Pool, arrive, contents, drop, memory_file, noise, pool_of_links, serve, until

from mgpu_nb.cluster import frames as wire
from mgpu_nb.cluster import link as link_module
from mgpu_nb.cluster import segments
from mgpu_nb.cluster.door import dial
from mgpu_nb.cluster.frames import pack_head
from mgpu_nb.cluster.link import BrokenLink, Link, LinkFrame
from mgpu_nb.engines.pages import HUGE, WORTH
from mgpu_nb.engines.segment import SMALL

pytestmark = pytest.mark.usefixtures("small_heap")

SIZES = [0, 1, 63, 2**14, SMALL - 1, SMALL, SMALL + 1, 5 * 2**20 + 3, WORTH + HUGE + 5]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with pool_of_links() as pool:
        yield pool


@pytest.fixture
def ends(pool: Pool) -> Iterator[tuple[Link, Link]]:
    """The pool's end and the agent's; nothing of them is open afterwards."""
    pool.door.open()
    gc.collect()
    before = psutil.Process().num_fds()
    ours, theirs = pool.connect()
    yield ours, theirs
    ours.close()
    theirs.close()
    gc.collect()
    assert psutil.Process().num_fds() <= before  # fewer: what other tests have left may end at any time


@pytest.mark.parametrize("size", SIZES)
def test_a_segment_of_every_size_comes_as_it_was_both_ways(ends: tuple[Link, Link], size: int) -> None:
    data = noise(size)
    for sender, receiver in (ends, ends[::-1]):
        fd = memory_file(data)
        sender.send(1, 2, 3, b"meta", b"body", [(fd, size), memoryview(data)])
        if size <= SMALL:
            os.pwrite(fd, b"?" * size, 0)  # it is used for the next value
        os.close(fd)
        (frame,) = arrive(receiver, 1, sender)
        assert frame[:5] == (1, 2, 3, b"meta", b"body")
        assert contents(frame) == [data, data]


def test_an_agent_has_segments_in_files_and_a_pool_in_memory(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    for size in (100, SMALL + 100):
        theirs.send(1, segments=[memoryview(noise(size))])
        (frame,) = arrive(ours, 1, theirs)
        (memory,) = frame.memory
        assert not frame.fds
        assert not memory.readonly
        assert ctypes.addressof(ctypes.c_char.from_buffer(memory)) % 64 == 0
        ours.send(2, segments=[memory])
        (frame,) = arrive(theirs, 1, ours)
        (fd,) = frame.fds
        assert not frame.memory
        assert not os.get_inheritable(fd)
        assert str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("/memfd:")
        assert os.pread(fd, size + 1, 0) == bytes(memory)
        os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 2**18 - 1, 2**18, 3 * 2**20])
def test_meta_and_body_of_every_size(ends: tuple[Link, Link], size: int) -> None:
    data = noise(size)
    ends[0].send(255, 2**64 - 1, 2**64 - 1, data, data)
    ends[0].send(0)
    first, second = arrive(ends[1], 2, ends[0])
    assert first == (255, 2**64 - 1, 2**64 - 1, data, data, (), ())
    assert second == (0, 0, 0, b"", b"", (), ())


def test_every_segment_of_a_frame_keeps_its_place(ends: tuple[Link, Link]) -> None:
    sizes = [3, 0, SMALL + 7, 2**15, 1, SMALL + 1, 0, 9]
    parts = [noise(size) for size in sizes]
    for sender, receiver in (ends, ends[::-1]):
        sender.send(1, segments=[memoryview(part) for part in parts])
        sender.send(2)
        first, second = arrive(receiver, 2, sender)
        assert contents(first) == parts
        assert second.kind == 2


def shrink_buffers(*links: Link) -> None:
    for link in links:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            link._sock.setsockopt(socket.SOL_SOCKET, option, 2**15)


def test_what_a_small_socket_does_not_take_waits_and_nothing_is_lost(ends: tuple[Link, Link]) -> None:
    shrink_buffers(*ends)
    ours, theirs = ends
    sent = [noise(size) for size in (5, 100_000, SMALL + 11, 2**14)]
    for link in ends:
        for n, data in enumerate(sent):
            link.send(1, n, body=data, segments=[memoryview(data)])
        assert link.pending
        assert not link.flush()
    frames: dict[Link, list[LinkFrame]] = {ours: [], theirs: []}
    serve(
        lambda: all(len(found) == len(sent) for found in frames.values()),
        {link: found.append for link, found in frames.items()},
    )
    for found in frames.values():
        assert [frame.body for frame in found] == sent
        assert [contents(frame) for frame in found] == [[data] for data in sent]
    until(lambda: not ours.pending and not theirs.pending, ours, theirs)
    assert ours.flush()


def test_the_bytes_that_wait_are_known(ends: tuple[Link, Link]) -> None:
    shrink_buffers(*ends)
    ours, theirs = ends
    assert ours.waiting == 0
    for size in (10, 2**21, 2**14):
        ours.send(1, body=bytes(size), flush=False)
    assert 10 + 2**21 + 2**14 < ours.waiting < 10 + 2**21 + 2**14 + 1000
    before = ours.waiting
    ours.flush()
    assert ours.waiting < before
    until(lambda: not ours.pending, ours, theirs)
    assert ours.waiting == 0
    theirs.send(1, body=bytes(2**21), flush=False)
    theirs.close()
    assert theirs.waiting == 0


def test_however_many_files_wait_little_memory_is_used_and_all_are_closed(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    data = noise(4 * 2**20)
    fd = memory_file(data)
    before = psutil.Process().num_fds()
    tracemalloc.start()
    try:
        for n in range(20):
            ours.send(1, n, segments=[(fd, len(data))])
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()
    assert psutil.Process().num_fds() > before
    os.close(fd)
    idents = []

    def take(frame: LinkFrame) -> None:
        idents.append(frame.worker)
        assert contents(frame) == [data]

    serve(lambda: len(idents) == 20, {ours: drop, theirs: take})
    assert idents == list(range(20))
    assert psutil.Process().num_fds() == before - 1


def test_a_link_that_is_closed_closes_the_files_that_wait(ends: tuple[Link, Link]) -> None:
    fd = memory_file(noise(SMALL * 4))
    before = psutil.Process().num_fds()
    for _ in range(3):
        ends[0].send(1, segments=[(fd, SMALL * 4)])
    ends[0].close()
    assert psutil.Process().num_fds() == before - 1
    assert not ends[0].pending
    ends[0].send(1, segments=[(fd, SMALL * 4)])
    assert psutil.Process().num_fds() == before - 1
    os.close(fd)


def test_what_is_left_to_the_loop_is_sent_by_it(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    fd = memory_file(noise(SMALL + 1))
    ours.send(1, body=b"first", flush=False)
    ours.send(2, segments=[(fd, SMALL + 1)], flush=False)
    os.close(fd)
    assert ours.pending
    assert not list(theirs.receive())
    assert theirs.received == 0
    first, second = arrive(theirs, 2, ours)
    assert (first.body, len(*contents(second))) == (b"first", SMALL + 1)


def test_a_file_that_became_shorter_is_filled_up(ends: tuple[Link, Link]) -> None:
    data = noise(2 * SMALL)
    for size in (1000, 2 * SMALL):
        fd = memory_file(data[: size // 2])
        ends[0].send(1, segments=[(fd, size)])
        ends[0].send(2)
        os.close(fd)
        first, second = arrive(ends[1], 2, ends[0])
        assert contents(first) == [data[: size // 2] + bytes(size - size // 2)]
        assert second.kind == 2


def test_without_a_descriptor_left_one_value_is_lost_and_not_the_link(ends: tuple[Link, Link]) -> None:
    data = noise(SMALL + 5)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    ends[0].send(1, segments=[memoryview(data)] * 2)
    until(lambda: not ends[0].pending or ends[1].partial, *ends)
    frames: list[LinkFrame] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        while not frames:
            ends[0].flush()
            frames += ends[1].receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert frames[0].fds[-1] == -1
    for fd in frames[0].fds:
        if fd >= 0:
            os.close(fd)
    ends[0].send(2, segments=[memoryview(data)])
    (frame,) = arrive(ends[1], 1, ends[0])
    assert contents(frame) == [data]


def test_without_memory_left_one_value_is_lost_and_not_the_link(
    ends: tuple[Link, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = ends

    def none_left(size: int) -> memoryview:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(segments, "_aligned", none_left)
        theirs.send(1, segments=[memoryview(noise(3 * 2**20 + 7)), memoryview(b"small")])
        (lost,) = arrive(ours, 1, theirs)
    assert [len(view) for view in lost.memory] == [0, 0]
    theirs.send(2, segments=[memoryview(data := noise(3 * 2**20))])
    (good,) = arrive(ours, 1, theirs)
    assert (good.kind, bytes(good.memory[0])) == (2, data)


def test_a_system_without_large_pages_has_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert len(segments.MemoryPlace(2**24).view) == 2**24


def test_without_a_descriptor_left_nothing_of_a_frame_is_sent(ends: tuple[Link, Link]) -> None:
    fd = memory_file(noise(SMALL + 5))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        with pytest.raises(OSError, match=r"Too many open files|Invalid argument"):
            ends[0].send(1, segments=[(fd, SMALL + 5)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(fd)
    ends[0].send(2)
    assert [frame.kind for frame in arrive(ends[1], 1)] == [2]


def test_one_turn_is_bounded_and_says_if_something_is_left(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    for n in range(100):
        theirs.send(1, n, body=bytes(10))
    assert [frame.worker for frame in arrive(ours, 100, theirs)] == list(range(100))
    theirs.send(1, segments=[memoryview(noise(40 * 2**20))])
    turns = count()
    found: list[LinkFrame] = []
    serve(lambda: next(turns) and found, {ours: found.append, theirs: drop})
    assert next(turns) > 10


def test_what_was_decrypted_already_is_not_left_lying(
    ends: tuple[Link, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One record with the end of a segment and the next frame: the socket has nothing more to tell of it."""
    ours, theirs = ends
    data = noise(20_000)
    head = pack_head(1, 2, 3, b"", 0, [len(data)])
    theirs._sock.send(head + data[:15_000])
    until(lambda: ours.partial, ours)
    monkeypatch.setattr(link_module, "_TURN", 1)  # it comes back after every read
    theirs._sock.send(data[15_000:] + pack_head(4, 5, 6, b"", 0, []))
    found: list[LinkFrame] = []
    left = []
    while len(found) < 2:
        found += ours.receive()
        left.append(ours.more)
    assert [frame.kind for frame in found] == [1, 4]
    assert any(left)
    assert not ours.more


def test_a_frame_that_comes_byte_by_byte(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    data = pack_head(1, 2, 3, b"me", 2, [3, 0, 4]) + b"boabcdefg"
    for arrived, byte in enumerate(data[:-1], 1):
        theirs._sock.send(bytes([byte]))
        assert not until(lambda: ours.received == arrived, ours)[ours]  # noqa: B023
    assert ours.partial
    theirs._sock.send(data[-1:])
    (frame,) = arrive(ours, 1)
    assert frame[:5] == (1, 2, 3, b"me", b"bo")
    assert [bytes(view) for view in frame.memory] == [b"abc", b"", b"defg"]
    assert not ours.partial
    assert ours.received == len(data)


Sent = tuple[int, int, int, bytes, bytes, list[bytes]]
WORD = st.integers(0, 2**64 - 1)
FRAMES = st.lists(
    st.tuples(
        st.integers(0, 255).filter(lambda kind: kind != wire.TAKEN), WORD, WORD,
        st.binary(max_size=40), st.binary(max_size=40),
        st.lists(st.binary(max_size=60), max_size=8),
    ),
    min_size=1,
    max_size=6,
)  # fmt: skip


@settings(max_examples=30)
@given(frames=FRAMES, cuts=st.lists(st.integers(1, 120), min_size=1, max_size=8))
def test_frames_come_whole_however_the_stream_is_cut(
    shared: tuple[Link, Link], frames: list[Sent], cuts: list[int]
) -> None:
    stream = b"".join(
        pack_head(kind, worker, ident, meta, len(body), [*map(len, parts)]) + body + b"".join(parts)
        for kind, worker, ident, meta, body, parts in frames
    )
    for sender, receiver in (shared, shared[::-1]):
        left, turn = stream, 0
        got: list[LinkFrame] = []
        arrived = receiver.received
        while left:
            size = sender._sock.send(left[: cuts[turn % len(cuts)]])
            left, turn, arrived = left[size:], turn + 1, arrived + size
            while receiver.received < arrived:
                got += receiver.receive()
        assert [frame[:5] for frame in got] == [tuple(sent[:5]) for sent in frames]
        assert [contents(frame) for frame in got] == [sent[5] for sent in frames]


@pytest.fixture(scope="module")
def shared(pool: Pool) -> Iterator[tuple[Link, Link]]:
    ours, theirs = pool.connect()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_many_threads_send_while_one_receives(ends: tuple[Link, Link]) -> None:
    """Each keeps its order, whatever the others do, in both directions at once."""
    shrink_buffers(*ends)
    threads, frames = 6, 80
    parts = [noise(size) for size in (0, 10, 30_000, SMALL + 3)]

    def send(link: Link, thread: int) -> None:
        for n in range(frames):
            part = parts[0] if n % 10 else parts[(n // 10) % 4]
            link.send(thread, n, ident=len(part), body=bytes(n), segments=[memoryview(part)] if part else ())

    running = [
        threading.Thread(target=send, args=(link, thread)) for link in ends for thread in range(threads)
    ]
    for thread in running:
        thread.start()
    found: dict[Link, list[LinkFrame]] = {link: [] for link in ends}
    serve(
        lambda: all(len(got) == threads * frames for got in found.values()),
        {link: got.append for link, got in found.items()},
    )
    for thread in running:
        thread.join()
    for got in found.values():
        for number in range(threads):
            own = [frame for frame in got if frame.kind == number]
            assert [frame.worker for frame in own] == list(range(frames))
            assert all(frame.body == bytes(frame.worker) for frame in own)
        for frame in got:
            assert contents(frame) == ([parts[[*map(len, parts)].index(frame.ident)]] if frame.ident else [])


# The end of a connection.


def test_the_end_is_told_after_all_that_had_come(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    theirs.send(1, body=b"last")
    theirs.close()
    found = until(lambda: ours.closed, ours)[ours]
    assert [frame.body for frame in found] == [b"last"]
    assert ours.reason == "the other end closed the connection"
    assert theirs.reason == ""
    ours.send(2)
    assert ours.flush()
    assert not ours.pending
    assert not ours.check()


@pytest.mark.parametrize("size", [100, 2**14 - 34, 2**15 - 34, 2**18 - 34])
def test_the_end_in_the_same_read_as_the_last_frame(ends: tuple[Link, Link], size: int) -> None:
    ours, theirs = ends
    assert wire._HEADER.size == 34
    theirs.send(1, body=bytes(size))
    until(lambda: not theirs.pending, theirs)
    theirs.close()
    frames = until(lambda: ours.closed, ours)[ours]
    assert [len(frame.body) for frame in frames] == [size]


def test_what_had_come_is_received_after_a_send_that_failed(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    theirs.send(1, body=b"last")
    ours.send(0, body=b"never read")
    theirs.close()  # a reset, for something is unread
    for _ in range(3):
        ours.send(2, segments=[memoryview(noise(SMALL + 1))])  # raises nothing
    found = until(lambda: ours.closed, ours)[ours]
    assert [frame.body for frame in found] == [b"last"]
    assert ours.reason in ("the other end closed the connection", "connection reset by peer")
    assert not ours.pending


def agent_in_fork(pool: Pool, size: int) -> tuple[int, Link]:
    """An agent of another process that sends a segment without end."""
    invitation = pool.invitation
    pid = os.fork()
    if not pid:
        try:
            link, _ = dial(invitation, {})
            link._sock.setblocking(True)
            link._sock.sendall(pack_head(1, 0, 0, b"", 0, [size]))
            while True:
                link._sock.sendall(bytes(2**16))
        finally:
            os._exit(1)
    return pid, pool.links.get(timeout=30)[0]


@pytest.mark.parametrize("files", [False, True])
def test_a_peer_that_is_killed_within_a_segment(pool: Pool, files: bool) -> None:
    pool.door.open()
    before = psutil.Process().num_fds()
    pid, link = agent_in_fork(pool, 2**34)
    link._files = files
    until(lambda: link.received > 2**22, link)
    assert psutil.Process().num_fds() == before + 1 + files
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not until(lambda: link.closed, link)[link]
    assert link.partial
    assert link.reason
    link.close()
    assert psutil.Process().num_fds() == before


@pytest.mark.slow
def test_a_peer_that_is_stopped_is_reached_and_one_with_full_buffers_too(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine answers. TCP_USER_TIMEOUT would end the connection."""
    monkeypatch.setattr(link_module, "_SILENCE", 0.3)
    pid, link = agent_in_fork(pool, 2**34)
    try:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        while True:  # what it had sent, which nobody reads from here on
            before = link.received
            list(link.receive())
            if link.received == before:
                break
        link.send(1, segments=[memoryview(bytes(2**25))])
        assert link.pending
        silences = []
        for _ in range(2000):
            assert link.check(), link.reason
            info = link._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60)
            silences.append(struct.unpack("=56xI", info)[0])
            if max(silences) > 700:
                break
            threading.Event().wait(0.01)
        assert max(silences) > 700  # so it was silent, as one is who is asked more and more rarely
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        link.close()


CUT_OFF = """
import ctypes, fcntl, os, socket, struct, sys, threading, time

if ctypes.CDLL(None, use_errno=True).unshare(0x10000000 | 0x40000000):  # CLONE_NEWUSER, CLONE_NEWNET
    print("not allowed"); sys.exit()

def loopback(up):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh22x", b"lo", up))  # SIOCSIFFLAGS, IFF_UP

loopback(1)
from links import pool_of_links
with pool_of_links() as pool:
    ours, theirs = pool.connect()
    if sys.argv[1] == "busy":
        theirs.send(1)
    loopback(0)
    begin = time.monotonic()
    if sys.argv[1] == "busy":
        ours.send(1)
    while ours.check() and not ours.closed and time.monotonic() < begin + 30:
        list(ours.receive())
        time.sleep(0.05)
    print(round(time.monotonic() - begin), ours.closed, ours.reason)
    theirs.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_machine_that_is_cut_off_is_noticed(state: str) -> None:
    import subprocess
    import sys

    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", CUT_OFF, state],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.stdout.startswith("not allowed"):
        pytest.skip("no network of its own is allowed here")
    assert done.returncode == 0, done.stderr
    seconds, closed, reason = done.stdout.split(maxsplit=2)
    assert (closed, bool(reason)) == ("True", True), done.stdout
    assert 5 < int(seconds) <= 20, done.stdout


def test_a_fork_closes_its_copy_alone(pool: Pool) -> None:
    """Else the other end would take the fork for this process."""
    ours, theirs = pool.connect()
    read, write = os.pipe()
    with ours._lock:  # a thread that sends meanwhile
        pid = os.fork()
    if not pid:
        os.close(write)
        os.read(read, 1)  # until this process is done
        os._exit(0)
    ours.send(1)
    assert [frame.kind for frame in arrive(theirs, 1)] == [1]
    ours.close()
    until(lambda: theirs.closed, theirs)
    theirs.close()
    os.close(write)
    os.close(read)
    assert os.waitpid(pid, 0)[1] == 0


# What is no frame.

GOOD = pack_head(1, 2, 7, b"meta", 4, []) + b"body"


def header(count: int = 0, meta: int = 0, body: int = 0, mark: bytes = GOOD[:4]) -> bytes:
    return wire._HEADER.pack(mark, 1, count, meta, 0, 0, body)


@pytest.mark.parametrize(
    "garbage",
    [
        b"x",
        bytes(64),
        GOOD[:1] + b"junk",
        header(mark=b"\xf5mgn"),
        header(count=9),
        header(meta=2**30 + 1),
        header(body=2**40 + 1),
        header(body=2**64 - 1),
        header(count=1) + struct.pack("!Q", 2**40 + 1),
        header(count=8) + struct.pack("!8Q", *[0] * 7, 2**63),
    ],
)
def test_what_is_no_frame_is_told_after_the_good_ones(ends: tuple[Link, Link], garbage: bytes) -> None:
    ours, theirs = ends
    theirs._sock.send(GOOD + garbage)
    found: list[LinkFrame] = []
    with pytest.raises(BrokenLink):
        serve(lambda: False, {ours: found.append})
    assert [frame[:5] for frame in found] == [(1, 2, 7, b"meta", b"body")]
    with pytest.raises(BrokenLink):
        list(ours.receive())


@pytest.mark.parametrize(
    ("arguments", "segments"),
    [({}, [memoryview(b"")] * 9), ({}, [(0, 2**40 + 1)]), ({"meta": bytes(2**30 + 1)}, [])],
)
def test_what_the_other_end_would_not_take_is_not_sent(
    ends: tuple[Link, Link], arguments: dict[str, bytes], segments: list[tuple[int, int] | memoryview]
) -> None:
    with pytest.raises(ValueError, match="too much"):
        ends[0].send(1, **arguments, segments=segments)  # type: ignore[arg-type]
    ends[0].send(2)
    assert [frame.kind for frame in arrive(ends[1], 1)] == [2]


@settings(max_examples=25)
@given(pieces=st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=5), marked=st.booleans())
def test_any_bytes_are_frames_or_told(pool: Pool, pieces: list[bytes], marked: bool) -> None:
    ours, theirs = pool.connect()
    try:
        for piece in pieces:
            data = GOOD[:4] + piece if marked else piece
            end = ours.received + theirs._sock.send(data)
            while ours.received < end:
                for frame in ours.receive():
                    contents(frame)
    except BrokenLink:
        pass
    ours.close()
    theirs.close()
