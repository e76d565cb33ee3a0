"""What a worker sends of the reports of its task: batches, steps, first and last points."""

import json
import os
import pickle
import sys
import threading
import time
from typing import Any

import pytest

from mgpu_nb.engines.reports import Reports


class Sent:
    """Messages, with the points in them."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]] = []
        self.reports = Reports(self.take)
        self.reports.begin(7, "a", 2, time.perf_counter())

    def take(self, job: int, meta: bytes, body: bytes) -> None:
        values, last = pickle.loads(meta)
        self.messages.append(
            (
                job,
                values,
                [json.loads(x) for x in body.splitlines()],
                [json.loads(x) for x in last.splitlines()],
            )
        )

    @property
    def points(self) -> list[dict[str, Any]]:
        return [point for message in self.messages for point in message[2]]


def test_the_first_report_is_sent_at_once_and_the_rest_before_the_end() -> None:
    sent = Sent()
    sent.reports.add(7, {"loss": 1.0})
    assert len(sent.messages) == 1
    for n in range(300):
        sent.reports.add(7, {"loss": n, "text": f"t{n}"})
    sent.reports.end()
    assert [point["values"]["loss"] for point in sent.points] == [1.0, *range(300)]
    assert len(sent.messages) < 20
    assert sent.messages[-1][1]["text"] == "t299"
    assert {(p["task"], p["attempt"]) for p in sent.points} == {("a", 2)}
    sent.reports.add(7, {"loss": 0.0})  # by a thread that the task has left
    sent.reports.end()
    assert len(sent.points) == 301


@pytest.mark.slow
def test_a_thread_sends_what_no_later_report_does() -> None:
    sent = Sent()
    sent.reports.add(7, {"loss": 1.0})
    sent.reports.add(7, {"loss": 2.0})
    end = time.monotonic() + 10
    while len(sent.points) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(sent.points) == 2
    sent.reports.end()
    for thread in threading.enumerate():
        if thread.name == "mgpu_nb-reports":
            thread.join(10)  # nothing comes any more
            assert not thread.is_alive()


def test_steps_are_given_or_run_on() -> None:
    sent = Sent()
    for values in (
        {"loss": 0.5},
        {"loss": 0.25},
        {"epoch": 10, "loss": 0.125},
        {"loss": 0.0},
        {"step": 20.5, "epoch": 3, "loss": 0.0},
        {"epoch": "12 of 20", "loss": 0.0},
        {"step": float("nan"), "loss": 0.0},
        {"step": True, "yes": False, "no": None},
        {"step": 10**5000, "loss": 10**5000, "no": None},
    ):
        sent.reports.add(7, values)
    sent.reports.end()
    assert [point["step"] for point in sent.points] == [0, 1, 10, 11, 20.5, 21.5, 22.5]
    assert [sorted(point["values"]) for point in sent.points[3:]] == [
        ["loss"], ["epoch", "loss"], ["loss"], ["loss", "step"],
    ]  # fmt: skip


@pytest.mark.slow
def test_a_tight_loop_sends_little_and_its_last_point() -> None:
    sent = Sent()
    for n in range(100_000):
        sent.reports.add(7, {"loss": n})
    sent.reports.end()
    assert len(sent.points) <= 10_000 + 5_000 * 4
    assert len(sent.messages) < 300
    (last,) = sent.messages[-1][3]
    assert last["values"] == {"loss": 99_999}


def test_a_report_from_the_handler_of_a_signal_does_not_wait_for_the_one_it_interrupts() -> None:
    sent = Sent()
    lock = threading.Lock()

    def send(job: int, meta: bytes, body: bytes) -> None:
        assert lock.acquire(timeout=60)
        if not sent.messages:
            sent.take(job, meta, body)
            sent.reports.add(7, {"loss": 1})  # as a handler does that strikes here
        else:
            sent.take(job, meta, body)
        lock.release()

    sent.reports._send = send
    sent.reports._sent = -1e9
    sent.reports.add(7, {"loss": 0})
    sent.reports.end()
    assert [p["values"]["loss"] for p in sent.points] == [0, 1]


def test_a_fork_sends_nothing_and_the_task_all_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    sent = Sent()
    sent.reports.add(7, {"loss": 0})
    sent.reports.add(7, {"loss": 1})
    reading, writing = os.pipe()
    if not (child := os.fork()):
        sent.messages.clear()
        for n in range(2):
            sent.reports.add(7, {"loss": n})
        sys.stderr.flush()
        os.write(writing, json.dumps(len(sent.messages)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert json.loads(os.read(reading, 1000)) == 0
    assert capfd.readouterr().err.count("not recorded") == 1
    for fd in (reading, writing):
        os.close(fd)
    sent.reports.end()
    assert [p["values"]["loss"] for p in sent.points] == [0, 1]
