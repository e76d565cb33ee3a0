"""NVML in every mood that drivers have been seen in, through a fake with pynvml's own exceptions."""

import os
import subprocess
import sys
import threading

import pynvml
import pytest
from fake_nvml import GIB, Gpu, gpus, install, mig_gpu, uuid

from mgpu_nb.hardware import nvml

UNANSWERED = [
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_UNKNOWN,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
]


def test_a_healthy_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [Gpu()])
    assert nvml.shared.reason() == ""
    assert nvml.shared.driver() == "580.65.06"
    (reading,) = nvml.shared.gpus()
    assert (reading.index, reading.uuid, reading.name) == (0, Gpu().uuid, "NVIDIA A100-SXM4-40GB")
    assert (reading.total, reading.used, reading.free) == (40 * GIB, 3 * GIB, 36 * GIB)
    assert (reading.utilisation, reading.temperature, reading.power) == (37, 61, 250.5)
    assert (reading.pci_bus, reading.problem, reading.split) == ("00000000:07:00.0", "", False)


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [])

    def missing() -> None:
        raise ModuleNotFoundError("No module named 'pynvml'")

    monkeypatch.setattr(nvml, "load", missing)
    assert "pip install nvidia-ml-py" in nvml.shared.reason()
    assert nvml.shared.gpus() == []
    assert nvml.shared.driver() == ""
    assert nvml.shared.memory("GPU-0") == (None, None, None)
    assert nvml.shared.processes("GPU-0") == {}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "no NVIDIA driver"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart the machine"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "give access"),
        (pynvml.NVML_ERROR_UNKNOWN, "nvidia-smi"),
    ],
)
def test_a_driver_that_refuses_says_why(monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    install(monkeypatch, [Gpu()], init_error=code)
    assert words in nvml.shared.reason()
    assert nvml.shared.gpus() == []
    assert nvml.shared.memory(Gpu().uuid) == (None, None, None)


def test_a_driver_that_comes_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, [Gpu()], init_error=pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    assert nvml.shared.gpus() == []
    fake.init_error = None
    assert len(nvml.shared.gpus()) == 1


@pytest.mark.parametrize("code", UNANSWERED)
def test_unsupported_fields_are_none_and_never_0(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    gpu = Gpu(errors={"*": code, "nvmlDeviceGetHandleByIndex": None, "nvmlDeviceGetUUID": None})
    install(monkeypatch, [gpu])
    (reading,) = nvml.shared.gpus()
    fields = ("total", "used", "free", "utilisation", "temperature", "power")
    assert [getattr(reading, name) for name in fields] == [None] * 6
    assert (reading.name, reading.pci_bus, reading.problem) == ("", "", "")
    assert nvml.shared.memory(gpu.uuid) == (None, None, None)
    assert nvml.shared.processes(gpu.uuid) == {}


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetPowerUsage"]
)
def test_a_lost_gpu_is_listed_with_its_error_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    broken, fine = gpus("NVIDIA L4", "NVIDIA L4")
    broken.errors[function] = pynvml.NVML_ERROR_GPU_IS_LOST
    install(monkeypatch, [broken, fine])
    first, second = nvml.shared.gpus()
    assert first.problem == "fails: GPU is lost (GPU 0 in PCI order)"
    assert (second.uuid, second.problem) == (fine.uuid, "")


def test_a_gpu_lost_later_answers_none_and_may_return(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(compute=[(os.getpid(), GIB)])
    install(monkeypatch, [gpu])
    assert nvml.shared.memory(gpu.uuid) == (40 * GIB, 3 * GIB, 36 * GIB)
    gpu.errors["*"] = pynvml.NVML_ERROR_GPU_IS_LOST
    assert nvml.shared.memory(gpu.uuid) == (None, None, None)
    assert nvml.shared.processes(gpu.uuid) == {}
    gpu.errors.clear()
    assert nvml.shared.processes(gpu.uuid) == {os.getpid(): GIB}


def test_an_unknown_uuid_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [Gpu()])
    assert nvml.shared.memory("GPU-none") == (None, None, None)


def test_an_old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(compute=[(os.getpid(), GIB)])
    install(monkeypatch, [gpu], old=True)
    assert nvml.shared.driver() == "470.57.02"
    (reading,) = nvml.shared.gpus()
    assert (reading.uuid, reading.name, reading.pci_bus) == (gpu.uuid, gpu.name, gpu.bus)
    assert (reading.total, reading.used, reading.free) == (40 * GIB, 4 * GIB, 36 * GIB)
    assert nvml.shared.processes(gpu.uuid) == {os.getpid(): GIB}


@pytest.mark.parametrize("old", [False, True])
def test_mig_instances_are_devices_and_their_gpu_is_not(monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    install(monkeypatch, [mig_gpu(0, old), *gpus("x", "NVIDIA A100-SXM4-40GB")[1:]], old=old)
    parent, first, second, whole = nvml.shared.gpus()
    assert parent.split
    assert "instances are used" in parent.problem
    assert [(r.parent, r.instance, r.total, r.problem) for r in (first, second)] == [
        (uuid(0), (1, 0), 5 * GIB, ""),
        (uuid(0), (11, 0), 5 * GIB, ""),
    ]
    assert first.utilisation is first.temperature is first.power is None
    assert (whole.uuid, whole.index, whole.split) == (uuid(1), 1, False)
    assert nvml.shared.memory(second.uuid) == (5 * GIB, GIB, 4 * GIB)


def test_mig_mode_without_instances_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [Gpu(instances=[None, None])])
    (reading,) = nvml.shared.gpus()
    assert "nvidia-smi mig -cgi" in reading.problem


def test_processes_are_deduped_and_the_dead_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    me, parent = os.getpid(), os.getppid()
    gpu = Gpu(
        compute=[(me, 2 * GIB), (parent, None), (gone.pid, GIB)],
        graphics=[(me, GIB), (1, pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value)],
    )
    install(monkeypatch, [gpu])
    assert nvml.shared.processes(gpu.uuid) == {me: 2 * GIB, parent: None, 1: None}


def test_one_kind_of_process_list_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(compute=[(os.getpid(), GIB)])
    gpu.errors["nvmlDeviceGetGraphicsRunningProcesses"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    install(monkeypatch, [gpu])
    assert nvml.shared.processes(gpu.uuid) == {os.getpid(): GIB}


def test_nvml_starts_once_and_handles_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, gpus("NVIDIA L4", "NVIDIA L4"))
    assert not fake.calls
    threads = [threading.Thread(target=nvml.shared.memory, args=(uuid(n % 2),)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fake.calls["nvmlInit"] == 1
    assert fake.calls["nvmlDeviceGetHandleByUUID"] == 2
    assert fake.calls["nvmlDeviceGetMemoryInfo"] == 16


def test_another_process_starts_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, [Gpu()])
    nvml.shared.gpus()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    nvml.shared.gpus()
    assert fake.calls["nvmlInit"] == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_lock_held_at_a_fork_does_not_hang_the_child() -> None:
    code = """
import os, signal
from mgpu_nb.hardware import nvml
with nvml.shared._lock:
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)
        nvml.shared.reason()
        os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def test_the_real_library_answers_or_says_why() -> None:
    fresh = nvml.Nvml()
    assert fresh.gpus() or fresh.reason() or fresh.driver()
