"""Channels in a loop: what waits for room is written, and then the loop sleeps."""

from collections.abc import Iterator

import pytest

from mgpu_nb.engines.channel import Channel
from mgpu_nb.engines.watched import Watched
from mgpu_nb.scheduler.loop import Loop


class Bench:
    """A channel in a loop, and its other end."""

    def __init__(self) -> None:
        self.loop = Loop()
        ours, theirs = Channel.pair()
        self.channel, self.other = Channel(ours, blocking=False), Channel(theirs, blocking=False)
        self.watched = Watched(self.loop, self.channel, self._ready)
        self.got: list[int] = []
        self.taken: list[int] = []
        self.calls = 0

    def _ready(self) -> None:
        self.calls += 1
        self.channel.flush()
        self.got += [frame.kind for frame in self.channel.receive()]
        self.watched.renew()

    def take(self) -> None:
        """Have the other end read."""
        self.taken += [frame.ident for frame in self.other.receive()]

    def turn(self) -> None:
        """Have the loop do what is due, without a sleep."""
        self.loop.call_soon_threadsafe(lambda: None)
        self.loop.run_once()
        self.loop.run_pending()

    def exchange(self) -> None:
        """Have both ends do what they can, turn by turn."""
        for _ in range(100):
            self.take()
            self.turn()

    def sleeps(self) -> bool:
        """Whether the loop sleeps for a fifth of a second."""
        done: list[int] = []
        self.loop.call_later(0.2, lambda: done.append(1))
        before = self.loop.wakeups
        while not done:
            self.loop.run_once()
        return self.loop.wakeups - before < 20

    def close(self) -> None:
        self.watched.end()
        for channel in (self.channel, self.other):
            channel.close()
        self.loop.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def test_the_rest_of_a_message_goes_when_there_is_room(bench: Bench) -> None:
    bench.watched.begin()
    bench.channel.send(1, 7, body=bytes(2**21))
    bench.watched.renew()
    assert bench.channel.pending
    bench.exchange()
    assert bench.taken == [7]
    assert bench.sleeps()


def test_what_was_pending_before_it_began_goes(bench: Bench) -> None:
    bench.channel.send(1, 7, body=bytes(2**21))
    bench.watched.renew()  # nobody watches yet
    bench.watched.begin()
    bench.exchange()
    assert bench.taken == [7]
    assert bench.sleeps()


def test_a_loop_sleeps_if_the_rest_went_with_a_later_message(bench: Bench) -> None:
    bench.watched.begin()
    bench.channel.send(1, 1, body=bytes(2**21))
    bench.watched.renew()
    while bench.channel.pending:
        bench.take()
        bench.channel.send(1, 2)
    bench.watched.renew()
    while 2 not in bench.taken:
        bench.take()
    assert bench.sleeps()
    assert not bench.calls


def test_what_comes_is_read_until_it_ends(bench: Bench) -> None:
    bench.other.send(3)
    bench.turn()
    assert bench.got == []
    bench.watched.begin()
    bench.turn()
    assert bench.got == [3]
    bench.watched.end()
    bench.other.send(4)
    bench.channel.send(1, 1, body=bytes(2**21))
    bench.watched.renew()  # it is not watched again
    bench.turn()
    assert bench.got == [3]
    assert bench.sleeps()
