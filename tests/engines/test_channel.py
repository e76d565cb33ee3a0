"""Frames over a socket, with descriptors."""

import os
import resource
import socket
import struct
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_nb.engines import payload
from mgpu_nb.engines.channel import BrokenChannel, Channel, Frame


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    before = psutil.Process().num_fds()
    a, b = (Channel(sock, blocking=False) for sock in Channel.pair())
    yield a, b
    a.close()
    b.close()
    assert psutil.Process().num_fds() == before


def drain(channel: Channel) -> list[tuple[bytes | int, ...]]:
    return [tuple(frame[:4]) for frame in channel.receive()]


def test_frames_arrive_in_order_and_whole(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    sent = [(1, 7, b"", b""), (2, 2**63, b"meta", b"body"), (3, 0, b"", b"x" * 1000)]
    for kind, ident, meta, body in sent:
        ours.send(kind, ident, meta, body)
    ours.send_many(9, [(n, str(n).encode()) for n in range(50)])
    assert drain(theirs) == sent + [(9, n, b"", str(n).encode()) for n in range(50)]
    assert drain(theirs) == []
    assert not theirs.closed


def test_a_frame_that_comes_in_pieces() -> None:
    a, b = socket.socketpair()
    with a, b:
        sender = Channel(socket.socketpair()[0], blocking=False)
        pieces = bytearray()

        class Sink:
            def send(self, data: bytes) -> int:
                pieces.extend(data)
                return len(data)

        sender._sock = Sink()  # type: ignore[assignment]
        sender.send(5, 6, b"me", b"bo")
        channel = Channel(b, blocking=False)
        for byte in pieces[:-1]:
            a.send(bytes([byte]))
            assert drain(channel) == []
        a.send(pieces[-1:])
        assert drain(channel) == [(5, 6, b"me", b"bo")]


def test_descriptors_travel_and_are_not_inherited(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    before = psutil.Process().num_fds()
    read, write = os.pipe()
    ours.send(1, fds=[read, write])
    ours.send(2, body=b"none")
    first, second = *theirs.receive(), *theirs.receive()  # descriptors end a read
    assert len(first.fds) == 2
    assert second.fds == ()
    os.write(first.fds[1], b"through")
    assert os.read(read, 9) == b"through"
    assert not any(os.get_inheritable(fd) for fd in first.fds)
    for fd in (read, write, *first.fds):
        os.close(fd)
    assert psutil.Process().num_fds() == before


def test_what_the_socket_does_not_take_waits_and_nothing_is_lost(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    body = os.urandom(3 * 2**20)
    read, write = os.pipe()
    ours.send(1, 1, b"", body, [write])
    ours.send(2, 2, b"after", b"")
    assert ours.pending
    frames: list[Frame] = []
    while not frames or frames[-1].kind != 2:
        ours.flush()
        frames += theirs.receive()
    assert frames[0].body == body
    assert frames[1].meta == b"after"
    assert len(frames[0].fds) == 1
    assert not ours.pending
    for fd in (read, write, *frames[0].fds):
        os.close(fd)


def test_the_end_of_the_other_side(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    ours.send(1)
    ours.shut()
    assert drain(theirs) == [(1, 0, b"", b"")]
    assert drain(theirs) == []
    assert theirs.closed
    theirs.close()
    with pytest.raises(OSError, match="Broken pipe"):
        ours.send(1)


def test_a_blocking_channel_waits_for_one() -> None:
    a, b = Channel.pair()
    with a, b:
        Channel(a, blocking=True).send(3, 4)
        assert next(Channel(b, blocking=True).receive())[:2] == (3, 4)


def test_a_channel_closes_descriptors_that_nobody_took() -> None:
    before = psutil.Process().num_fds()
    ours, theirs = (Channel(end, blocking=False) for end in Channel.pair())
    read, write = os.pipe()
    ours.send(1, body=os.urandom(3 * 2**20), fds=[write])
    assert list(theirs.receive()) == []
    for close in (ours.close, theirs.close):
        close()
    os.close(read)
    os.close(write)
    assert psutil.Process().num_fds() == before


def test_without_a_descriptor_left_one_value_is_lost_and_not_the_channel() -> None:
    ours, theirs = (Channel(end, blocking=False) for end in Channel.pair())
    segment = payload.dumps(np.ones(2**16))
    ours.send(1, 1, body=segment.body, fds=segment.fds)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        frames = list(theirs.receive())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with pytest.raises(OSError, match="descriptor"):
        payload.loads(frames[0].body, frames[0].fds)
    ours.send(2, 2, body=segment.body, fds=segment.fds)
    (frame,) = theirs.receive()
    assert payload.loads(frame.body, frame.fds).sum() == 2**16
    ours.close()
    theirs.close()


Sent = tuple[int, int, bytes, bytes]
FRAMES = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 2**64 - 1), st.binary(max_size=40), st.binary(max_size=40)),
    min_size=1,
    max_size=6,
)


def on_the_wire(frames: list[Sent]) -> bytes:
    a, b = socket.socketpair()
    with a, b:
        channel = Channel(a, blocking=False)
        for kind, ident, meta, body in frames:
            channel.send(kind, ident, meta, body)
        return b.recv(2**16)


@settings(max_examples=60)
@given(FRAMES, st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_frames_come_whole_however_the_stream_is_cut(frames: list[Sent], cuts: list[int]) -> None:
    stream, got, turn = on_the_wire(frames), [], 0
    a, b = socket.socketpair()
    with a, b:
        channel = Channel(b, blocking=False)
        while stream:
            size = cuts[turn % len(cuts)]
            a.send(stream[:size])
            got += [tuple(frame[:4]) for frame in channel.receive()]
            stream, turn = stream[size:], turn + 1
    assert got == frames


def test_every_frame_gets_its_own_descriptors(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    pipes = [os.pipe() for _ in range(3)]
    for n, (read, _) in enumerate(pipes):
        ours.send(n, fds=[read] * n)
    frames: list[Frame] = []
    while len(frames) < 3:
        frames += theirs.receive()
    assert [len(frame.fds) for frame in frames] == [0, 1, 2]
    os.write(pipes[2][1], b"two")
    assert os.read(frames[2].fds[0], 9) == b"two"
    for fd in {fd for pipe in pipes for fd in pipe} | {fd for frame in frames for fd in frame.fds}:
        os.close(fd)


def test_a_full_socket_blocks_nobody_and_order_is_kept(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    sent = 0
    while not ours.pending:
        ours.send(1, sent, body=bytes(10_000))
        sent += 1
    ours.send_many(2, [(sent, b"small"), (sent + 1, b"")])
    assert not ours.flush()
    got: list[int] = []
    while ours.pending or len(got) < sent + 2:
        got += [frame.ident for frame in theirs.receive()]
        ours.flush()
    assert got == list(range(sent + 2))
    assert ours.flush()


def test_what_waits_for_a_peer_that_is_gone_is_told_once_more_is_tried(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    ours.send(1, body=bytes(2**22))
    theirs.close()
    with pytest.raises(ConnectionError):
        ours.flush()
    assert ours.pending


def test_a_peer_that_left_data_unread_reads_as_the_end(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    ours.send(1)
    theirs.send(2)
    theirs.close()
    assert [frame.kind for frame in ours.receive()] == [2]
    assert list(ours.receive()) == []  # ECONNRESET
    assert ours.closed


# What is no frame.


def written(data: bytes, fds: list[int] | None = None) -> Channel:
    """The reading end of a connection to which somebody wrote these bytes."""
    a, b = Channel.pair()
    with a:
        socket.send_fds(a, [data], fds or [])
        return Channel(b, blocking=False)


GOOD = on_the_wire([(1, 7, b"meta", b"body")])


@pytest.mark.parametrize(
    "garbage",
    [
        b"x",
        bytes(64),
        GOOD[:1] + b"junk",
        GOOD[:4] + struct.pack("!BBIQQ", 32, 3, 0, 0, 1),  # descriptors that do not come
        GOOD[:4] + struct.pack("!BBIQQ", 32, 0, 0, 2**62, 1),  # a body that cannot come
        GOOD[:4] + struct.pack("!BBIQQ", 32, 0, 2**32 - 1, 0, 1),
    ],
    ids=["a byte", "zeros", "mark", "descriptors", "body", "meta"],
)
def test_what_is_no_frame_is_told_after_the_good_ones(garbage: bytes) -> None:
    channel = written(GOOD + garbage)
    frames = channel.receive()
    assert next(frames)[:4] == (1, 7, b"meta", b"body")
    with pytest.raises(BrokenChannel):
        next(frames)
    with pytest.raises(BrokenChannel):
        list(channel.receive())
    channel.close()


def test_a_frame_that_stopped_is_known() -> None:
    channel = written(GOOD[:-1])
    assert list(channel.receive()) == []
    assert (channel.partial, channel.received) == (True, len(GOOD) - 1)
    channel.close()


def test_descriptors_that_nobody_announced_are_told_and_closed() -> None:
    before = psutil.Process().num_fds()
    read, write = os.pipe()
    channel = written(GOOD, [read, write])
    with pytest.raises(BrokenChannel, match="announced"):
        list(channel.receive())
    channel.close()
    os.close(read)
    os.close(write)
    assert psutil.Process().num_fds() == before


@settings(max_examples=100)
@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6), st.booleans())
def test_any_bytes_are_frames_or_told(pieces: list[bytes], marked: bool) -> None:
    a, b = Channel.pair()
    with a, b:
        channel = Channel(b, blocking=False)
        for piece in pieces:
            a.send(GOOD[:4] + piece if marked else piece)
            try:
                list(channel.receive())
            except BrokenChannel:
                break
            assert channel.partial
