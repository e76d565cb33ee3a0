"""Who ends with whom."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from mgpu_nb.engines.process import MARK, Lifeline, end_with, is_cut, kill_marked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals of pipes are Linux's")


@pytest.fixture
def started() -> Iterator[tuple[subprocess.Popen[bytes], Lifeline]]:
    lifeline = Lifeline()
    process = subprocess.Popen(["sleep", "60"], pass_fds=[lifeline.read])
    yield process, lifeline
    lifeline.close()
    process.kill()
    process.wait()


def test_the_end_of_a_lifeline_kills_whatever_the_process_does(
    started: tuple[subprocess.Popen[bytes], Lifeline],
) -> None:
    process, lifeline = started
    before = psutil.Process().num_fds()
    lifeline.watch(process.pid)
    assert psutil.Process().num_fds() == before - 1
    assert process.poll() is None
    os.kill(process.pid, signal.SIGSTOP)
    lifeline.close()
    assert process.wait(30) == -signal.SIGKILL


def test_a_stopped_process_is_woken() -> None:
    lifeline = Lifeline()
    code = "import sys, os, signal; os.kill(os.getpid(), signal.SIGSTOP); sys.exit(7)"
    process = subprocess.Popen([sys.executable, "-S", "-c", code], pass_fds=[lifeline.read])
    reading = os.dup(lifeline.read)
    lifeline.watch(process.pid)
    end_with(reading, signal.SIGCONT)
    end = time.monotonic() + 30
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_cut(reading)
    lifeline.close()
    assert process.wait(30) == 7
    assert is_cut(reading)
    os.close(reading)


def test_what_has_the_mark_is_killed_and_nothing_else() -> None:
    marks = ["1-1-aa", "1-1-aab"]
    processes = [
        subprocess.Popen(["sleep", "60"], env={MARK: mark}, start_new_session=True) for mark in marks
    ]
    kill_marked(marks[0])
    assert processes[0].wait(30) == -signal.SIGKILL
    assert processes[1].poll() is None
    processes[1].kill()
    processes[1].wait()
