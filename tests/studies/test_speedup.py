"""Speed-up studies."""

import os
import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jobs
import pytest

from mgpu_nb import Run, Task, speedup
from mgpu_nb.hardware import host
from mgpu_nb.hardware.slots import Slot
from mgpu_nb.studies import speedup as studies_speedup
from mgpu_nb.studies.rounds import Rounds
from mgpu_nb.studies.speedup import on_slots
from mgpu_nb.studies.study import Measurement


@pytest.mark.slow
def test_sleeping_tasks_gain_what_slots_there_are(tmp_path: Path) -> None:
    tasks = [Task(time.sleep, 0.05, name=f"s{i}") for i in range(8)]
    measured = speedup(tasks, [1, 2], repeats=2, folder=tmp_path)
    assert len(measured.measurements) == 4
    assert measured.counts == [1, 2]
    for m in measured.measurements:
        assert len(m.seconds) == 8
        assert m.wall >= 0.4 / m.slots  # no study can be faster than its work
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"slots-{n}-repeat-{r}" for n in (1, 2) for r in (0, 1)
    ]
    assert "not counted" in measured.notes[0]


def test_more_slots_than_cores_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cores", lambda: 1)
    measured = speedup([Task(jobs.add, 1), Task(jobs.add, 2)], [1, 2], repeats=1)
    assert "2 slots share 1 core:" in measured.notes[1]


def threads_of_worker(_item: int) -> int:
    return int(os.environ["OMP_NUM_THREADS"])


@pytest.mark.slow
@pytest.mark.parametrize(("more", "wanted"), [({}, 3), ({"threads": 2}, 2)])
def test_all_workers_have_the_same_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: dict[str, Any], wanted: int
) -> None:
    monkeypatch.setattr(host, "cores", lambda: 7)
    measured = speedup(threads_of_worker, range(3), slots=[1, 2], repeats=1, folder=tmp_path, **more)
    for n in (1, 2):
        assert Run.open(tmp_path / f"slots-{n}-repeat-0").results() == [wanted] * 3
    assert f"Each worker has {wanted} CPU threads on every number of slots" in measured.notes[1]


def test_threads_that_compete_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cores", lambda: 2)
    measured = speedup(jobs.add, [1, 2], slots=[1, 2], repeats=1, threads=2)
    assert "2 slots of 2 threads share 2 cores: the threads compete from 2 slots on" in measured.notes[1]


def gpu(index: int, uuid: str, name: str = "H100") -> Slot:
    return Slot(index=index, kind="cuda", gpu_id=0, uuid=uuid, name=name, threads=1)


def test_slots_that_share_a_gpu_are_said() -> None:
    shared = on_slots([gpu(0, "a"), gpu(1, "a")], False)
    assert "2 slots share 1 GPU: work that keeps a GPU busy cannot gain beyond 1 slot." in shared
    assert len(on_slots([gpu(0, "a"), gpu(1, "b")], False)) == 1
    assert len(on_slots([gpu(0, "a"), replace(gpu(1, "a"), host="n2")], False)) == 1


def test_a_cluster_is_refused_before_a_pool_is_opened() -> None:
    with pytest.raises(ValueError, match="leave cluster out"):
        speedup(jobs.add, [1], slots=[1, 2], cluster=object())


def test_unlike_gpus_are_said() -> None:
    assert "unlike GPUs (H100, T4)" in on_slots([gpu(0, "a"), gpu(1, "b", "T4")], False)[0]


class Picked:
    """A pool that takes other GPUs each time it picks."""

    taken: ClassVar[list[Any]] = []

    def __init__(self, gpu_ids: Any, slots: int | None, pick: str = "first", **options: Any) -> None:
        self.taken.append((gpu_ids, slots, pick))
        self.slots = tuple(gpu(n, f"GPU-{n + len(self.taken)}") for n in range(slots or len(gpu_ids)))

    def __enter__(self) -> "Picked":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_devices_are_picked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(rounds: Rounds) -> list[Measurement]:
        for n in rounds.counts:
            rounds.make_pool(n)
            rounds.measured.append(Measurement(n, 0, 1 / n, (1.0,)))
        return rounds.measured

    monkeypatch.setattr(studies_speedup, "GPUPool", Picked)
    monkeypatch.setattr(Rounds, "measure", measure)
    monkeypatch.setattr(Picked, "taken", [])
    speedup(jobs.add, [1], slots=[1, 2], repeats=1, pick="free")
    assert Picked.taken == [
        (None, 2, "free"),
        (["GPU-1"], None, "first"),
        (["GPU-1", "GPU-2"], None, "first"),
    ]


@pytest.mark.parametrize(
    ("ids", "counts"), [([0], [1]), ([0, 1], [1, 2]), ([0, 1, 2], [1, 2, 3]), (range(8), [1, 2, 4, 8])]
)
def test_ids_say_which_numbers_are_measured(
    monkeypatch: pytest.MonkeyPatch, ids: Sequence[int], counts: list[int]
) -> None:
    monkeypatch.setattr(studies_speedup, "GPUPool", Picked)
    monkeypatch.setattr(
        Rounds, "measure", lambda rounds: [Measurement(n, 0, 1.0, (1.0,)) for n in rounds.counts]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert speedup(jobs.add, [1], gpu_ids=list(ids), repeats=1).counts == counts


def test_a_function_and_its_inputs(tmp_path: Path) -> None:
    measured = speedup(repr, ((n, n) for n in range(3)), slots=[1, 2], repeats=1, folder=tmp_path)
    assert measured.counts == [1, 2]
    assert [len(m.seconds) for m in measured.measurements] == [3, 3]
    assert Run.open(tmp_path / "slots-2-repeat-0").results() == [
        "(0, 0)",
        "(1, 1)",
        "(2, 2)",
    ]  # one argument each


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((jobs.add,), TypeError, r"add needs inputs, one for each call: speedup\(add, inputs"),
        ((jobs.add, []), ValueError, "inputs is empty"),
        ((jobs.add, iter(())), ValueError, "inputs is empty"),
        ((jobs.add, 3), TypeError, "inputs must be a sequence, .* got 3"),
        ((Measurement,), TypeError, r"Measurement is a class: give a config, Measurement\(\.\.\.\)"),
        (([Task(abs, 1)], [1, 2], [1, 2]), TypeError, "inputs go with a function"),
        ((Task(abs, 1),), TypeError, "give a function and its inputs, a list of tasks, or a config"),
        ((7,), TypeError, "give a function and its inputs"),
    ],
)
def test_what_is_no_work_is_told_what_to_give(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        speedup(*arguments)


def test_an_interrupt_says_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(rounds: Rounds) -> list[Measurement]:
        rounds.measured.append(Measurement(1, 0, 2.0, (1.0,)))
        raise KeyboardInterrupt

    monkeypatch.setattr(Rounds, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        speedup(jobs.add, [1], slots=[1, 2])
    (note,) = caught.value.__notes__
    assert note.startswith("Measured so far:\nslots")


def test_the_progress_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    speedup(jobs.add, [1, 2], slots=[1, 2], repeats=1, progress=True)
    shown = capsys.readouterr()
    assert re.search(r"speed-up study: 2 runs in \d+:\d\d", shown.err)
    assert shown.out == ""
    speedup(jobs.add, [1, 2], slots=[1, 2], repeats=1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "least", "until", "limit"),
    [
        ({}, 3, 0.05, 120.0),
        ({"repeats": 2}, 2, None, 120.0),
        ({"repeats": 2, "until": 0.2}, 2, 0.2, 120.0),
        ({"repeats": 2, "limit": 9}, 2, 0.05, 9.0),
        ({"until": 0.2}, 3, 0.2, 120.0),
    ],
)
def test_how_often_it_is_measured(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], least: int, until: float | None, limit: float
) -> None:
    seen: list[Rounds] = []

    def measure(rounds: Rounds) -> list[Measurement]:
        seen.append(rounds)
        rounds.measured += [Measurement(n, r, 1 / n, (1.0,)) for n in (1, 2) for r in range(3)]
        return rounds.measured

    monkeypatch.setattr(Rounds, "measure", measure)
    speedup([Task(jobs.add, 1)], [1, 2], **given)
    assert (seen[0].least, seen[0].until, seen[0].limit) == (least, until, limit)


@pytest.mark.slow
def test_a_config_of_a_workload_is_work() -> None:
    from mgpu_nb.workloads import protein

    config = protein.Config(
        methods=("standard",), steps=2, num_samples=1, sample_length=20, num_folds=2, branch_counts=(1,)
    )
    with pytest.warns(UserWarning, match="one count has nothing to compare"):
        measured = speedup(config, [1], repeats=1)
    assert len(measured.measurements[0].seconds) == 1
    assert measured.serial_fraction is None


@pytest.mark.slow
def test_a_gang_has_a_world_of_each_size(tmp_path: Path) -> None:
    from mgpu_nb.workloads import training

    config = training.Config(columns=53, width=8, layers=1, heads=2, batch_size=12, epochs=1)
    measured = speedup(config, [1, 2], repeats=1, folder=tmp_path)
    assert [len(m.seconds) for m in measured.measurements] == [1, 2]
    assert all(max(m.seconds) <= m.wall + 1e-6 for m in measured.measurements)
    assert measured.notes[0].startswith("A gang: measured from when its first rank began")
    worlds = [training.Report.open(tmp_path / f"slots-{n}-repeat-0").results["world_size"] for n in (1, 2)]
    assert worlds == [1, 2]
    assert measured.predict([1, 4])["wall"].tolist()[0] == pytest.approx(measured.wall(1))


@pytest.mark.parametrize(
    ("work", "more", "error", "message"),
    [
        ([], {}, ValueError, "at least one Task"), ([Task(abs, 1)], {"slots": [0]}, ValueError, r"slots\[0\] must be"),
        ([Task(abs, 1)], {"slots": []}, ValueError, "slots must be a non-empty sequence"),
        ([Task(abs, 1)], {"slots": [2], "gpu_ids": [0]}, ValueError, "an id for each"),
        ([Task(abs, 1)], {"gpu_ids": [7], "slots": [1]}, ValueError, "no GPU"),
        ([Task(abs, 1)], {"repeats": 0}, ValueError, "repeats must be an integer >= 1.*, got 0"),
        ([Task(abs, 1)], {"until": 0}, ValueError, "until must be .*, got 0"),
        ([Task(abs, 1)], {"limit": -1}, ValueError, "limit must be .*, got -1"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:a study of one count")
def test_bad_input_is_refused_before_anything_starts(
    work: list[Task], more: dict[str, Any], error: type[ValueError], message: str
) -> None:
    with pytest.raises(error, match=message):
        speedup(work, **more)


def test_work_that_fails_is_no_study() -> None:
    with pytest.raises(ValueError, match="bad"):
        speedup([Task(jobs.raises)], [1, 2], repeats=1)


def test_a_study_does_not_resume_another(tmp_path: Path) -> None:
    tasks = [Task(jobs.add, i, name=str(i)) for i in range(4)]
    speedup(tasks, slots=[1, 2], repeats=1, folder=tmp_path)
    with pytest.raises(FileExistsError, match="earlier study"):
        speedup(tasks, slots=[1, 2], repeats=1, folder=tmp_path)
    with pytest.raises(TypeError, match=r"slots must be a non-empty sequence .*, got 2"):
        speedup(tasks, slots=2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"gpu_ids must be .*, got 'cpu'"):
        speedup(tasks, slots=[1, 2], gpu_ids="cpu")
