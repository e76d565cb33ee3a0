"""Which seats a gang gets."""

from typing import Any

import pytest

from mgpu_nb.hardware.slots import Slot
from mgpu_nb.scheduler.admission import Admission
from mgpu_nb.scheduler.job import Gang, Job
from mgpu_nb.scheduler.state import Seat


class Rank(Job):
    def __init__(self, world: Any) -> None:
        self.devices, self.batch, self.alone = world, 0, False

    def begin(self) -> Any:
        return True

    def finish(self, outcome: Any) -> None:
        pass


def seats(*gpus: Any) -> Any:
    return [
        Seat(Slot(index=n, kind="cuda", gpu_id=gpu, uuid=f"GPU-{gpu}", name="", threads=1))
        for n, gpu in enumerate(gpus)
    ]


def gang(world: Any, apart: Any) -> Any:
    job = Rank(world)
    job.gang = Gang([job], apart)
    return job


def places(chosen: Any) -> Any:
    return chosen if chosen is None else [seat.slot.gpu_id for seat in chosen]


@pytest.mark.parametrize("apart", [False, True])
def test_a_gang_is_spread_over_devices(apart: Any) -> None:
    admission = Admission(seats(0, 0, 1, 1), fresh=True)
    assert places(admission.choose(gang(2, apart))) == [0, 1]


def test_ranks_that_need_a_device_each_wait_for_it() -> None:
    all_seats = seats(0, 0, 1, 1)
    admission = Admission(all_seats, fresh=True)
    for seat in all_seats[2:]:
        seat.taken_by = object.__new__(type("Busy", (), {"job": None}))
    assert places(admission.choose(gang(2, apart=False))) == [0, 0]
    assert admission.choose(gang(2, apart=True)) is None
    all_seats[3].taken_by = None
    assert places(admission.choose(gang(2, apart=True))) == [0, 1]


def test_ranks_for_which_there_are_not_as_many_devices_are_refused() -> None:
    all_seats = seats(0, 0, 1, 1)
    admission = Admission(all_seats, fresh=True)
    assert admission.impossible(gang(2, apart=True)) == ""
    for seat in all_seats[2:]:
        seat.retired = "it does not start"
    assert admission.impossible(gang(2, apart=True)) == "it takes 2 devices, the pool has 1 in use"
    assert admission.impossible(gang(2, apart=False)) == ""
