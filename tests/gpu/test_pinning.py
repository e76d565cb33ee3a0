"""Workers on a real GPU: started without waking CUDA, pinned by UUID, seeing one device and no other."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fake_nvml
import gpu_dry
import gpu_jobs
import gpu_private
import pytest
from gpu_dry import DRY
from gpu_fixtures import Figures

import mgpu_nb
from mgpu_nb import Device, GPUPool, Task, devices

NOBODY = 65534


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


def test_the_freest_gpu_is_picked(gpu: Device) -> None:
    with GPUPool(slots=2, pick="free") as pool:
        assert {slot.uuid for slot in pool.slots} <= {device.uuid for device in devices().gpus}
        assert len(pool.slots) == 2
        seen = pool.submit(gpu_jobs.sees).result(25)
    check(seen, next(device for device in (gpu, *devices().gpus) if device.uuid == seen["pinned"]))


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


def test_under_the_names_of_mig_instances(
    gpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    """Where the GPU is cut into instances: one chosen by each of its names, and all of them at the same time."""
    if DRY:
        fake_nvml.install(monkeypatch, [fake_nvml.mig_gpu()])
    instances = [device for device in devices().gpus if device.mig]
    figures(instances=[device.uuid for device in instances], gpu=gpu.uuid)
    if not instances:
        pytest.skip("the GPU is not in MIG mode, and its settings are not ours to change")
    with GPUPool([device.uuid for device in instances]) as pool:
        tasks = [
            Task(gpu_jobs.sees, str(tmp_path / "meet"), len(instances), name=f"t{n}")
            for n in range(len(instances))
        ]
        records = pool.run(tasks, folder=tmp_path / "run").wait(25).records
    assert [record.error for record in records] == [""] * len(instances)
    assert {record.uuid for record in records} == {device.uuid for device in instances}
    for record in records:
        assert record.value["pinned"] == record.uuid
        assert DRY or [same_gpu(uuid, record.uuid) for uuid in record.value["uuids"]] == [True]
    last = next(r for r in gpu_private.readings() if r.uuid == instances[-1].uuid)
    names = [last.uuid]
    if last.instance is not None:
        names.append(f"MIG-{last.parent}/{last.instance[0]}/{last.instance[1]}")
    for name in names:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
        (only,) = devices().gpus
        with GPUPool([0]) as pool:
            seen = pool.submit(gpu_jobs.sees).result(25)
        assert seen["pinned"] == only.uuid == last.uuid
        assert seen["count"] == 1
        assert DRY or same_gpu(seen["uuids"][0], only.uuid)


@pytest.mark.parametrize("old", [False, True], ids=["by UUID", "by the GPU's UUID and numbers"])
def test_a_mig_instance_that_is_gone_is_never_the_whole_gpu(
    old: bool, gpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    """The driver is said to know an instance of the GPU, and CUDA knows none: what a worker makes of the name.

    This is as far as the way by MIG names can be gone on a GPU that is not cut into instances.
    """
    if any(device.mig for device in devices().gpus):
        pytest.skip("the GPU is in MIG mode: see the test above")
    cut = fake_nvml.mig_gpu(old=old)
    instances = [instance for instance in cut.instances or () if instance is not None]
    cut.uuid, cut.instances = gpu.uuid, [*instances]
    for number, instance in zip((1, 11), instances, strict=True):
        instance.uuid = f"MIG-{number:08x}-0000-0000-0000-000000000000"
        if old:
            instance.uuid = f"MIG-{gpu.uuid}/{number}/0"
    name = instances[-1].uuid
    fake_nvml.install(monkeypatch, [cut])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
    assert [device.uuid for device in devices().gpus] == [name]
    with GPUPool([0]) as pool:
        found = pool.submit(gpu_jobs.pinned_to).result(25)
        tasks = [Task(gpu_jobs.first_kernel, name="kernel", cost=2), Task(gpu_jobs.pid, name="next", cost=1)]
        kernel, after = pool.run(tasks, folder=tmp_path / "run").wait(25).records
    figures(found=found, error=kernel.error, status=kernel.status)
    assert found["pinned"] == name
    assert after.ok, after.error
    if not DRY:
        assert found["uuids"] == [], "CUDA shows another device than the one that was named"
        assert kernel.status == "error"
        assert kernel.error


def test_a_kernel_with_cuda_awake_has_good_workers(live_kernel: dict[str, Any]) -> None:
    assert live_kernel["awake"]
    seen = live_kernel["sees"]
    assert not seen["bad_fork"]
    assert not seen["awake_before"]
    assert (seen["count"], seen["pinned"], seen["total"]) == (1, live_kernel["uuid"], 45.0)
    assert seen["parent"] != live_kernel["pid"]
    assert live_kernel["still_works"] == 552.0


@pytest.mark.limit(60)
def test_as_a_user_who_is_not_root(figures: Figures) -> None:
    """All of `gpu_live.py` (a pool, tasks, CUDA tensors both ways) as a user without any right of root."""
    if os.geteuid() != 0:
        pytest.skip("the whole suite runs as a user who is not root")
    # In a folder of its own below /tmp: those of root, pytest's among them, are closed to others.
    with tempfile.TemporaryDirectory(
        prefix="mgpu_nb-nobody-", dir="/tmp", ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        folder.chmod(0o755)
        home, code = folder / "home", folder / "code"
        shutil.copytree(
            Path(mgpu_nb.__file__).parent, code / "mgpu_nb", ignore=shutil.ignore_patterns("__pycache__")
        )
        for file in Path(gpu_jobs.__file__).parent.glob("*.py"):
            shutil.copy(file, code)
        home.mkdir()
        os.chown(home, NOBODY, NOBODY)
        for entry in (code, *code.rglob("*")):
            entry.chmod(0o755 if entry.is_dir() else 0o644)
        elsewhere = [entry for entry in sys.path if entry and not (Path(entry) / "mgpu_nb").is_dir()]
        environment = {
            **os.environ, "HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1",
            "MGPU_GPU_DRY_FOLDER": str(home / "dry"), "PYTHONPATH": os.pathsep.join([str(code), *elsewhere]),
        }  # fmt: skip
        try:
            done = subprocess.run(
                [sys.executable, "-m", "gpu_live"], env=environment, cwd=home, capture_output=True, text=True,
                timeout=50, check=False, user=NOBODY, group=NOBODY, extra_groups=[],
            )  # fmt: skip
        except PermissionError as error:
            pytest.skip(f"others than root may not read this Python: {error}")
    figures(returncode=done.returncode, said=done.stderr[-1500:])
    if "ModuleNotFoundError: No module named 'torch'" in done.stderr:
        pytest.skip("others than root may not read torch")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    seen = found["sees"]
    assert (seen["count"], seen["pinned"], seen["total"]) == (1, found["uuid"], 45.0)
    assert found["told"] == found["sent"]
    assert found["user"] == NOBODY


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
