"""The suite on a real GPU: skipped without one, dry with ``MGPU_GPU_DRY=1``; no test hangs, every figure is kept.

CUDA stays asleep in this process: what needs it awake in the kernel runs in a process of its own (`live_kernel`).
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar

import gpu_dry
import pytest
from gpu_dry import DRY
from gpu_fixtures import ComputePool, Figures, Settles, Used

from mgpu_nb import Device, GPUPool, devices

T = TypeVar("T")
LIMIT = 30.0  # seconds a test may take unless it says otherwise
SET_UP = {"trainings": 75.0, "live_kernel": 60.0}  # seconds more where these are made
AGAIN = 4.0  # seconds after which a test that does not end by the first alarm is told again
OUT = os.environ.get("OUT")
_here = Path(__file__).parent

if DRY:
    if "MGPU_GPU_DRY_FOLDER" not in os.environ:
        os.environ["MGPU_GPU_DRY_FOLDER"] = tempfile.mkdtemp(prefix="mgpu_nb-dry-")
    Path(os.environ["MGPU_GPU_DRY_FOLDER"]).mkdir(exist_ok=True)


class Hung(KeyboardInterrupt):
    """The time of a test is over. As an interrupt it also ends what waits for tasks: a pool cancels them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if _here in item.path.parents]
    if not ours:
        return
    reason = _no_gpu()
    done = _journal_read()
    for item in ours:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif item.nodeid in done:
            item.add_marker(pytest.mark.skip(reason="was run before pytest was started again"))
        else:
            _journal(test=item.nodeid, outcome="not run")


def _no_gpu() -> str:
    """Say why there is nothing to run on; empty where torch sees a GPU. CUDA stays asleep: NVML is asked."""
    if DRY:
        return ""
    import torch

    before = os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK")
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    try:
        there = torch.cuda.is_available()
    finally:
        if before is None:
            del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]
    if there:
        return ""
    return f"torch sees no CUDA device: {devices().reason or 'it is built without CUDA'}"


# A run that dies is started again by .ci/gpu: what was begun is not begun a second time.


def _journal_read() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    file = os.environ.get("MGPU_GPU_JOURNAL")
    if file and Path(file).exists():
        for line in Path(file).read_text().splitlines():
            entry = json.loads(line)
            if entry["outcome"] != "not run":
                found[entry["test"]] = entry
    return found


def _journal(**entry: Any) -> None:
    if file := os.environ.get("MGPU_GPU_JOURNAL"):
        with Path(file).open("a") as opened:
            opened.write(json.dumps(entry) + "\n")


def _limit(item: pytest.Item) -> float:
    marker = item.get_closest_marker("limit")
    return float(marker.args[0]) if marker else LIMIT


def _with_set_up(item: pytest.Item) -> float:
    return _limit(item) + sum(SET_UP.get(name, 0.0) for name in getattr(item, "fixturenames", ()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, T, T]:
    if _here not in item.path.parents or item.get_closest_marker("skip"):
        return (yield)
    _journal(test=item.nodeid, outcome="hung")  # replaced when it ends
    assert sys.__stderr__ is not None
    # Should even an exception not get through, the process ends, and says where it was.
    faulthandler.dump_traceback_later(_with_set_up(item) + 4 * AGAIN, exit=True, file=sys.__stderr__)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, T, T]:
    if _here not in item.path.parents:
        return (yield)
    seconds = _limit(item)

    def strike(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        return (yield)
    except Hung:
        raise TimeoutError(f"the test did not end within {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if _here in item.path.parents:
        first = ""
        if report.failed and call.excinfo is not None:
            first = next(iter(str(call.excinfo.exconly()).splitlines()), "")
        elif report.skipped and isinstance(report.longrepr, tuple):
            first = report.longrepr[2]
        state = item.stash.setdefault(_state, {"outcome": "passed", "error": "", "seconds": 0.0})
        state["seconds"] += report.duration
        if report.failed:
            state["outcome"] = "failed"
            state["error"] = state["error"] or (f"in {call.when}: " if call.when != "call" else "") + first
        elif report.skipped and state["outcome"] == "passed":
            state["outcome"], state["error"] = "skipped", first
        if call.when == "teardown" and "started again" not in state["error"]:
            _journal(test=item.nodeid, **state)
    return report


_state = pytest.StashKey[dict[str, Any]]()


@pytest.fixture(autouse=True)
def _dry_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    if DRY:
        for file in Path(os.environ["MGPU_GPU_DRY_FOLDER"]).iterdir():
            if not Path("/proc", file.name).exists():
                file.unlink()
        gpu_dry.install(monkeypatch)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Keep figures under the name of the test: printed, and in $OUT/figures.json."""

    def keep(**values: object) -> None:
        name = request.node.nodeid.rpartition("/")[2]
        for key, value in values.items():
            shown = f"{value:.6g}" if isinstance(value, float) else value
            print(f"{key} = {shown}")
        if OUT:
            file = Path(OUT) / "figures.json"
            known = json.loads(file.read_text()) if file.exists() else {}
            known.setdefault(name, {}).update(values)
            file.write_text(json.dumps(known, indent=1, default=str))

    return keep


@pytest.fixture
def gpu() -> Device:
    """The GPU: as `devices` lists it now."""
    return devices().gpus[0]


@pytest.fixture
def used() -> Used:
    """A function that returns the bytes in use on the GPU."""

    def read() -> int:
        found = devices().gpus[0].used
        assert found is not None
        return found

    return read


@pytest.fixture
def settles(used: Used) -> Settles:
    """A function that waits until no more is in use than before (and a little), and returns the seconds it took."""

    def wait(before: int, seconds: float = 6.0, slack: int = 64 * 2**20) -> float:
        began = time.monotonic()
        while (now := used()) > before + slack:
            assert time.monotonic() - began < seconds, (
                f"{(now - before) / 2**20:.0f} MiB of the GPU are still held after {seconds:g} s"
            )
            time.sleep(0.02)
        return time.monotonic() - began

    return wait


@pytest.fixture
def compute_pool() -> ComputePool:
    """A function that makes a pool for what really computes: on the GPU, and in a dry run on virtual devices."""

    def make(slots: int) -> GPUPool:
        return GPUPool("cpu", slots) if DRY else GPUPool([0] * slots)

    return make


@pytest.fixture(scope="session")
def live_kernel() -> dict[str, Any]:
    """What `gpu_live.py` found: a kernel in which CUDA is awake before the pool is made."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "gpu_live"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
