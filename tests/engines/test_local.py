"""The engine of this machine: what workers send it, believed or not."""

import os
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mgpu_nb.engines import local, payload
from mgpu_nb.engines.base import Begin, Environment
from mgpu_nb.engines.channel import Channel
from mgpu_nb.engines.local import LocalEngine, LocalWorker
from mgpu_nb.engines.protocol import Failure, Message, pack
from mgpu_nb.engines.servers import runtime
from mgpu_nb.engines.watched import Watched
from mgpu_nb.scheduler.loop import Loop

BEGIN = Begin(0, 1, None, "", ("cpu",), {}, Environment({}, "", ()), None, False)
FAILURE = pack(Failure("E", "m", "t", False))


class Bench:
    """An engine with one worker that is not there: this test has its end of the channel."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.timers: list[tuple[float, Any]] = []
        self.engine = LocalEngine(start_method="fork")
        self.engine.connect(self, self)
        self.worker = LocalWorker(1, self, self.engine._channel_ready)
        self.worker.begin(BEGIN, payload.dumps(None))
        self.engine.workers[self.worker.number] = self.worker
        self.sender = Channel(self.worker.channel_end, blocking=False)
        list(self.sender.receive())  # its begin

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.events.append((name, *args[1:]))

    def call_later(self, seconds: float, callback: Any) -> Any:
        self.timers.append((seconds, callback))
        return self

    def cancel(self) -> None:
        pass

    def hear(self) -> list[str]:
        """Names of the events that follow."""
        self.events.clear()
        self.engine._channel_ready(self.worker)
        return [event[0] for event in self.events if event[0] not in ("watch", "unwatch")]

    def close(self) -> None:
        del self.engine.workers[self.worker.number]
        self.worker.close()


@pytest.fixture(scope="module", autouse=True)
def forks_again() -> Iterator[None]:
    """What the made-up workers say of CUDA is forgotten, or those of all later tests would be spawned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "_preloads_that_init_cuda", set())
        yield


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.mark.parametrize(
    ("kind", "meta", "body"),
    [
        (Message.VALUE, b"junk", b""),
        (Message.VALUE, pickle.dumps(os.getcwd), b""),
        (Message.ERROR, b"", b""),
        (Message.ERROR, pickle.dumps(("E",)), b""),
        (Message.REPORT, pickle.dumps(({"a": [1]}, b"")), b""),
        (Message.MEMORY, pickle.dumps("much"), b""),
        (Message.SETUP_FAILED, b"junk", b""),
        (Message.SKIPPED, b"", b""),
        (Message.LOG, b"junk", b""),
        (Message.START, b"", b""),
        (Message.EXITED, b"0", b""),
        (77, b"", b""),
    ],
)
def test_a_message_that_no_worker_may_send_breaks_its_channel(
    bench: Bench, kind: int, meta: bytes, body: bytes
) -> None:
    bench.sender.send(kind, 1, meta, body)
    assert bench.hear() == ["broken"]
    assert any("cannot be read" in str(event[1:]) for event in bench.events)
    bench.sender.send(Message.READY, os.getpid())
    assert bench.hear() == []  # nothing of it is believed any more


def test_a_worker_that_is_ready_does_not_change_how_others_start(bench: Bench) -> None:
    bench.sender.send(Message.READY, 7)
    bench.sender.send(Message.BAD_FORK)
    assert bench.hear() == ["ready", "broken"]


def test_what_came_before_the_garbage_counts(bench: Bench) -> None:
    bench.sender.send(Message.READY, 7)
    bench.sender.send(Message.ERROR, 1, FAILURE)
    bench.sender._sock.send(b"garbage")
    assert bench.hear() == ["ready", "error", "broken"]


def test_descriptors_of_a_refused_message_are_closed(bench: Bench) -> None:
    read, write = os.pipe()
    for kind, fds in ((Message.READY, [write]), (Message.VALUE, [write])):
        bench.worker.broken = False
        bench.sender.send(kind, 1, b"", b"no places", fds)
        assert bench.hear() == ["broken"]
    os.close(write)
    assert os.read(read, 1) == b""  # no other writer is left
    os.close(read)


def test_a_message_that_stops_is_given_up_and_one_that_goes_on_is_not(bench: Bench) -> None:
    sock = bench.sender._sock
    header = b"\xf5mgn" + bytes([Message.READY, 0]) + bytes(4) + (4).to_bytes(8) + (1).to_bytes(8)
    sock.send(header)
    assert bench.hear() == []
    ((seconds, look),) = bench.timers
    assert seconds == local.STALL
    sock.send(b"12")
    assert bench.hear() == []
    look()
    assert not bench.worker.broken  # more has come since
    look = bench.timers[-1][1]
    look()
    assert bench.worker.broken
    assert "is not complete" in bench.events[-1][1]


def test_a_call_that_is_larger_than_its_socket_arrives(bench: Bench) -> None:
    loop = Loop()
    watched = Watched(loop, bench.worker.channel, lambda: bench.engine._channel_ready(bench.worker))
    bench.worker.watched = watched
    watched.begin()
    bench.worker.assign(1, None, payload.Payload(bytes(2**20)))
    assert bench.worker.channel.pending
    loop.call_later(30, lambda: pytest.fail("it did not arrive"))
    while not (came := [frame.ident for frame in bench.sender.receive()]):
        loop.run_once()
    assert came == [1]
    loop.close()


def test_a_worker_that_closes_its_channel_and_lives_is_given_up(bench: Bench) -> None:
    bench.sender.close()
    assert bench.hear() == []
    ((_, look),) = bench.timers
    look()
    assert "was closed" in bench.events[-1][1]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*Message, 0, 255]),
            st.integers(0, 2**64 - 1),
            st.one_of(st.binary(max_size=30), st.just(FAILURE), st.just(pack(({"a": 1}, b"")))),
            st.binary(max_size=30),
        ),
        max_size=5,
    ),
    st.binary(max_size=30),
)
def test_nothing_that_a_worker_sends_raises(frames: list[tuple[int, int, bytes, bytes]], rest: bytes) -> None:
    bench = Bench()
    try:
        for kind, ident, meta, body in frames:
            bench.sender.send(kind, ident, meta, body)
        if rest:
            bench.sender._sock.send(rest)
        bench.hear()
    finally:
        bench.close()
