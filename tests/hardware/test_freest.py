"""The freest GPUs of a shared machine, and a word when a pool takes others."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace

import pynvml
import pytest
from fake_nvml import GIB, Gpu, gpus, install, mig_gpu, uuid

from mgpu_nb import GPUPool
from mgpu_nb.hardware import holders
from mgpu_nb.hardware.device import DeviceTable
from mgpu_nb.hardware.freest import better_choice, freest_gpus
from mgpu_nb.hardware.holders import Holder
from mgpu_nb.hardware.slots import devices

L4 = "NVIDIA L4"
OTHER = os.getppid()  # a process that this one has not started


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes have the names that these tests give them."""
    known = {
        OTHER: Holder(OTHER, None, "ana", "python train.py"),
        os.getpid(): Holder(os.getpid(), ours=True),
    }
    monkeypatch.setattr(holders, "_known", known.__getitem__)


def machine(monkeypatch: pytest.MonkeyPatch, *used: float) -> list[Gpu]:
    """GPUs of 40 GiB with so many GiB in use; what is in use is held by somebody else."""
    cards = gpus(*[L4] * len(used))
    for card, gib in zip(cards, used, strict=True):
        card.used = int(gib * GIB)
        card.compute = [(OTHER, card.used)] if gib else []
    install(monkeypatch, cards)
    return cards


def load(monkeypatch: pytest.MonkeyPatch, **percent: int) -> None:
    """Utilisation by number of the GPU, ``gpu2=90``."""

    def changed() -> DeviceTable:
        return DeviceTable([replace(d, utilisation=percent.get(f"gpu{d.index}", 0)) for d in devices()])

    monkeypatch.setattr("mgpu_nb.hardware.freest.devices", changed)


def test_free_memory_decides_then_utilisation_then_processes_then_the_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cards = machine(monkeypatch, 30, 10, 20, 10, 10, 10.1)
    cards[5].compute = []
    load(monkeypatch, gpu1=90)
    assert freest_gpus() == [uuid(n) for n in (5, 3, 4, 1, 2, 0)]  # 0.1 GiB more in use is no difference
    assert freest_gpus(2) == [uuid(5), uuid(3)]
    assert freest_gpus(2, {uuid(3): 1}) == [uuid(5), uuid(4)]  # a slot of ours is there already
    assert freest_gpus(8) == [uuid(n) for n in (5, 3, 4, 1, 2, 0, 5, 3)]


def test_without_differences_it_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0, 0, 0)
    assert freest_gpus(2) == [uuid(0), uuid(1)]


def test_gpus_without_room_are_never_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = machine(monkeypatch, 38.6, 0, 5)
    cards[1].errors["*"] = pynvml.NVML_ERROR_GPU_IS_LOST
    monkeypatch.setattr("mgpu_nb.hardware.visible.probe_cuda_order", lambda order: (uuid(0), uuid(2)))
    assert freest_gpus(3) == [uuid(2)] * 3
    cards[2].used = 39 * GIB
    with pytest.raises(ValueError, match=r"no GPU has 512 MiB free \(cuda:0 is held by ana: python train.py"):
        freest_gpus(1)


def test_what_is_not_known_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = machine(monkeypatch, 0, 30, 20)
    cards[0].errors["nvmlDeviceGetMemoryInfo"] = pynvml.NVML_ERROR_NO_PERMISSION
    assert freest_gpus() == [uuid(2), uuid(1), uuid(0)]


def test_instances_of_a_mig_gpu_are_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = mig_gpu()
    first, second = (instance for instance in gpu.instances or () if instance)
    first.used = 3 * GIB
    install(monkeypatch, [gpu])
    assert freest_gpus(1) == [second.uuid]


def test_a_pool_takes_the_freest(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 30, 10, 0, 20)
    with GPUPool(slots=2, pick="free") as pool:
        assert [(slot.index, slot.gpu_id, slot.uuid) for slot in pool.slots] == [
            (0, 2, uuid(2)),
            (1, 1, uuid(1)),
        ]
    with GPUPool(pick="free", threads=1) as pool:
        assert [slot.gpu_id for slot in pool.slots] == [2, 1, 3, 0]
        assert {slot.threads for slot in pool.slots} == {1}


def test_a_second_pool_takes_others(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0, 0, 0, 0)
    with GPUPool(slots=2, pick="free") as first, GPUPool(slots=2, pick="free") as second:
        assert [slot.gpu_id for pool in (first, second) for slot in pool.slots] == [0, 1, 2, 3]
    with GPUPool(slots=2, pick="free") as pool:  # the others are closed
        assert [slot.gpu_id for slot in pool.slots] == [0, 1]


def test_pick_and_gpu_ids_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0, 0)
    for ids in ([0], "cpu"):
        with pytest.raises(ValueError, match=r"gpu_ids=.* and pick='free' both choose devices"):
            GPUPool(ids, pick="free")
    with pytest.raises(ValueError, match="pick must be one of first, free, got 'fre'; did you mean 'free'"):
        GPUPool(pick="fre")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="slots must be an integer >= 1"):
        GPUPool(slots=0, pick="free")


def test_without_a_gpu_the_virtual_devices_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [], init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    with GPUPool(slots=2, pick="free") as pool:
        assert [slot.label for slot in pool.slots] == ["cpu:0", "cpu:1"]


def test_an_engine_that_cannot_choose_says_so() -> None:
    from virtual import VirtualEngine

    with pytest.raises(ValueError, match="VirtualEngine cannot choose devices; leave pick out"):
        GPUPool(engine=VirtualEngine(1), pick="free")


def test_the_first_gpus_are_taken_with_a_word_on_who_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 12, 0, 0, 0)
    wanted = (
        rf"^cuda:0 is held by ana: python train.py \(pid {OTHER}\) 12.0 GiB, and cuda:2 and cuda:3 have more free "
        r"memory: pick='free' takes the freest GPUs, gpu_ids=\[1, 2\]$"
    )
    with pytest.warns(UserWarning, match=wanted) as caught, GPUPool(slots=2) as pool:
        assert [slot.gpu_id for slot in pool.slots] == [0, 1]
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("used", "slots"),
    [((0, 12, 12), 1), ((12, 12, 12), 1), ((12, 39.5, 30), 1), ((12, 0), 2), ((0.1, 0, 0), 1)],
    ids=["nobody holds it", "no other is freer", "others are fuller", "all are taken", "a desktop holds it"],
)
def test_otherwise_there_is_no_word(
    monkeypatch: pytest.MonkeyPatch, used: tuple[float, ...], slots: int
) -> None:
    machine(monkeypatch, *used)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GPUPool(slots=slots).shutdown()
        GPUPool([0]).shutdown()
        GPUPool().shutdown()


def test_holders_that_the_driver_does_not_list_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = machine(monkeypatch, 12, 0)
    cards[0].compute = []
    said = "cuda:0 is held by processes that the driver does not list, and cuda:1 has more free memory: "
    assert better_choice({uuid(0)}) == said + "pick='free' takes the freest GPUs, gpu_ids=[1]"
    assert better_choice({uuid(0)}, {uuid(0): 1}) == ""  # it may be a pool of this process
    cards[0].compute = [(os.getpid(), 12 * GIB)]
    assert better_choice({uuid(0)}) == ""
