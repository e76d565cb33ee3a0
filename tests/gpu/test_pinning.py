"""Workers on a real GPU: started without waking CUDA, pinned by UUID, seeing one device and no other."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fake_nvml
import gpu_dry
import gpu_jobs
import pytest
from gpu_dry import DRY
from gpu_fixtures import Figures

from mgpu_nb import Device, GPUPool, Task, devices


def maps_of(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def nvidia_files_of(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    links = [str(entry.readlink()) for entry in folder.iterdir() if entry.is_symlink()]
    return sorted({link for link in links if link.startswith("/dev/nvidia")})


def same_gpu(cuda: str, ours: str) -> bool:
    """Whether CUDA's UUID (no prefix) and NVML's name one GPU."""
    return cuda.removeprefix("GPU-").removeprefix("MIG-") == ours.removeprefix("GPU-").removeprefix("MIG-")


def check(seen: dict[str, Any], gpu: Device) -> None:
    assert not seen["bad_fork"]
    assert not seen["awake_before"]
    assert seen["device"] == "cuda:0"
    assert (seen["count"], seen["current"]) == (1, 0)
    assert seen["pinned"] == gpu.uuid
    assert [same_gpu(uuid, gpu.uuid) for uuid in seen["uuids"]] == [True]
    assert seen["total"] == 45.0


def test_the_server_has_imported_torch_and_left_cuda_alone(gpu: Device, figures: Figures) -> None:
    with GPUPool([0], isolation="task") as pool:
        first, second = (pool.submit(gpu_jobs.sees).result(25) for _ in range(2))
        server = first["parent"]
        assert server == second["parent"] != os.getpid()
        assert first["pid"] != second["pid"]
        assert "libtorch" in maps_of(server)
        figures(files_of_the_driver_that_the_server_has_open=nvidia_files_of(server))
        assert nvidia_files_of(server) == []
    for seen in (first, second):
        check(seen, gpu)


@pytest.mark.parametrize("ids", ["[0]", "[0, 0, 0, 0]", "[uuid]", "[beginning of the uuid] * 2", "None"])
def test_every_slot_sees_its_gpu_as_cuda_0_and_no_other(ids: str, gpu: Device, tmp_path: Path) -> None:
    uuid, beginning = gpu.uuid, gpu.uuid[:12]
    choices: dict[str, Sequence[int | str]] = {
        "[0]": [0],
        "[0, 0, 0, 0]": [0] * 4,
        "[uuid]": [uuid],
        "[beginning of the uuid] * 2": [beginning] * 2,
    }
    with GPUPool(choices.get(ids)) as pool:
        count = len(pool.slots)
        tasks = [Task(gpu_jobs.sees, str(tmp_path / "meet"), count, name=f"t{n}") for n in range(count)]
        run = pool.run(tasks, folder=tmp_path / "run").wait(25)
    assert [record.error for record in run.records] == [""] * count
    assert {record.slot for record in run.records} == set(range(count))
    for record in run.records:
        check(record.value, gpu)
        assert (record.uuid, record.gpu_id, record.device) == (uuid, 0, "cuda:0")


@pytest.mark.parametrize("value", ["0", "uuid", "beginning of the uuid", "0,1"])
def test_under_the_kernels_own_cuda_visible_devices(
    value: str, gpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"uuid": gpu.uuid, "beginning of the uuid": gpu.uuid[:12]}.get(value, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with GPUPool([0]) as pool:
        check(pool.submit(gpu_jobs.sees).result(25), gpu)


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles", "7"])
def test_a_kernel_that_sees_no_gpu_has_none_to_give(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert not devices().has_gpu
    with pytest.raises(ValueError, match="no GPU to use"):
        GPUPool([0])


def test_our_reading_of_cuda_visible_devices_is_cudas(
    gpu: Device, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    """The list is read without CUDA; here CUDA itself says, in a process for each value, what it makes of it."""
    expected = {
        "0": 1, gpu.uuid: 1, gpu.uuid[:12]: 1, gpu.uuid[:5]: 1, "0,0": 0, "-1": 0, "": 0, "0,1": 1, "1,0": 0, " 0": 1,
        "0gpu": 1, "+0": 1, "NoDevFiles": 0, "0,-1": 1, f"{gpu.uuid},{gpu.uuid}": 0, f"{gpu.uuid},0": 1,
        f"MIG-{gpu.uuid}/1/0": 0, "MIG-00000000-0000-0000-0000-000000000000": 0, "GPU-ffffffff": 0,
    }  # fmt: skip
    code = "import gpu_jobs; print(*gpu_jobs.cuda_uuids())"
    path = os.pathsep.join(sys.path)
    processes = {
        value: subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": value},
            stdout=subprocess.PIPE,
            text=True,
        )
        for value in expected
    }
    cudas = {value: process.communicate(timeout=25)[0].split() for value, process in processes.items()}
    if DRY:
        cudas = {value: [gpu.uuid] * count for value, count in expected.items()}
    differ = {}
    for value, by_cuda in cudas.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        ours = [device.uuid for device in devices().gpus]
        same = len(ours) == len(by_cuda) and all(map(same_gpu, by_cuda, ours))
        if not same:
            differ[value] = {"cuda": by_cuda, "ours": ours}
    figures(
        values=len(cudas),
        differ=differ,
        not_as_expected={v: len(u) for v, u in cudas.items() if len(u) != expected[v]},
    )
    assert not differ


def test_under_the_name_of_a_mig_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    if DRY:
        fake_nvml.install(monkeypatch, [fake_nvml.mig_gpu()])
    instances = [device for device in devices().gpus if device.mig]
    if not instances:
        pytest.skip("the GPU is not in MIG mode, and its settings are not ours to change")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", instances[-1].uuid)
    (only,) = devices().gpus
    with GPUPool([0]) as pool:
        seen = pool.submit(gpu_jobs.sees).result(25)
    assert seen["pinned"] == only.uuid == instances[-1].uuid
    assert seen["count"] == 1
    assert DRY or same_gpu(seen["uuids"][0], only.uuid)


def test_a_kernel_with_cuda_awake_has_good_workers(live_kernel: dict[str, Any]) -> None:
    assert live_kernel["awake"]
    seen = live_kernel["sees"]
    assert not seen["bad_fork"]
    assert not seen["awake_before"]
    assert (seen["count"], seen["pinned"], seen["total"]) == (1, live_kernel["uuid"], 45.0)
    assert seen["parent"] != live_kernel["pid"]
    assert live_kernel["still_works"] == 552.0


def test_spawned_workers_are_pinned_as_well(gpu: Device) -> None:
    with GPUPool([0], isolation="task", start_method="spawn") as pool:
        check(pool.submit(gpu_jobs.sees).result(28), gpu)


def test_a_preload_that_wakes_cuda_is_found_out(
    gpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a server cannot be forked: its workers are spawned, and work."""
    monkeypatch.syspath_prepend(tmp_path)
    wakes = "import gpu_dry\ngpu_dry.wake()\n" if DRY else "import torch\ntorch.cuda.init()\n"
    (tmp_path / "wakes_cuda_when_imported.py").write_text(wakes)
    with GPUPool([0], isolation="task", preload=["wakes_cuda_when_imported"]) as pool:
        check(pool.submit(gpu_jobs.sees).result(28), gpu)


def test_this_process_has_never_waked_cuda() -> None:
    """What the suite itself promises: everything above was read without CUDA."""
    import torch

    assert not torch.cuda.is_initialized()
    assert gpu_dry.DRY or nvidia_files_of(os.getpid()) is not None
