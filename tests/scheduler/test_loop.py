"""The loop of the dispatcher's thread."""

import contextlib
import functools
import itertools
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from mgpu_nb.scheduler.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def test_what_another_thread_tells_wakes_it(loop: Loop) -> None:
    heard = []
    thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(lambda: heard.append(1)))
    thread.start()
    loop.run_once()
    loop.run_pending()
    thread.join()
    assert heard == [1]
    assert not loop.pending


def interrupt(code: types.CodeType, line: int) -> Any:
    """Trace function that raises KeyboardInterrupt at a line of the code, counted from 0 as they are executed."""
    lines = itertools.count()

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code is code and event == "line" and next(lines) == line:
            raise KeyboardInterrupt
        return trace

    return trace


def test_an_interrupt_at_any_line_of_a_call_leaves_a_loop_that_wakes() -> None:
    code = Loop.call_soon_threadsafe.__code__
    for line in range(8):
        loop = Loop()
        woken = threading.Event()
        loop.call_later(60.0, lambda: None)
        asleep = threading.Thread(target=loop.run_once)
        asleep.start()

        sys.settrace(interrupt(code, line))
        with contextlib.suppress(KeyboardInterrupt):
            loop.call_soon_threadsafe(lambda: None)
        sys.settrace(None)
        loop.call_soon_threadsafe(woken.set)
        asleep.join(30)
        assert not asleep.is_alive(), f"interrupted at line {line}"
        loop.run_pending()
        assert woken.is_set()
        loop.close()


def test_a_caller_that_was_held_up_does_not_keep_others_from_waking_it(loop: Loop) -> None:
    """It read the turn, and writes down that it is woken only when the loop sleeps again."""
    loop.call_soon_threadsafe(lambda: None)
    loop.run_once()
    loop.run_pending()
    loop._woken = loop._turn - 1  # as it would
    loop.call_soon_threadsafe(lambda: None)
    loop.run_pending()
    loop.run_once()  # does not wait: a byte is there


def test_what_is_told_before_the_turn_does_not_wait(loop: Loop) -> None:
    loop.call_soon_threadsafe(lambda: None)
    loop.run_once()
    assert loop.pending


def test_timers_come_in_their_order(loop: Loop) -> None:
    came: list[int] = []
    for n, seconds in enumerate((0.4, 0.0, 0.2, 0.0)):
        loop.call_later(seconds, functools.partial(came.append, n))
    while len(came) < 4:
        loop.run_once()
    assert came == [1, 3, 2, 0]


def test_what_can_be_read_or_written_is_told_until_it_is_not_watched(
    loop: Loop, pipe: tuple[int, int]
) -> None:
    read, write = pipe
    came = []
    loop.watch(read, lambda: came.append("read"))
    os.write(write, b"x")
    loop.run_once()
    assert came == ["read"]
    loop.watch(write, lambda: came.append("written"), writable=True)
    loop.run_once()
    assert "written" in came
    loop.unwatch(read)
    loop.unwatch(write)
    loop.unwatch(read)
    came.clear()
    loop.call_soon_threadsafe(lambda: None)
    loop.run_once()
    assert came == []


def test_an_event_is_not_given_to_whoever_had_the_descriptor_before(loop: Loop) -> None:
    """Within one turn a worker can end and a new one's channel take its number."""
    came: list[int | str] = []
    pairs = [os.pipe() for _ in range(2)]

    def ends(n: int) -> Callable[..., Any]:
        def first_to_come() -> None:
            came.append(n)
            other = pairs[1 - n][0]
            loop.unwatch(other)
            os.dup2(fresh[0], other)  # the same number, another pipe, with nothing to read
            loop.watch(other, lambda: came.append("fresh"))

        return first_to_come

    fresh = os.pipe()
    for n, (read, write) in enumerate(pairs):
        loop.watch(read, ends(n))
        os.write(write, b"x")
    loop.run_once()
    assert len(came) == 1
    os.write(fresh[1], b"x")
    loop.unwatch(pairs[int(came[0])][0])
    loop.run_once()
    assert came[1:] == ["fresh"]
    for fd in (*pairs[0], *pairs[1], *fresh):
        os.close(fd)


def test_a_closed_loop_hears_nothing_and_breaks_nothing() -> None:
    loop = Loop()
    loop.close()
    loop.call_soon_threadsafe(lambda: None)


def test_a_loop_that_closes_while_it_is_woken_is_not_written_into_another_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = psutil.Process().num_fds()
    loop, write, late = Loop(), os.write, []

    def closes_first(descriptor: int, data: bytes) -> int:
        loop.close()
        late.append(os.dup(descriptor))  # of the pipe still: its number was not given back
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", closes_first)
        loop._turn += 1
        loop.wake()
    os.close(late[0])
    assert psutil.Process().num_fds() == before


@pytest.mark.parametrize("seconds", [30 * 86400.0, float("inf")])
def test_a_timer_of_a_month_does_not_end_the_loop(seconds: float) -> None:
    loop = Loop()
    loop.call_later(seconds, pytest.fail)
    loop._woken = loop._turn - 1
    loop.wake()
    loop.run_once()
    loop.close()


def test_what_is_called_before_sleep_is_called_once_and_after_all_else(loop: Loop) -> None:
    heard: list[str] = []
    flush = functools.partial(heard.append, "flush")
    loop.call_before_sleep(flush)
    loop.call_soon_threadsafe(lambda: heard.append("soon"))
    loop.call_before_sleep(flush)
    loop.run_pending()
    assert heard == ["soon"]
    loop.call_later(0.0, lambda: heard.append("timer"))
    loop.run_once()
    assert heard == ["soon", "flush", "timer"]
    loop.call_later(0.0, lambda: None)
    loop.run_once()
    assert heard == ["soon", "flush", "timer"]


def test_another_thread_has_something_called_before_a_sleep_that_has_begun(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    asleep = threading.Event()
    select = loop.clock.select

    def sleeping(selector: Any, timeout: float | None) -> Any:
        asleep.set()
        return select(selector, timeout)

    def give() -> None:
        asleep.wait(30)
        loop.call_before_sleep(lambda: heard.append(threading.get_ident()))

    monkeypatch.setattr(loop.clock, "select", sleeping)
    thread = threading.Thread(target=give)
    thread.start()
    loop.run_once()  # not for ever: the thread wakes it
    assert heard == [threading.get_ident()]
    thread.join()
