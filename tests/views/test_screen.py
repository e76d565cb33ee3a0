"""``mgpu-nb watch``: in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from fake_nvml import GIB, gpus, install

from mgpu_nb.cli import main
from mgpu_nb.hardware import holders
from mgpu_nb.hardware.holders import Holder, current_user
from mgpu_nb.telemetry import sampler
from mgpu_nb.views import screen

WATCH = [sys.executable, "-m", "mgpu_nb", "watch"]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU that this user and another hold, one that is free."""
    monkeypatch.delenv("COLUMNS", raising=False)
    cards = gpus("NVIDIA L4", "NVIDIA L4")
    cards[0].used = 30 * GIB
    cards[0].compute = [(1, 20 * GIB), (2, 10 * GIB)]
    cards[1].used = 0
    install(monkeypatch, cards)
    known = {1: Holder(1, None, current_user(), "python train.py"), 2: Holder(2, None, "bob", "vllm serve")}
    monkeypatch.setattr(holders, "_known", known.__getitem__)
    monkeypatch.setattr(sampler.shared, "history", sampler.shared.history.__class__(maxlen=600))
    monkeypatch.setattr("psutil.pid_exists", lambda pid: True)


def test_the_bar_tells_this_user_from_others(two_gpus: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--once"]) == 0
    heading, first, who, second, key = capsys.readouterr().out.splitlines()
    assert heading.split() == ["device", "memory", "used", "util", "temp", "power"]
    assert "██████████▒▒▒▒▒·····" in first
    assert "30.0 / 40.0 GiB  37 %  61 °C  250 W" in first
    assert who == f"  {current_user()}: python train.py (pid 1) 20.0 GiB; bob: vllm serve (pid 2) 10.0 GiB"
    assert "····················" in second
    assert key.startswith(f"█ {current_user()}  ▒ others  · free  ")


def test_looks_follow_each_other_as_plain_lines(two_gpus: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--times", "3", "--interval", "0.01"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("vllm serve") == 3
    assert "\x1b" not in shown
    assert re.search(r"memory, last \d+ s", shown)


def test_a_narrow_pipe_is_respected(
    two_gpus: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["watch", "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[2].endswith("and 1 more")


def test_a_terminal_of_ascii_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    assert screen._shown("██▒·… ▁▄█ °C") == "##%.~ _:#  C"


def test_what_is_higher_than_the_terminal_is_counted() -> None:
    lines = [[(str(n), "")] for n in range(30)]
    assert screen._cut(lines, 30) == lines
    assert screen._cut(lines, 10) == [*lines[:9], [("... 21 more lines: make the terminal higher", "")]]


def test_once_and_times_are_one_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--once", "--times", "2"]) == 2
    assert "give one of the two" in capsys.readouterr().err


def test_a_reader_who_leaves_ends_it() -> None:
    line = f"{' '.join(WATCH)} --interval 0.05 | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("device")


def on_a_terminal(*words: str, **environ: str) -> tuple[int, str]:
    """Run ``mgpu-nb watch`` on a terminal of 80 columns until its second look, then press Ctrl-C."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24", **environ}
    process = subprocess.Popen([*WATCH, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    shown, end = b"", time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if select.select([ours], [], [], 0.1)[0]:
            shown += os.read(ours, 2**16)
        if shown.count(b"device") >= 2 and process.poll() is None:
            process.send_signal(signal.SIGINT)
            break
    try:
        while select.select([ours], [], [], 30)[0] and (more := os.read(ours, 2**16)):
            shown += more
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    return process.wait(30), shown.decode()


@pytest.mark.slow
def test_on_a_terminal_looks_take_each_others_place_and_the_last_stays() -> None:
    code, shown = on_a_terminal("--interval", "0.1")
    assert code == 0
    assert "Traceback" not in shown
    assert "\x1b[?1049h" in shown  # a screen of its own, which is left
    left = shown.rpartition("\x1b[?1049l")[2]
    assert re.search(r"cpu +.*GiB", left)
    assert "Ctrl-C ends" not in left
    assert max(len(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line)) for line in left.splitlines()) <= 80


@pytest.mark.slow
def test_colours_are_left_out_on_request_and_escape_codes_where_the_terminal_has_none() -> None:
    assert re.search(r"\x1b\[[0-9;]*3[0-9]m|\x1b\[9[0-9]m", on_a_terminal("--interval", "0.1")[1])
    plain = on_a_terminal("--interval", "0.1", NO_COLOR="1")[1]
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|9[0-9])m", plain)
    code, dumb = on_a_terminal("--interval", "0.1", TERM="dumb")
    assert code == 0
    assert "\x1b" not in dumb
