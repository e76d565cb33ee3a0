"""CUDA_VISIBLE_DEVICES and CUDA's order, read without CUDA."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_nb.hardware import visible
from mgpu_nb.hardware.nvml import Reading
from mgpu_nb.hardware.visible import VARIABLE, process_view

ALIKE = [Reading(index=n, uuid=f"GPU-{n}{n}000000", name="NVIDIA L4") for n in range(4)]
MIXED = [
    Reading(index=n, uuid=f"GPU-{n}{n}000000", name=name)
    for n, name in enumerate(["T4", "A100", "T4", "H100"])
]
MIG = [
    Reading(index=0, uuid="GPU-00000000", name="A100", split=True, problem="in MIG mode"),
    Reading(index=0, uuid="MIG-1aaaaaaa", name="A100 MIG 1g.5gb", parent="GPU-00000000", instance=(1, 0)),
    Reading(index=0, uuid="MIG-2aaaaaaa", name="A100 MIG 1g.5gb", parent="GPU-00000000", instance=(11, 0)),
    Reading(index=1, uuid="GPU-11000000", name="A100"),
]


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monkeypatch.setattr(visible, "probe_cuda_order", lambda order: pytest.fail("asked CUDA needlessly"))


def view(
    monkeypatch: pytest.MonkeyPatch, readings: list[Reading], value: str | None = None
) -> tuple[list[str], tuple[str, ...]]:
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    found = process_view(readings)
    return [r.uuid[:6] for r in found.devices], found.notes


def test_unset_shows_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert view(monkeypatch, ALIKE) == (["GPU-00", "GPU-11", "GPU-22", "GPU-33"], ())


@pytest.mark.parametrize(
    ("value", "places", "note"),
    [
        ("2,0", [2, 0], ""),
        ("0, 1,   2", [0, 1, 2], ""),
        ("1gpu,2nd", [1, 2], ""),
        ("+3,-0", [3, 0], ""),
        ("0,2,-1,1", [0, 2], ""),
        ("", [], ""),
        ("  ", [], ""),
        ("-1", [], ""),
        ("NoDevFiles", [], ""),
        ("1,9,2", [1], "stops reading at '9'"),
        ("one,2", [], "stops reading at 'one'"),
        ("1,1", [], "twice"),
        ("GPU-22000000,GPU-0", [2, 0], ""),
        ("GPU-2,GPU-22", [], "twice"),
        ("GPU-1,GPU-", [1], "stops reading at 'GPU-'"),
        ("GPU-1,0", [1], "stops reading at '0'"),
        ("GPU-7", [], "stops reading at 'GPU-7'"),
        ("MIG-1", [], "stops reading at 'MIG-1'"),
    ],
)
def test_entries(monkeypatch: pytest.MonkeyPatch, value: str, places: list[int], note: str) -> None:
    uuids, notes = view(monkeypatch, ALIKE, value)
    assert uuids == [f"GPU-{n}{n}" for n in places]
    assert (note in notes[0]) if note else notes == ()


@pytest.mark.parametrize(
    ("value", "uuids"),
    [
        (None, ["MIG-1a", "MIG-2a", "GPU-11"]),
        ("1,0", ["GPU-11", "MIG-1a", "MIG-2a"]),
        ("MIG-2aaaaaaa", ["MIG-2a"]),
        ("MIG-2", ["MIG-2a"]),
        ("MIG-2,MIG-1", ["MIG-2a", "MIG-1a"]),
        ("MIG-GPU-00000000/1/0", ["MIG-1a"]),
        ("MIG-GPU-00000000/11/0", ["MIG-2a"]),
        ("GPU-0", ["MIG-1a", "MIG-2a"]),
    ],
)
def test_mig_instances_stand_in_the_place_of_their_gpu(
    monkeypatch: pytest.MonkeyPatch, value: str | None, uuids: list[str]
) -> None:
    assert view(monkeypatch, MIG, value) == (uuids, ())


def test_a_failing_gpu_has_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Reading(index=0, name="", problem="fails: GPU is lost")
    monkeypatch.setattr(visible, "probe_cuda_order", lambda order: tuple(r.uuid for r in ALIKE[1:]))
    assert view(monkeypatch, [lost, *ALIKE[1:]], "0,2") == (["GPU-11", "GPU-33"], ())


def test_numbers_are_cudas_and_not_nvmls(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def probe(order: str) -> tuple[str, ...]:
        asked.append(order)
        return tuple(MIXED[n].uuid for n in (3, 1, 0, 2))

    monkeypatch.setattr(visible, "probe_cuda_order", probe)
    assert view(monkeypatch, MIXED)[0] == ["GPU-33", "GPU-11", "GPU-00", "GPU-22"]
    assert view(monkeypatch, MIXED, "2,0") == (["GPU-00", "GPU-33"], ())
    assert asked == ["", ""]
    assert view(monkeypatch, MIXED, "GPU-2,GPU-3") == (["GPU-22", "GPU-33"], ())
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert view(monkeypatch, MIXED, "2,0") == (["GPU-22", "GPU-00"], ())
    assert asked == ["", ""]


@pytest.mark.parametrize("answer", [(), ("GPU-33000000",)])
def test_where_cuda_does_not_say_the_order_is_pcis_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, answer: tuple[str, ...]
) -> None:
    monkeypatch.setattr(visible, "probe_cuda_order", lambda order: answer)
    uuids, (note,) = view(monkeypatch, MIXED, "1,3")
    assert uuids == ["GPU-11", "GPU-33"]
    assert "PCI order" in note


FAKE_CUDA = """
import sys
class Cuda:
    def cuInit(self, flags): return {fails}
    def cuDeviceGetCount(self, count): count._obj.value = 2; return 0
    def cuDeviceGet(self, device, ordinal): device._obj.value = ordinal; return 0
    def cuDeviceGetUuid(self, raw, device): raw[0] = 16 * (2 - device.value); return 0
"""


@pytest.mark.parametrize("fails", [0, 999])
def test_the_probe_asks_the_driver(fails: int) -> None:
    code = FAKE_CUDA.format(fails=fails) + visible._PROBE.replace("ctypes.CDLL(", "Cuda() or (")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    tail = "000000-0000-0000-0000-000000000000"
    assert done.stdout.split() == ([] if fails else [f"GPU-20{tail}", f"GPU-10{tail}"])
    assert bool(done.returncode) == bool(fails)


def test_the_probe_runs_outside_of_the_kernels_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv(VARIABLE, "3")
    seen = {}

    def run(command: list[str], env: dict[str, str], **rest: object) -> subprocess.CompletedProcess[str]:
        seen.update(env)
        return subprocess.CompletedProcess(command, 0, stdout="GPU-1\nGPU-0\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert visible.probe_cuda_order.__wrapped__("FASTEST_FIRST") == ("GPU-1", "GPU-0")
    assert VARIABLE not in seen
    assert seen["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


def test_a_machine_without_cuda_gives_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(visible, "_PROBE", "import ctypes; ctypes.CDLL('libno-such-cuda.so')")
    assert visible.probe_cuda_order.__wrapped__("") == ()
    monkeypatch.setattr(sys, "executable", os.devnull)
    assert visible.probe_cuda_order.__wrapped__("") == ()


# torch reads the variable too, to count GPUs without CUDA. What a kernel's torch calls cuda:1 must be
# what we call 1. A list of entries that name a GPU, and perhaps one that does not.
NUMBERS = st.lists(st.sampled_from(["0", "1", " 2", "3rd", "+1", "-0"]), max_size=4)
UUIDS = st.lists(st.sampled_from(["GPU-0", "GPU-11", "GPU-11000000", "GPU-2", "GPU-33000000"]), max_size=4)
VALUES = st.tuples(NUMBERS, st.sampled_from(["", "7", "-1", "x", "GPU-1", "MIG-1"])) | st.tuples(
    UUIDS, st.sampled_from(["GPU-", "GPU-9", "1", "", " GPU-0"])
)


@settings(max_examples=200)
@given(VALUES, st.booleans())
def test_torch_reads_the_same(pair: tuple[list[str], str], cut: bool) -> None:
    from torch import cuda

    entries, wrong = pair
    value = ",".join([*entries, wrong] if cut else entries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, value)
        listed = cuda._parse_visible_devices()
        if listed and isinstance(listed[0], str):
            listed = cuda._transform_uuid_to_ordinals(listed, [r.uuid for r in ALIKE])
        ours = [r.index for r in process_view(ALIKE).devices]
    assert ours == [n for n in listed if isinstance(n, int) and n < len(ALIKE)]
