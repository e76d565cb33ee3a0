"""Workers on the GPUs of a fake NVML: what they see, what their records say, when memory lets them start."""

import os
import pathlib
import time
from pathlib import Path
from typing import Any

import jobs
import pytest
from fake_nvml import GIB, Gpu, gpus, install, mig_gpu, uuid
from records import span

from mgpu_nb import GPUPool, Task, worker
from mgpu_nb.hardware import nvml

L4 = "NVIDIA L4"


def sees(meet: str | None = None) -> list[Any]:
    here = worker()
    if meet is not None:  # every slot has one before any has a second
        folder = pathlib.Path(meet)
        (folder / str(here.slot)).touch()
        while len(list(folder.iterdir())) < 3:
            time.sleep(0.005)
    names = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return [os.environ[name] for name in names] + [here.devices, here.gpu_id]


def seen_at_import(name: str) -> Any:
    import importlib

    return importlib.import_module(name).seen


@pytest.mark.slow
def test_each_worker_sees_its_own_gpu_and_its_record_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, gpus(L4, L4))
    with GPUPool([1, 0, 0], threads=2) as pool:
        (tmp_path / "meet").mkdir()
        tasks = [Task(sees, str(tmp_path / "meet"), name=f"t{i}") for i in range(6)]
        run = pool.run(tasks, folder=tmp_path / "run").wait(60)
    assert {record.slot for record in run.records} == {0, 1, 2}
    for record in run.records:
        assert isinstance(record.gpu_id, int)
        assert isinstance(record.slot, int)
        assert record.value == [uuid(record.gpu_id), "PCI_BUS_ID", "2", "2", ("cuda:0",), record.gpu_id]
        assert record.uuid == uuid(record.gpu_id)
        assert record.device == f"cuda:{record.gpu_id}"
        assert record.gpu_id == (1, 0, 0)[record.slot]


def test_a_worker_is_pinned_before_it_imports_anything_of_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, gpus(L4, L4))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "reads_at_import.py").write_text("import os\nseen = os.environ['CUDA_VISIBLE_DEVICES']\n")
    with GPUPool([1], isolation="task") as pool:
        assert pool.submit(seen_at_import, "reads_at_import").result(60) == uuid(1)


def test_a_task_over_two_gpus_sees_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, gpus(L4, L4))
    with GPUPool([0, 1]) as pool:
        value = pool.run([Task(sees, devices=2)], folder=tmp_path / "run").results(60)[0]
    assert value[0] == f"{uuid(0)},{uuid(1)}"
    assert value[4] == ("cuda:0", "cuda:1")


def test_the_kernels_own_view_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, gpus(L4, L4, L4, L4))
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    with GPUPool([1]) as pool:
        assert pool.submit(sees).result(60)[0] == uuid(1)
        record = pool.run([Task(sees)], folder=tmp_path / "run").wait(60).records[0]
    assert (record.gpu_id, record.uuid) == (1, uuid(1))
    with GPUPool([0]) as pool:
        assert pool.submit(sees).result(60)[0] == uuid(3)


def test_a_task_over_mig_instances_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, [mig_gpu()])
    with GPUPool() as pool, pytest.raises(ValueError, match="one MIG instance"):
        pool.run([Task(sees, devices=2)], folder=tmp_path / "run")


def test_a_task_waits_for_memory_that_others_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = install(monkeypatch, [Gpu(total=40 * GIB, used=39 * GIB)])
    with GPUPool([0]) as pool:
        pool.submit(jobs.add, 1).result(60)
        large = Task(jobs.add, 1, name="large", memory=20 * GIB)
        run = pool.run([large, Task(jobs.add, 2, name="small")], folder=tmp_path / "run")
        assert next(run.as_completed(60)).name == "small"
        assert run.progress.done == 1
        fake.gpus[0].used = GIB
        assert run.results(60) == [2, 3]


@pytest.mark.slow
def test_memory_that_never_comes_is_a_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, [Gpu(total=40 * GIB, used=39 * GIB)])
    with GPUPool([0], memory_timeout=0.2) as pool:
        run = pool.run([Task(jobs.add, 1, memory=20 * GIB)], folder=tmp_path / "run").wait(60)
    assert run.records[0].status == "out-of-memory"
    assert "held by other programs" in run.records[0].error


def test_memory_that_no_device_has_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, gpus(L4))
    with GPUPool([0]) as pool, pytest.raises(ValueError, match="no device has as much"):
        pool.run([Task(jobs.add, 1, memory=2**50)], folder=tmp_path / "run")


def short_of_memory_beside_others(folder: str, name: str) -> list[str]:
    import pathlib

    import torch

    mine = pathlib.Path(folder, name)
    if worker().attempt > 1:
        return sorted(path.name for path in pathlib.Path(folder).glob("t*"))
    mine.touch()
    end = time.monotonic() + 30
    while not pathlib.Path(folder, "both").exists() and time.monotonic() < end:
        if len(list(pathlib.Path(folder).glob("t*"))) == 2:
            pathlib.Path(folder, "both").touch()
        time.sleep(0.01)
    mine.unlink()
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_ran_out_of_memory_is_tried_again_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, gpus(L4))
    with GPUPool([0, 0]) as pool:
        tasks = [Task(short_of_memory_beside_others, str(tmp_path), f"t{i}", name=f"t{i}") for i in range(2)]
        run = pool.run(tasks, folder=tmp_path / "run", retry_alone=True).wait(60)
    assert [record.status for record in run.records] == ["ok", "ok"]
    assert [record.attempt for record in run.records] == [2, 2]
    assert "alone on its device" in run.records[0].notes[0]
    first, second = sorted(run.records, key=span)
    assert span(first)[1] <= span(second)[0]  # one after the other


def reserves(allocated: int, reserved: int, path: str) -> None:
    """Stand in for a task that holds memory through torch, in a worker without a GPU."""
    import pathlib

    import torch

    vars(torch.cuda)["is_initialized"] = lambda: True
    vars(torch.cuda)["device_count"] = lambda: 1
    vars(torch.cuda)["memory_stats_as_nested_dict"] = lambda _: {
        "allocated_bytes": {"all": {"current": allocated, "peak": allocated}},
        "reserved_bytes": {"all": {"current": reserved, "peak": reserved}},
    }
    vars(torch.cuda)["empty_cache"] = lambda: None
    vars(torch.cuda)["reset_peak_memory_stats"] = lambda _: None
    vars(torch.cuda)["synchronize"] = lambda _: None
    while not pathlib.Path(path).exists():
        time.sleep(0.005)


def test_a_worker_that_keeps_memory_is_replaced_and_the_record_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, gpus(L4))
    (tmp_path / "go").touch()
    with GPUPool([0], memory_growth=GIB) as pool:
        before = pool.submit(os.getpid).result(60)
        run = pool.run(
            [Task(reserves, 3 * GIB, 4 * GIB, str(tmp_path / "go"))], folder=tmp_path / "run"
        ).wait(60)
        assert pool.submit(os.getpid).result(60) != before
    (note,) = run.records[0].notes
    assert note.startswith("worker replaced: it kept 3072 MB after the task")
    assert (run.records[0].peak_allocated, run.records[0].peak_reserved) == (3 * GIB, 4 * GIB)
    assert run.records[0].peak_memory == 4 * GIB


def test_what_torch_reserved_stands_in_where_nvml_names_no_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, [Gpu(used=10 * GIB)])
    with GPUPool([0]) as pool:
        run = pool.run(
            [Task(reserves, 3 * GIB, 4 * GIB, str(tmp_path / "go"), name="holds")], folder=tmp_path / "run"
        )
        from mgpu_nb.telemetry.reading import read

        end = time.monotonic() + 30
        while not any(state.reserved for state in pool._dispatcher.states()):
            assert time.monotonic() < end
            time.sleep(0.01)
        snapshot = read(pool._dispatcher.states())
        (tmp_path / "go").touch()
        run.wait(60)
    (device,), (sample,) = snapshot.devices, snapshot.workers
    assert (sample.memory, sample.source, sample.state.task) == (4 * GIB, "torch", "holds")
    assert (device.used, device.ours, device.others) == (10 * GIB, 4 * GIB, 6 * GIB)
    assert "lists no processes here" in snapshot.note
    assert nvml.shared.processes(uuid(0)) == {}
