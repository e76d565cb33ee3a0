"""Which slots a job gets. What follows from it in time is in test_dispatcher.py."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from virtual import ENVIRONMENT, GIB, VirtualEngine, VirtualWorker

from mgpu_nb.engines import payload
from mgpu_nb.scheduler import admission
from mgpu_nb.scheduler.admission import Admission
from mgpu_nb.scheduler.job import FutureJob, Gang, Job
from mgpu_nb.scheduler.state import SlotState, WorkerProcess


class Bench:
    """Slots of a pool with a process for each job, and what is taken of them."""

    def __init__(self, *gpus: int) -> None:
        self.engine = VirtualEngine(gpus)
        self.slots = [SlotState(slot) for slot in self.engine.slots()]
        self.admission = Admission(self.slots, True, self.engine.memory, self.engine.held)

    def take(
        self, *positions: int, alone: bool = False, memory: int | None = None, on_host: bool = False
    ) -> WorkerProcess:
        slots = [self.slots[n] for n in positions]
        worker = object.__new__(VirtualWorker)
        worker.slot, worker.behaviour = slots[0].slot, None
        process = WorkerProcess(worker, tuple(slots), ENVIRONMENT)
        process.job = job(memory=memory)
        self.admission.take(slots, process, alone, on_host)
        return process

    def choose(self, wanted: Job) -> list[int] | None:
        chosen = self.admission.choose(wanted)
        return None if chosen is None else [slot.position for slot in chosen]


class Sized(FutureJob):
    """A call that states its memory, or has it learnt by its kind."""

    kind = "sized"


def job(devices: int = 1, *, alone: bool = False, memory: int | None = None) -> FutureJob:
    made = Sized(payload.Payload(b""), ENVIRONMENT, 1)
    made.devices, made.alone, made.memory = devices, alone, memory
    return made


def gang(world: int, apart: bool) -> FutureJob:
    made = job(world)
    made.gang = Gang([made], apart)
    return made


@pytest.mark.parametrize("apart", [False, True])
def test_a_gang_is_spread_over_devices(apart: bool) -> None:
    assert Bench(0, 0, 1, 1).choose(gang(2, apart)) == [0, 2]


def test_ranks_that_need_a_device_each_wait_for_it() -> None:
    bench = Bench(0, 0, 1, 1)
    first, second = bench.take(2), bench.take(3)
    assert bench.choose(gang(2, apart=False)) == [0, 1]
    assert bench.choose(gang(2, apart=True)) is None
    bench.admission.give_back([bench.slots[3]], second)
    assert bench.choose(gang(2, apart=True)) == [0, 3]
    assert first.slots == (bench.slots[2],)


def test_ranks_for_which_there_are_not_as_many_devices_are_refused() -> None:
    bench = Bench(0, 0, 1, 1)
    assert bench.admission.impossible(gang(2, apart=True)) == ""
    for slot in bench.slots[2:]:
        bench.admission.retire(slot, "it does not start")
    assert bench.admission.impossible(gang(2, apart=True)) == "it takes 2 devices, the pool has 1 in use"
    assert bench.admission.impossible(gang(2, apart=False)) == ""
    assert "slot 2: it does not start" in bench.admission.impossible(job(3))


def test_the_device_with_the_fewest_tasks_first() -> None:
    bench = Bench(0, 0, 1, 1)
    chosen = []
    for _ in range(4):
        slots = bench.choose(job())
        assert slots is not None
        chosen += slots
        bench.take(*slots)
    assert chosen == [0, 2, 1, 3]
    assert bench.choose(job()) is None


def test_a_device_that_a_job_has_alone_is_no_choice() -> None:
    bench = Bench(0, 0, 1, 1)
    alone = bench.take(0, alone=True)
    assert bench.choose(job()) == [2]
    bench.take(2)
    assert bench.choose(job(alone=True)) is None
    bench.admission.give_back([bench.slots[0]], alone)
    assert bench.choose(job(alone=True)) == [0]


def test_what_is_promised_is_not_free() -> None:
    bench = Bench(0, 0, 0, 1)
    assert bench.choose(job(memory=50 * GIB)) == [0]
    bench.take(0, memory=50 * GIB)
    assert bench.choose(job(memory=50 * GIB)) == [3]
    bench.take(3, memory=50 * GIB)
    assert bench.choose(job(memory=50 * GIB)) == []
    assert bench.choose(job(memory=30 * GIB)) == [1]
    assert bench.choose(job(2, memory=50 * GIB)) == []


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_slots_that_come_and_go_are_counted(order: Sequence[int]) -> None:
    bench = Bench(0, 1, 2, 2)
    taken = {n: bench.take(n) for n in order}
    assert (bench.admission.free, bench.admission.idle) == (0, 0)
    for n, process in taken.items():
        bench.admission.give_back([bench.slots[n]], process)
    assert (bench.admission.free, bench.admission.idle) == (4, 4)
    bench.admission.retire(bench.slots[0], "gone")
    assert (bench.admission.free, bench.admission.retired) == (3, 1)
    assert bench.choose(job()) == [1]


# Pools of one process on the same devices.


def test_promises_are_no_more_than_they_are_taken_for() -> None:
    bench = Bench(0, 0, 0, 1)

    def promised() -> dict[str, tuple[list[int], int]]:
        memories = sorted({slot.slot.memory_of for slot in bench.slots})
        sizes = {memory: [each.size for each in bench.admission.promises(memory)] for memory in memories}
        return {
            memory: (sorted(found), bench.admission.most_promised(memory)) for memory, found in sizes.items()
        }

    assert list(promised().values()) == [([], 0), ([], 0)]
    bench.take(0, memory=3 * GIB)
    bench.take(1, 3)  # of both devices: counted once for each
    learnt = bench.take(2).job
    assert learnt is not None
    bench.admission.learn(learnt, 2 * GIB)
    assert list(promised().values()) == [([2 * GIB, 2 * GIB, 3 * GIB], 9 * GIB), ([2 * GIB], 3 * GIB)]
    bench.admission.learn(learnt, 4 * GIB)
    assert list(promised().values()) == [([3 * GIB, 4 * GIB, 4 * GIB], 12 * GIB), ([4 * GIB], 4 * GIB)]


def test_what_runs_is_asked_for_where_all_that_may_be_promised_is_not_free() -> None:
    bench = Bench(0, 0, 0)
    bench.take(0, memory=60 * GIB)
    assert bench.choose(job(memory=10 * GIB)) == [1]  # 190 GiB at most, 70 in fact
    bench.admission.withdraw()
    bench.engine.others["GPU-0"] = 5 * GIB
    assert bench.choose(job(memory=10 * GIB)) == [1]
    bench.admission.withdraw()
    bench.engine.others["GPU-0"] = 15 * GIB
    assert bench.choose(job(memory=10 * GIB)) == []


def test_what_another_pool_promised_is_not_free() -> None:
    bench, other = Bench(0, 1), Bench(0, 1)
    process = other.take(0, memory=50 * GIB)
    assert bench.choose(job(memory=50 * GIB)) == [1]
    bench.take(1, memory=50 * GIB)
    assert bench.choose(job(memory=40 * GIB)) == []
    assert bench.admission.in_use_elsewhere()
    other.admission.give_back([other.slots[0]], process)
    assert bench.choose(job(memory=40 * GIB)) == [0]
    assert not bench.admission.in_use_elsewhere()


def test_a_job_that_is_about_to_start_has_its_memory() -> None:
    bench, other = Bench(0), Bench(0)
    assert other.choose(job(memory=50 * GIB)) == [0]
    assert bench.choose(job(memory=50 * GIB)) == []
    other.admission.withdraw()  # it was cancelled
    assert bench.choose(job(memory=50 * GIB)) == [0]
    assert other.choose(job(memory=50 * GIB)) == []
    assert bench.choose(job(memory=90 * GIB)) == []  # promised nothing
    assert other.choose(job(memory=50 * GIB)) == [0]


def test_a_closed_pool_promises_nothing() -> None:
    bench, other = Bench(0), Bench(0)
    other.take(0, memory=50 * GIB)
    other.admission.close()
    assert bench.choose(job(memory=50 * GIB)) == [0]


def test_a_job_that_exhausts_its_host_has_all_devices_for_itself() -> None:
    bench = Bench(0, 1, 1)
    wanted = job(alone=True)
    wanted.exhausts_host = True
    beside = bench.take(2)
    assert bench.choose(wanted) is None
    assert bench.choose(job(alone=True)) == [0]
    bench.admission.give_back([bench.slots[2]], beside)
    assert bench.choose(wanted) == [0]
    process = bench.take(0, alone=True, on_host=True)
    assert bench.choose(job()) is None
    bench.admission.give_back([bench.slots[0]], process)
    assert bench.choose(job()) == [0]
    assert bench.admission.need_key(wanted) != bench.admission.need_key(job(alone=True))


def test_what_is_free_is_told() -> None:
    bench = Bench(0, 0, 1)
    bench.engine.others["GPU-1"] = 30 * GIB
    free = f"host-0 cuda:0 has {80 * GIB:,} of {80 * GIB:,} free, host-0 cuda:1 has {50 * GIB:,} of {80 * GIB:,} free"
    assert bench.admission.told() == free


def test_a_fork_has_no_pools_and_a_lock_of_its_own() -> None:
    other = Bench(0)
    other.take(0, memory=50 * GIB)
    with admission._everywhere:  # as another thread may
        pid = os.fork()
        if not pid:
            code = 1
            try:
                code = Bench(0).choose(job(memory=50 * GIB)) != [0]
            finally:
                os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
