"""Snapshots: who holds what, and the one thread that takes them."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest
from fake_nvml import GIB, Gpu, gpus, install, uuid

from mgpu_nb.telemetry import reading
from mgpu_nb.telemetry import sampler as sampler_module
from mgpu_nb.telemetry.reading import read
from mgpu_nb.telemetry.recorder import Recorder, load
from mgpu_nb.telemetry.sampler import Sampler
from mgpu_nb.telemetry.samples import Snapshot, WorkerState


def worker(slot: int = 0, pid: int | None = None, n: int = 0, **more: Any) -> WorkerState:
    kind = more.pop("kind", "cuda")
    place = {"label": f"{kind}:{n}", "uuid": uuid(n) if kind == "cuda" else f"cpu:{n}", "kind": kind}
    return WorkerState(pool=1, slot=slot, pid=os.getpid() if pid is None else pid, **place, **more)


def test_memory_is_ours_others_and_free_by_uuid_and_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.getppid()
    install(
        monkeypatch,
        [
            Gpu(used=10 * GIB, compute=[(os.getpid(), 6 * GIB), (other, 3 * GIB)]),
            Gpu(uuid=uuid(1), bus="00000000:08:00.0", used=2 * GIB, compute=[(other, GIB)]),
        ],
    )
    snapshot = read([worker(task="t", run="/r")])
    first, second = snapshot.devices
    assert (first.label, first.ours, first.others) == ("cuda:0", 6 * GIB, 4 * GIB)
    assert [(holder.pid, holder.size) for holder in first.holders] == [(other, 3 * GIB)]
    assert first.holders[0].user
    assert first.holders[0].command
    assert (second.label, second.ours, second.others) == ("GPU 1", 0, 2 * GIB)
    assert [(w.state.task, w.memory, w.source) for w in snapshot.workers] == [("t", 6 * GIB, "nvml")]
    assert snapshot.note == ""


def test_a_field_that_nvml_lacks_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    unsupported = ("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperature")
    errors = dict.fromkeys(unsupported, pynvml.NVML_ERROR_NOT_SUPPORTED)
    install(monkeypatch, [Gpu(errors=errors)])
    (device,) = read([]).devices
    assert (device.utilisation, device.power, device.temperature) == (None, None, None)


def test_virtual_devices_are_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [], init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    gone = 2**22 + 1  # no such process
    snapshot = read([worker(kind="cpu"), worker(slot=1, pid=gone, n=1, kind="cpu")])
    (device,) = snapshot.devices
    resident = psutil.Process().memory_info().rss
    assert device.kind == "cpu"
    assert snapshot.workers[0].memory == pytest.approx(resident, rel=0.2)
    assert snapshot.workers[1].memory is None
    assert device.ours == snapshot.workers[0].memory


class Pool:
    def __init__(self, *states: WorkerState) -> None:
        self._states = states

    def states(self) -> tuple[WorkerState, ...]:
        return self._states


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> Sampler:
    install(monkeypatch, gpus("NVIDIA L4"))
    return Sampler(period=0.005)


def threads() -> int:
    return sum(thread.name == "mgpu_nb-sampler" for thread in threading.enumerate())


def test_one_thread_however_many_listen_and_none_when_nobody_does(sampler: Sampler) -> None:
    before = threads()
    heard = [threading.Event() for _ in range(3)]
    listeners = [lambda _, event=event: event.set() for event in heard]
    for listener in listeners:
        sampler.listen(listener)
    assert all(event.wait(60) for event in heard)
    assert threads() == before + 1
    thread = sampler._thread
    for listener in listeners:
        sampler.leave(listener)
    assert thread
    thread.join(10)
    assert threads() == before
    assert not sampler.running
    again = threading.Event()
    sampler.listen(last := lambda _: again.set())
    assert again.wait(60)
    sampler.leave(last)


def test_samples_that_cost_much_are_fewer() -> None:
    sampler = Sampler(period=0.5)
    spent = [0.1, 0.01, 0.1, 0.1, 0.2, 0.01]
    assert [sampler._period_after(seconds) for seconds in spent] == [0.5, 0.5, 0.5, 2.0, 2.0, 0.5]


def test_the_thread_waits_for_longer_where_a_sample_takes_long(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = threading.Semaphore(0)
    clock = iter(range(1000))
    monkeypatch.setattr(time, "thread_time", lambda: 100.0 * next(clock))
    sampler.listen(listener := lambda _: heard.release())
    assert heard.acquire(timeout=60)
    assert heard.acquire(timeout=60)  # the first costs nothing yet
    assert not heard.acquire(timeout=0.2)  # of 2,000 s
    sampler.leave(listener)


def test_a_listener_that_fails_is_left_out_and_the_others_go_on(
    sampler: Sampler, caplog: pytest.LogCaptureFixture
) -> None:
    heard, count = threading.Event(), []

    def listener(snapshot: Any) -> None:
        count.append(snapshot)
        if len(count) == 3:
            heard.set()

    sampler.listen(lambda _: divmod(1, 0))  # type: ignore[arg-type]
    sampler.listen(listener)
    assert heard.wait(60)
    sampler.leave(listener)
    assert caplog.text.count("ZeroDivisionError") == 1


def test_a_driver_that_fails_ends_no_thread(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, broken = threading.Event(), threading.Event()
    working = reading.read

    def fails(states: Any) -> None:
        broken.set()
        raise OSError("driver")

    monkeypatch.setattr(sampler_module, "read", fails)
    sampler.listen(listener := lambda _: heard.set())
    assert broken.wait(60)
    monkeypatch.setattr(sampler_module, "read", working)
    assert heard.wait(60)
    sampler.leave(listener)


def test_pools_are_looked_at_for_as_long_as_they_live(sampler: Sampler) -> None:
    pool = Pool(worker(task="x"))
    sampler.add_pool(pool)
    assert [w.state.task for w in sampler.take().workers] == ["x"]
    del pool
    assert sampler.take().workers == ()


def snapshots(
    monkeypatch: pytest.MonkeyPatch, run: str, *, seconds: list[float] | range, name: str = "t"
) -> list[Snapshot]:
    install(monkeypatch, [Gpu(used=10 * GIB, compute=[(os.getpid(), 6 * GIB)])])
    from dataclasses import replace

    one = read([worker(task=name, run=run)])
    return [replace(one, at=1000.0 + s) for s in seconds]


def test_a_runs_samples_are_kept_and_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, lambda action: action())
    for snapshot in snapshots(monkeypatch, str(tmp_path), seconds=range(3), name='=a,"b"\n'):
        recorder(snapshot)
    for snapshot in snapshots(monkeypatch, "/another/run", seconds=range(3)):
        recorder(snapshot)
    frame = load(tmp_path)
    assert frame["kind"].tolist() == ["device", "task"] * 3
    assert set(frame[frame["kind"] == "task"]["task"]) == {'\'=a,"b"\n'}
    assert frame["used"].tolist() == [10 * GIB, 6 * GIB] * 3
    assert recorder.peaks == {'=a,"b"\n': 6 * GIB}


def test_samples_of_a_long_run_become_fewer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, lambda action: action())
    day = snapshots(monkeypatch, str(tmp_path), seconds=[n / 2 for n in range(0, 2 * 3600 * 24, 40)])
    for snapshot in day:
        recorder(snapshot)
    kept = load(tmp_path)["at"].nunique()
    assert 1000 < kept < len(day)


def test_a_folder_without_samples_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no samples"):
        load(tmp_path)


def test_a_disk_that_refuses_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path / "missing", lambda action: action())
    for snapshot in snapshots(monkeypatch, str(tmp_path / "missing"), seconds=range(3)):
        recorder(snapshot)
    assert caplog.text.count("samples are incomplete") == 1
