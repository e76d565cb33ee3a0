"""Speed-up studies."""

import time
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer

from mgpu_nb import GPUPool, Run, Task, compare, speedup
from mgpu_nb.runs.ledger import Ledger
from mgpu_nb.studies.study import Measurement, Study, makespan


def study(walls: dict[int, list[float]], seconds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Study:
    return Study([Measurement(n, i, w, seconds) for n, ws in walls.items() for i, w in enumerate(ws)])


def test_the_table_says_what_was_gained() -> None:
    frame = study({1: [4.4, 4.0, 4.1], 2: [2.2, 2.05], 4: [1.025]}).frame()
    assert frame["slots"].tolist() == [1, 2, 4]
    assert frame["wall"].tolist() == pytest.approx([4.1, 2.125, 1.025])
    assert frame["spread"].tolist() == pytest.approx([0.4, 0.15, 0.0])
    assert frame["speed_up"].tolist() == pytest.approx([1.0, 4.1 / 2.125, 4.0])
    assert frame["efficiency"].tolist() == pytest.approx([1.0, 4.1 / 4.25, 1.0])
    assert frame["busy"].tolist()[2] == pytest.approx(4 / 4.1)
    assert frame["overhead"].tolist()[2] == pytest.approx(0.1 / 4)


@pytest.mark.parametrize("serial", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("base", [1, 2])
def test_amdahls_fraction_is_found_again(serial: float, base: int) -> None:
    walls = {n: [10 * (serial + (1 - serial) * base / n)] for n in (base, 2 * base, 4 * base)}
    assert study(walls).serial_fraction == pytest.approx(serial)


def test_a_list_schedule() -> None:
    assert makespan([3, 3, 2, 2, 2], 2) == 7  # the example of Graham: 6 would be best
    assert makespan([1, 2, 3], 1) == 6
    assert makespan([1, 2, 3], 9) == 3


def test_prediction_lists_the_longest_first_with_the_measured_overhead() -> None:
    seconds = (3.0, 1.0, 1.0, 1.0)
    measured = study({1: [6.4]}, seconds)
    frame = measured.predict([1, 2, 8])
    assert frame["wall"].tolist() == pytest.approx([6.4, 3.3, 3.1])
    assert frame["speed_up"].tolist() == pytest.approx([1.0, 6.4 / 3.3, 6.4 / 3.1])
    with pytest.raises(ValueError, match="one or more"):
        measured.predict([0])


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
    from mgpu_nb.hardware import host

    monkeypatch.setattr(host, "cores", lambda: 1)
    measured = speedup([Task(jobs.add, 1), Task(jobs.add, 2)], [1, 2], repeats=1)
    assert "2 slots share 1 cores" in measured.notes[1]


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
    ahead = measured.predict([1, 4])
    assert ahead["wall"].tolist()[0] == pytest.approx(measured.wall(1))
    with pytest.raises(ValueError, match="measure several"):
        Study([Measurement(1, 0, 1.0, (1.0,))], gang=True).predict([2])


def test_a_gang_is_predicted_by_amdahls_law() -> None:
    walls = {n: 10 * (0.2 + 0.8 / n) for n in (1, 2, 4)}
    gang = Study([Measurement(n, 0, wall, (wall,) * n) for n, wall in walls.items()], gang=True)
    assert gang.predict([8])["wall"].tolist() == pytest.approx([10 * (0.2 + 0.8 / 8)])


@pytest.mark.parametrize(
    ("work", "more", "error", "message"),
    [
        ([], {}, ValueError, "at least one Task"), ([Task(abs, 1)], {"slots": [0]}, ValueError, r"slots\[0\] must be"),
        ([Task(abs, 1)], {"slots": []}, ValueError, "slots must be a non-empty sequence"),
        ([Task(abs, 1)], {"slots": [2], "gpu_ids": [0]}, ValueError, "an id for each"),
        ([Task(abs, 1)], {"gpu_ids": [7], "slots": [1]}, ValueError, "no GPU"),
        ([Task(abs, 1)], {"repeats": 0}, ValueError, "repeats must be an integer >= 1, got 0"),
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


def test_the_picture_shows_what_was_measured() -> None:
    ax = study({1: [4.0, 4.4], 2: [2.1]}).plot(predict=[8], published="tracin")
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert {"ideal", "predicted", "stated by the guide (tracin)"} <= lines.keys()
    assert lines["predicted"].get_linestyle() == "--"
    assert np.asarray(lines["predicted"].get_xdata()).tolist() == [2, 8]
    (bars,) = ax.containers
    assert isinstance(bars, ErrorbarContainer)
    assert np.asarray(bars.lines[0].get_ydata()).tolist() == pytest.approx([1.0, 2.0])
    mine = study({1: [4.0], 2: [2.1]}).plot(published={2: 1.9, 16: 12.0})
    published = {line.get_label(): line for line in mine.get_lines()}["published"]
    assert np.asarray(published.get_xdata()).tolist() == [2, 16]
    with pytest.raises(ValueError, match="did you mean 'training'"):
        study({1: [1.0]}).plot(published="trainin")
    with pytest.raises(ValueError, match="states no speed-ups"):
        study({1: [1.0]}).plot(published="tracin-batch")


def test_the_study_shows_itself() -> None:
    shown = study({1: [4.0], 2: [2.0]})._repr_html_()
    assert "2.00" in shown
    assert "100%" in shown
    assert "serial fraction" in repr(study({1: [4.0], 2: [2.5]}))


def test_runs_side_by_side(pool: GPUPool, tmp_path: Path) -> None:
    one = pool.run([Task(jobs.add, i) for i in range(3)], name="one", folder=tmp_path / "one").wait(60)
    pool.run([Task(jobs.add, 1), Task(jobs.raises)], name="two", folder=tmp_path / "two").wait(60)
    frame = compare([one, tmp_path / "two"])
    assert frame["run"].tolist() == ["one", "two"]
    assert frame[["tasks", "ok", "failed"]].to_numpy().tolist() == [[3, 3, 0], [2, 1, 1]]
    assert frame["wall"].between(0, 60).all()
    assert isinstance(frame, pd.DataFrame)
    with pytest.raises(ValueError, match="at least one"):
        compare([])
    with pytest.raises(FileNotFoundError):
        compare([tmp_path])
    with pytest.raises(ValueError, match="no task has run"):
        compare([Run(Ledger("empty", tmp_path, ["a"]))])


def test_a_study_does_not_resume_another(tmp_path: Path) -> None:
    tasks = [Task(jobs.add, i, name=str(i)) for i in range(4)]
    speedup(tasks, slots=[1, 2], repeats=1, folder=tmp_path)
    with pytest.raises(FileExistsError, match="earlier study"):
        speedup(tasks, slots=[1, 2], repeats=1, folder=tmp_path)
    with pytest.raises(TypeError, match=r"slots must be a non-empty sequence .*, got 2"):
        speedup(tasks, slots=2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"gpu_ids must be .*, got 'cpu'"):
        speedup(tasks, slots=[1, 2], gpu_ids="cpu")
