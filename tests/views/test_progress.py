"""The line of progress: chosen by itself, shown on a terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import jobs
import pytest

from mgpu_nb import GPUPool, Task

SCRIPT = """
import tempfile
from mgpu_nb import GPUPool, Task
if __name__ == "__main__":
    with GPUPool(slots=1) as pool, tempfile.TemporaryDirectory() as folder:
        pool.run([Task(abs, -n) for n in range(3)], name="three", folder=folder + "/run").wait()
"""


@pytest.mark.slow
def test_a_terminal_gets_a_bar_and_a_file_none() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-c", SCRIPT]
    subprocess.run(command, stdout=theirs, stderr=theirs, check=True, timeout=60)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the end of a terminal
        pass
    os.close(ours)
    assert b"three: 100%" in shown
    assert b"3/3" in shown
    assert subprocess.run(command, capture_output=True, check=True, timeout=60).stdout == b""


@pytest.mark.parametrize(("asked", "shown"), [(True, True), (False, False), (None, False)])
def test_it_can_be_asked_for(
    pool: GPUPool, tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: bool | None, shown: bool
) -> None:
    pool.run([Task(jobs.add, 1), Task(jobs.raises)], name="two", folder=tmp_path / "run").wait(
        60, progress=asked
    )
    out = capsys.readouterr().out
    assert ("two: 100%" in out) is shown
    assert ("1 error" in out) is shown
