"""A node and what goes there."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from links import Pool, drop, noise, pool_of_links, serve

from mgpu_nb.cluster.facts import facts_of_this_node
from mgpu_nb.cluster.link import Link
from mgpu_nb.cluster.messages import Kind
from mgpu_nb.cluster.node import Node, RemoteWorker
from mgpu_nb.engines.payload import dumps
from mgpu_nb.engines.protocol import Message
from mgpu_nb.hardware import nodes
from mgpu_nb.scheduler.loop import Loop

pytestmark = pytest.mark.usefixtures("small_heap")


class Events:
    """Nobody hears of what becomes of workers."""

    def __getattr__(self, name: str) -> Any:
        return drop


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with pool_of_links() as pool:
        yield pool


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def ends(pool: Pool, loop: Loop) -> Iterator[tuple[Node, Link]]:
    """A node, and its agent's end of the link."""
    pool.door.open()
    ours, theirs = pool.connect()
    facts = facts_of_this_node("n1")
    node = Node("n1", ours, facts, loop, Events(), lambda node, frame: None, lambda node, reason: None)
    node.attend({}, None)
    turn(loop)
    serve(lambda: theirs.received, {theirs: drop})
    yield node, theirs
    if not node.gone:
        node.leave()
    theirs.close()
    assert nodes.all_nodes() == []


def turn(loop: Loop) -> None:
    """Have a loop do what is due, and not sleep."""
    loop.call_soon_threadsafe(lambda: None)
    loop.run_once()
    loop.run_pending()


def test_what_goes_to_a_node_in_a_turn_goes_at_once(
    ends: tuple[Node, Link], loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, theirs = ends
    pieces = []
    send = Link._send_piece
    monkeypatch.setattr(Link, "_send_piece", lambda link: pieces.append(link) or send(link))  # type: ignore[func-returns-value]
    before = theirs.received
    for n in range(8):
        node.send(Kind.STOP, 7, n)
    assert not pieces
    turn(loop)
    assert pieces == [node.link]
    frames: list[int] = []
    serve(lambda: len(frames) == 8, {theirs: lambda frame: frames.append(frame.ident)})
    assert frames == list(range(8))
    assert theirs.received > before


def test_a_node_that_has_taken_all_does_not_wake_the_loop_again(ends: tuple[Node, Link], loop: Loop) -> None:
    """What waited for the socket goes with a later message: the loop would wait no more until it takes some."""
    node, theirs = ends
    node.link.send(Kind.STOP, 7, 1, segments=[memoryview(noise(2**24))], flush=False)
    node.flush_later()
    turn(loop)
    assert node.link.pending
    frames: list[int] = []

    def take_all() -> bool:
        node.link.flush()  # as a message does that is sent meanwhile
        return bool(frames)

    serve(take_all, {theirs: lambda frame: frames.append(frame.ident)})
    assert not node.link.pending
    node.send(Kind.STOP, 7, 2)
    done: list[int] = []
    loop.call_later(0.2, lambda: done.append(1))
    before = loop.wakeups
    while not done:
        loop.run_once()
    assert loop.wakeups - before < 20


def test_an_answer_goes_alone(ends: tuple[Node, Link], loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker waits for it and takes no message that comes before a call: a cell was run meanwhile, say."""
    node, theirs = ends
    worker = RemoteWorker(node)
    monkeypatch.setattr(worker, "_sent", SimpleNamespace(missing=lambda *_: [(0, b"a cell")]))
    worker.answer(7, dumps((True, 1)))
    turn(loop)
    frames: list[tuple[int, int]] = []
    serve(lambda: frames, {theirs: lambda frame: frames.append((frame.kind, frame.ident))})
    assert frames == [(Message.ANSWER, 7)]


def test_a_worker_whose_start_fails_is_left_by_its_node_too(
    ends: tuple[Node, Link], loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, theirs = ends

    def begin(worker: RemoteWorker, *_: object) -> None:
        node.link.send(Kind.START, worker.number)
        raise OSError("no descriptor is left")

    monkeypatch.setattr(RemoteWorker, "begin", begin)
    with pytest.raises(OSError, match="no descriptor"):
        node.start(None, None)  # type: ignore[arg-type]
    assert not node.workers
    turn(loop)
    kinds: list[int] = []
    serve(lambda: len(kinds) == 2, {theirs: lambda frame: kinds.append(frame.kind)})
    assert kinds == [Kind.START, Kind.ABANDON]
