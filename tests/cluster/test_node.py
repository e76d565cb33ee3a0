"""A node and what goes there."""

from collections.abc import Iterator
from typing import Any

import pytest
from links import Pool, drop, noise, pool_of_links, serve

from mgpu_nb.cluster.facts import facts_of_this_node
from mgpu_nb.cluster.link import Link
from mgpu_nb.cluster.messages import Kind
from mgpu_nb.cluster.node import Node
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
