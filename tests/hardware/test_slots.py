"""Slots, and the memory of their devices, on machines that a fake NVML describes."""

import os
import pickle
from typing import Any

import numpy as np
import psutil
import pynvml
import pytest
from fake_nvml import GIB, FakeNvml, Gpu, gpus, install, uuid

from mgpu_nb import Slot
from mgpu_nb.hardware import host
from mgpu_nb.hardware.slots import (
    devices,
    free_memory,
    memory_bound,
    resolve_slots,
    total_memory,
    used_by,
)

L4 = "NVIDIA L4"


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cores", lambda: 8)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [], init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


def parts(slots: tuple[Slot, ...]) -> Any:
    return [(s.index, s.label, s.gpu_id, s.threads) for s in slots]


def test_an_id_twice_is_two_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus(L4, L4))
    slots = resolve_slots([0, 0, 1])
    assert parts(slots) == [(0, "cuda:0", 0, 2), (1, "cuda:0", 0, 2), (2, "cuda:1", 1, 2)]
    assert slots[0].uuid == slots[1].uuid == uuid(0)


def test_a_slot_per_gpu_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus(L4, L4))
    assert parts(resolve_slots()) == [(0, "cuda:0", 0, 4), (1, "cuda:1", 1, 4)]


def test_slots_are_dealt_over_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus(L4, L4))
    assert [s.gpu_id for s in resolve_slots(slots=5)] == [0, 1, 0, 1, 0]
    assert [s.gpu_id for s in resolve_slots(slots=1)] == [0]


def test_virtual_devices_share_the_cores(no_gpu: None) -> None:
    assert parts(resolve_slots(slots=3)) == [(n, f"cpu:{n}", None, 2) for n in range(3)]
    assert {s.threads for s in resolve_slots(slots=20)} == {1}
    assert len(resolve_slots()) == 8
    assert {s.threads for s in resolve_slots(slots=2, threads=3)} == {3}


def test_cpu_on_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus(L4))
    slots = resolve_slots("cpu", slots=2)
    assert parts(slots) == [(0, "cpu:0", None, 4), (1, "cpu:1", None, 4)]
    assert slots[0].environment["CUDA_VISIBLE_DEVICES"] == ""
    assert len(resolve_slots("cpu")) == 8


def test_ids_may_be_uuids_beginnings_of_them_and_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus(L4, L4))
    assert [s.gpu_id for s in resolve_slots([uuid(1), "GPU-0", np.int64(1)])] == [1, 0, 1]  # type: ignore[list-item]
    assert [s.gpu_id for s in resolve_slots(np.array([1, 0]))] == [1, 0]  # type: ignore[arg-type]
    assert [s.gpu_id for s in resolve_slots(range(2))] == [0, 1]


@pytest.mark.parametrize("gpu_id", [2, -1, "GPU-9", "GPU-", "", "cpu"])
def test_an_unknown_id_lists_what_exists(monkeypatch: pytest.MonkeyPatch, gpu_id: int | str) -> None:
    install(monkeypatch, gpus(L4, L4))
    with pytest.raises(ValueError) as caught:
        resolve_slots([0, gpu_id])
    message = str(caught.value)
    assert repr(gpu_id) in message
    assert f"0 (NVIDIA L4, {uuid(0)}), 1 (NVIDIA L4, {uuid(1)})" in message


def test_an_id_without_a_gpu_says_why_and_what_to_use(no_gpu: None) -> None:
    with pytest.raises(ValueError, match=r"no NVIDIA driver.*slots=2 for virtual CPU devices"):
        resolve_slots([0, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"gpu_ids": []}, ValueError, "gpu_ids must be a non-empty sequence"),
        ({"gpu_ids": [True]}, TypeError, r"each an integer or a string\).*got \[True\]"),
        ({"gpu_ids": [0.0]}, TypeError, r"each an integer or a string\).*got \[0\.0\]"),
        ({"gpu_ids": [None]}, TypeError, r"each an integer or a string\).*got \[None\]"),
        ({"gpu_ids": 0}, TypeError, "sequence .* or 'cpu' or None, got 0"),
        ({"gpu_ids": "GPU-0"}, TypeError, "or 'cpu' or None, got 'GPU-0'"),
        ({"gpu_ids": [0, 0], "slots": 4}, ValueError, "repeat an id"),
        ({"slots": 0}, ValueError, "slots must be an integer >= 1 or None, got 0"),
        ({"slots": -1}, ValueError, "integer >= 1"),
        ({"slots": 1.5}, TypeError, "integer >= 1"),
        ({"slots": True}, TypeError, "integer >= 1"),
        ({"threads": 0}, ValueError, "threads must be an integer >= 1"),
    ],
)
def test_what_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    error: type[TypeError] | type[ValueError],
    words: str,
) -> None:
    install(monkeypatch, gpus(L4))
    with pytest.raises(error, match=words):
        resolve_slots(**arguments)


def test_a_slot_pins_its_worker_and_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus(L4, L4))
    slot = resolve_slots([1])[0]
    assert slot.environment == {
        "CUDA_VISIBLE_DEVICES": uuid(1),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "OMP_NUM_THREADS": "8",
        "MKL_NUM_THREADS": "8",
        "OPENBLAS_NUM_THREADS": "8",
        "NUMEXPR_NUM_THREADS": "8",
        "VECLIB_MAXIMUM_THREADS": "8",
    }
    assert pickle.loads(pickle.dumps(slot)) == slot


# Memory.


def test_memory_of_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [Gpu(compute=[(os.getpid(), GIB)])])
    (slot,) = resolve_slots()
    assert (total_memory(slot), free_memory(slot)) == (40 * GIB, 36 * GIB)
    assert used_by(slot.uuid) == {os.getpid(): GIB}


def test_memory_of_a_virtual_slot_is_the_machines(no_gpu: None) -> None:
    slot = resolve_slots(slots=1)[0]
    assert total_memory(slot) == host.memory()[0] <= psutil.virtual_memory().total
    free, total = free_memory(slot), total_memory(slot)
    assert free is not None
    assert total is not None
    assert 0 < free <= total
    assert used_by(slot.uuid) == {}


# GPUs that have no memory but the machine's.


@pytest.fixture
def gb10(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    error = {"nvmlDeviceGetMemoryInfo": pynvml.NVML_ERROR_NOT_SUPPORTED}
    monkeypatch.setattr(host, "bound", lambda: host.MemoryBound(100 * GIB, 60 * GIB, ""))
    return install(monkeypatch, [Gpu(uuid(0), "NVIDIA GB10", errors=error, compute=[(os.getpid(), 2 * GIB)])])


def test_the_ram_stands_in_for_a_gpu_that_shares_it(gb10: FakeNvml) -> None:
    (gpu,) = table = devices()
    assert (gpu.total, gpu.used, gpu.free, gpu.shares_ram) == (100 * GIB, 40 * GIB, 60 * GIB, True)
    assert table.notes == (
        "cuda:0 has no memory of its own: its figures are those of the machine's RAM, which it shares",
    )
    assert table.notes[0] in repr(table)
    (slot,) = resolve_slots()
    assert slot.shares_ram
    assert (total_memory(slot), free_memory(slot)) == (100 * GIB, 60 * GIB)
    assert slot.memory_of == resolve_slots("cpu", slots=1)[0].memory_of
    assert pickle.loads(pickle.dumps(slot)) == slot


def test_a_gpu_that_reports_no_byte_shares_the_ram(gb10: FakeNvml) -> None:
    gb10.gpus[0].errors.clear()
    gb10.gpus[0].total = gb10.gpus[0].used = gb10.gpus[0].reserved = 0
    assert devices()[0].shares_ram
    assert devices()[0].total == 100 * GIB


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_UNKNOWN])
def test_a_gpu_whose_memory_may_not_be_asked_for_has_its_own(gb10: FakeNvml, code: int) -> None:
    gb10.gpus[0].errors["nvmlDeviceGetMemoryInfo"] = code
    assert not devices()[0].shares_ram
    (slot,) = resolve_slots()
    assert total_memory(slot) is free_memory(slot) is None


def test_an_instance_has_a_part_of_its_gpus_memory(gb10: FakeNvml) -> None:
    instance = Gpu("MIG-1", "MIG 1g.5gb", ids=(1, 0), errors=dict(gb10.gpus[0].errors))
    gb10.gpus[:] = [Gpu(uuid(0), instances=[instance])]
    assert [device.shares_ram for device in devices()] == [False, False]
    assert devices()[0].total is None


def test_limits_of_processes_and_jobs_are_told(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        host, "bound", lambda: host.MemoryBound(8 * GIB, 6 * GIB, "memory.max of cgroup /job")
    )
    monkeypatch.setattr(host, "process_limit", lambda: 4 * GIB)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "6144")
    assert devices().notes == (
        "RAM is limited by memory.max of cgroup /job",
        "a process may have 4,096 MiB of address space (ulimit -v)",
        "the job was given 6,144 MiB (SLURM_MEM_PER_NODE), which no cgroup enforces: keep below it by memory=",
    )
    (slot,) = resolve_slots(slots=1)
    assert (total_memory(slot), free_memory(slot)) == (4 * GIB, 6 * GIB)  # of a process, and of all
    assert memory_bound(slot) == "address space of a process, ulimit -v"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "3"}, "3,072 MiB (SLURM_MEM_PER_CPU)"),
        ({"SLURM_MEM_PER_CPU": "1024"}, ""),
        ({"SLURM_MEM_PER_NODE": "0"}, ""),
        ({"SLURM_MEM_PER_NODE": "lots"}, ""),
        ({"SLURM_MEM_PER_NODE": "16384"}, ""),
    ],
)
def test_what_slurm_gave_the_job_is_a_hint(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    monkeypatch.setattr(host, "bound", lambda: host.MemoryBound(8 * GIB, 6 * GIB, ""))
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert host.memory() == (8 * GIB, 2 * GIB, 6 * GIB)
    told = [note for note in host.notes() if "SLURM" in note]
    assert len(told) == bool(said)
    assert said in "".join(told)
