"""What the scheduler says of itself at DEBUG."""

import logging
import re

import pytest
from virtual import GIB, Behaviour, Recorded, VirtualEngine, call, run


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Lines, with workers by number from the first of the test on."""
    lines = [record.getMessage() for record in caplog.records if record.name == "mgpu_nb.scheduler"]
    numbers = list(dict.fromkeys(re.findall(r"worker (\d+)", "\n".join(lines))))
    return [re.sub(r"worker (\d+)", lambda of: f"worker {numbers.index(of[1]) + 1}", line) for line in lines]


def test_attempts_and_workers_are_told_in_their_order(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mgpu_nb")
    dies = Recorded("dies\x1b[2J", Behaviour(status=9), Behaviour(1.5), retries=1)
    run(VirtualEngine(1), dies)
    lines = said(caplog)
    wanted = (
        "[worker 1 of slot 0] starts on host-0 cuda:0, threads: 1, CUDA_VISIBLE_DEVICES=GPU-0",
        "[worker 1 of slot 0] is set up, pid ",
        "attempt 1 begins in worker 1 of slot 0",
        "[worker 1 of slot 0] has ended: ",
        "attempt 1: killed: ",
        "[worker 2 of slot 0] starts on host-0 cuda:0",
        "attempt 2 begins in worker 2 of slot 0",
        "attempt 2: ok, 1.500 s",
        "[worker 2 of slot 0] has ended: exit code 0",
    )
    places = [next((n for n, line in enumerate(lines) if part in line), -1) for part in wanted]
    assert places == sorted(places)
    assert places[0] == 0
    assert "\x1b" not in "".join(lines)


def test_a_plain_call_that_raises_has_its_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mgpu_nb")
    failing = call(Behaviour(error=ValueError("no")))
    run(VirtualEngine(1), failing)
    assert f"[a call, number {failing.ident}] attempt 1: error: ValueError: no" in "\n".join(said(caplog))


def test_whoever_waits_for_memory_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mgpu_nb")
    engine = VirtualEngine([0, 0], total=10 * GIB)
    run(
        engine,
        Recorded("first", Behaviour(9.0), memory=6 * GIB),
        Recorded("second", Behaviour(1.0), memory=6 * GIB),
    )
    (line,) = [line for line in said(caplog) if "waits for" in line]
    assert line.startswith(f"[second] waits for {6 * GIB} bytes of free memory: ")


def test_nothing_is_made_where_nobody_asks(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "mgpu_nb")
    monkeypatch.setattr(logging.getLogger("mgpu_nb.scheduler"), "makeRecord", pytest.fail)
    run(VirtualEngine(1), Recorded("task", Behaviour(1.0)))
    assert said(caplog) == []
