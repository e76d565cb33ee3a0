"""Frames cut anywhere, sockets that are full, peers that are gone."""

import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_nb.engines.channel import Channel

FRAMES = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 2**64 - 1), st.binary(max_size=40), st.binary(max_size=40)),
    min_size=1,
    max_size=6,
)


@pytest.fixture
def ends():
    before = len(os.listdir("/proc/self/fd"))
    a, b = (Channel(sock, blocking=False) for sock in Channel.pair())
    yield a, b
    a.close()
    b.close()
    assert len(os.listdir("/proc/self/fd")) == before


def on_the_wire(frames):
    a, b = socket.socketpair()
    with a, b:
        channel = Channel(a, blocking=False)
        for kind, ident, meta, body in frames:
            channel.send(kind, ident, meta, body)
        return b.recv(2**16)


@settings(max_examples=60, deadline=None)
@given(FRAMES, st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_frames_come_whole_however_the_stream_is_cut(frames, cuts):
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


def test_every_frame_gets_its_own_descriptors(ends):
    ours, theirs = ends
    pipes = [os.pipe() for _ in range(3)]
    for n, (read, _) in enumerate(pipes):
        ours.send(n, fds=[read] * n)
    frames = []
    while len(frames) < 3:
        frames += theirs.receive()
    assert [len(frame.fds) for frame in frames] == [0, 1, 2]
    os.write(pipes[2][1], b"two")
    assert os.read(frames[2].fds[0], 9) == b"two"
    for fd in {fd for pipe in pipes for fd in pipe} | {fd for frame in frames for fd in frame.fds}:
        os.close(fd)


def test_a_full_socket_blocks_nobody_and_order_is_kept(ends):
    ours, theirs = ends
    sent = 0
    while not ours.pending:
        ours.send(1, sent, body=bytes(10_000))
        sent += 1
    ours.send_many(2, [(sent, b"small"), (sent + 1, b"")])
    assert not ours.flush()
    got = []
    while ours.pending or len(got) < sent + 2:
        got += [frame.ident for frame in theirs.receive()]
        ours.flush()
    assert got == list(range(sent + 2))
    assert ours.flush()


def test_what_waits_for_a_peer_that_is_gone_is_told_once_more_is_tried(ends):
    ours, theirs = ends
    ours.send(1, body=bytes(2**22))
    theirs.close()
    with pytest.raises(ConnectionError):
        ours.flush()
    assert ours.pending


def test_a_peer_that_left_data_unread_reads_as_the_end(ends):
    ours, theirs = ends
    ours.send(1)
    theirs.send(2)
    theirs.close()
    assert [frame.kind for frame in ours.receive()] == [2]
    assert list(ours.receive()) == []  # ECONNRESET
    assert ours.closed
