"""A whole alignment with stand-ins for the algorithms: the same files whatever happens to it on the way."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import stand_in

from mgpu_nb import GPUPool, Run
from mgpu_nb.views.palette import NEUTRAL
from mgpu_nb.workloads import alignment
from mgpu_nb.workloads.alignment import sums
from mgpu_nb.workloads.alignment.algorithms import base
from mgpu_nb.workloads.alignment.check import PRELOAD
from mgpu_nb.workloads.alignment.exact import sums_frontier
from mgpu_nb.workloads.alignment.files import COLUMNS, read_rows, unpack
from mgpu_nb.workloads.alignment.names import rounds_of
from mgpu_nb.workloads.alignment.resume import read_settings
from mgpu_nb.workloads.alignment.settings import from_plain
from mgpu_nb.workloads.alignment.states import job_results
from mgpu_nb.workloads.base import load_run

pytestmark = pytest.mark.slow
SETTINGS = (
    "data_collection.max_examples=8",
    "data_collection.examples_per_task=4",
    "data_collection.samples_per_example=2",
    "data_collection.reward_batch_size=5",
    "evaluation.etas=[1,8]",
    "evaluation.samples_per_example=2",
    "evaluation.max_examples=3",
    "algos.QSharp.enabled=false",
    "algos.GRPO-HF.enabled=false",
)
Share = Callable[[GPUPool], AbstractContextManager[GPUPool]]


@pytest.fixture(scope="module", autouse=True)
def orders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Have the stand-ins here; the folder by which a test says what happens to a worker."""
    folder = tmp_path_factory.mktemp("orders")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "ALGORITHMS", stand_in.TABLE)
        patch.setenv(stand_in.ORDERS, str(folder))
        yield folder


@pytest.fixture(scope="module")
def pool(orders: Path, share: Share) -> Iterator[GPUPool]:
    """Two slots whose workers have the stand-ins, too."""
    with share(GPUPool("cpu", slots=2, setup=stand_in.register, preload=[PRELOAD])) as pool:
        yield pool


@pytest.fixture(scope="module")
def whole(pool: GPUPool, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing happened to."""
    return run(tmp_path_factory.mktemp("whole") / "run", pool)


def config(folder: Path, *more: str) -> alignment.Config:
    return alignment.Config((*SETTINGS, *more), output_dir=str(folder))


def run(folder: Path, pool: GPUPool, *more: str) -> Run:
    return alignment.start(config(folder, *more), pool).wait(240)


def files(folder: Path) -> dict[str, bytes]:
    """Content of all files that a run gives its user, and that do not say how long it took."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for name in ("datasets", "models", "results")
        for path in (folder / name).rglob("*")
        if path.is_file()
    }
    return found | {name: (folder / name).read_bytes() for name in ("job_states.json", "config.yaml")}


def states(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "job_states.json").read_text())
    return found


def test_all_jobs_end_and_their_files_are_there(whole: Run) -> None:
    assert not whole.failures
    folder = whole.folder
    jobs = [f"{algo}_gpt2_sums_r{number}" for number in (1, 2) for algo in ("PITA", "DPO", "GRPO")]
    assert states(folder) == dict.fromkeys(jobs, "EVAL_COMPLETED")
    for algo in ("PITA", "DPO", "GRPO"):
        for number in (1, 2):
            rows = read_rows(folder / "datasets" / algo / f"sums_gpt2_r{number}.csv")
            assert len(rows) == 16
            assert all(row.score_a == sums.reward(row.question, row.y_a) for row in rows)
            model = folder / "models" / algo / f"sums_gpt2_r{number}"
            assert [path.name for path in model.iterdir()] == ["number.json"]
            result = json.loads(
                (folder / "results" / algo / "gpt2" / "sums" / f"r{number}" / "result.json").read_text()
            )
            assert {"trained_steps", "loss", "pass@1", "maj@2", "avg_kl", "avg_reward"} <= result[
                "metrics"
            ].keys()
            assert list(result["eval"]) == (["1", "8"] if algo == "PITA" else ["none"])
    with (folder / "datasets" / "PITA" / "sums_gpt2_r1.csv").open() as file:
        assert tuple(next(csv.reader(file))) == COLUMNS


def test_what_waits_for_what(whole: Run) -> None:
    after = whole._ledger.after
    assert set(after["PITA_gpt2_sums_r2_train"]) == {
        *(f"PITA_gpt2_sums_r{number}_generate-{first}" for number in (1, 2) for first in (0, 4)),
        "PITA_gpt2_sums_r1_train",
    }
    assert after["DPO_gpt2_sums_r2_generate-4"] == ("DPO_gpt2_sums_r1_train",)  # and not for its evaluation
    assert after["GRPO_gpt2_sums_r2_train"] == ("GRPO_gpt2_sums_r1_train",)
    assert after["PITA_gpt2_sums_r1_evaluate-8"] == ("PITA_gpt2_sums_r1_train",)
    assert after["reference_gpt2_sums_r0_evaluate"] == ()


@pytest.mark.parametrize("slots", [1, 4])
def test_results_are_the_same_for_any_number_of_slots(whole: Run, tmp_path: Path, slots: int) -> None:
    with GPUPool("cpu", slots=slots, setup=stand_in.register, preload=[PRELOAD]) as pool:
        assert files(run(tmp_path / "run", pool).folder) == files(whole.folder)


def test_a_barrier_changes_no_result_and_parts_the_rounds(whole: Run, pool: GPUPool, tmp_path: Path) -> None:
    barred = run(tmp_path / "run", pool, "system.by_round=true")
    one, other = files(barred.folder), files(whole.folder)
    assert one.pop("config.yaml") != other.pop("config.yaml")
    assert one == other
    times: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    of_task = rounds_of(barred.tasks)
    for record in barred.records:
        times[of_task[record.name]].append((record.started or 0.0, record.finished or 0.0))
    assert max(end for _, end in times[1]) <= min(begin for begin, _ in times[2])
    assert "With a barrier between rounds 2 slots were idle" in str(alignment.collect(barred))
    assert "with a barrier between rounds they would be idle" in str(alignment.collect(whole))


def test_rewards_are_scored_in_batches(whole: Run) -> None:
    """A chunk has 4 examples, 2 samples of each, 2 completions of each: 16 texts."""
    values = {record.name: record.value for record in whole.records}
    assert values["PITA_gpt2_sums_r1_generate-0"]["scored"] == 16
    for value in values.values():
        assert value["reward_calls"] == -(-value["scored"] // 5)
    log = (whole.folder / "run.log").read_text()
    assert "job PITA_gpt2_sums_r2: reward calls: 8 for 32 texts" in log


def test_where_and_how_it_runs_is_no_part_of_what_a_task_is(whole: Run, pool: GPUPool) -> None:
    names = [task.name for task in alignment.tasks(config(whole.folder, "system.by_round=true"), 3)]
    assert names == list(whole.tasks)
    changes = ("system.by_round=true", "system.clear_cache_interval=3", "system.attn_impl=sdpa")
    again = run(whole.folder, pool, *changes)
    assert started(again) == started(whole)
    run(whole.folder, pool)


def started(run: Run) -> dict[str, float | None]:
    return {record.name: record.started for record in run.records if record.ok}


def test_workers_that_are_killed_change_nothing(
    whole: Run, pool: GPUPool, orders: Path, tmp_path: Path
) -> None:
    for stage, job in (
        ("generate", "PITA_gpt2_sums_r2"),
        ("train", "DPO_gpt2_sums_r1"),
        ("evaluate", "PITA_gpt2_sums_r1"),
    ):
        (orders / f"kill-{stage}-{job}").touch()
    done = run(tmp_path / "run", pool)
    assert not list(orders.iterdir())
    assert not done.failures
    assert sum(record.attempt > 1 for record in done.records) == 3
    assert files(done.folder) == files(whole.folder)
    log = (done.folder / "run.log").read_text()
    assert "WARNING job DPO_gpt2_sums_r1: task DPO_gpt2_sums_r1_train" in log


def test_a_failure_cancels_what_depends_on_it_alone_and_is_made_good_by_resuming(
    whole: Run, pool: GPUPool, orders: Path, tmp_path: Path
) -> None:
    told = [
        orders / f"fail-{each}"
        for each in ("train-DPO_gpt2_sums_r1", "evaluate-GRPO_gpt2_sums_r1", "generate-PITA_gpt2_sums_r2")
    ]
    for order in told:
        order.touch()
    try:
        done = run(tmp_path / "run", pool)
    finally:
        for order in told:
            order.unlink()
    assert states(done.folder) == {
        "PITA_gpt2_sums_r1": "EVAL_COMPLETED",
        "DPO_gpt2_sums_r1": "FAILED",
        "GRPO_gpt2_sums_r1": "FAILED",
        "PITA_gpt2_sums_r2": "FAILED",
        "DPO_gpt2_sums_r2": "NOT_STARTED",
        "GRPO_gpt2_sums_r2": "EVAL_COMPLETED",
    }
    assert {record.name for record in done.records if record.status == "skipped"} == {
        "DPO_gpt2_sums_r1_evaluate",
        *(name for name in done.tasks if name.startswith("DPO_gpt2_sums_r2")),
        *(f"PITA_gpt2_sums_r2_{task}" for task in ("train", "evaluate-1", "evaluate-8")),
    }
    report = str(alignment.collect(done))
    assert "DPO_gpt2_sums_r1: DPO_gpt2_sums_r1_train ended error: RuntimeError: train of" in report
    log = (done.folder / "run.log").read_text()
    assert (
        "ERROR job DPO_gpt2_sums_r1: task DPO_gpt2_sums_r1_train ended error: RuntimeError: train of" in log
    )
    assert "WARNING job DPO_gpt2_sums_r2: task DPO_gpt2_sums_r2_train is not run: it waits for" in log
    assert "job DPO_gpt2_sums_r1: DATA_GENERATED -> FAILED" in log
    good = started(done)
    again = run(done.folder, pool)
    assert files(again.folder) == files(whole.folder)
    assert started(again).items() >= good.items()


def test_a_parent_that_is_killed_at_each_stage_changes_nothing(
    whole: Run, pool: GPUPool, orders: Path, tmp_path: Path
) -> None:
    program = f"""
        import stand_in
        from mgpu_nb import GPUPool
        from mgpu_nb.workloads import alignment
        if __name__ == "__main__":
            stand_in.register()
            with GPUPool("cpu", slots=2, setup=stand_in.register, preload=[{PRELOAD!r}]) as pool:
                config = alignment.Config({SETTINGS!r}, output_dir={str(tmp_path / "run")!r})
                alignment.start(config, pool).wait()
    """
    script = tmp_path / "main.py"
    script.write_text(textwrap.dedent(program))
    environment = os.environ | {"PYTHONPATH": str(Path(stand_in.__file__).parent)}
    good: dict[str, float | None] = {}
    for stage in ("generate", "train", "evaluate"):
        order = orders / f"wait-{stage}-PITA_gpt2_sums_r1"
        order.touch()
        with subprocess.Popen([sys.executable, str(script)], env=environment) as process:
            try:
                _until(lambda order=order: order.read_text().endswith("\n") or process.poll() is not None)  # type: ignore[misc]
                assert process.poll() is None
                orphan = int(order.read_text())
            finally:
                process.send_signal(signal.SIGKILL)
                order.unlink()  # other tests are not to wait for it
        _until(lambda orphan=orphan: not _runs(orphan))  # type: ignore[misc]
        _check_states(tmp_path / "run")
        _, interrupted = load_run(tmp_path / "run")
        assert started(interrupted).items() >= good.items()
        good = started(interrupted)
        assert len(good) < len(whole.tasks)
    again = run(tmp_path / "run", pool)
    assert files(again.folder) == files(whole.folder)
    assert started(again).items() >= good.items()


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _check_states(folder: Path) -> None:
    """What the file says is so by the journal, but for the last moment: they are written by two threads."""
    interrupted = Run.open(folder)
    results = job_results(from_plain(read_settings(folder) or {}), interrupted.tasks, interrupted.records)
    for job, state in states(folder).items():
        tasks = results[job].tasks
        named = (
            (tasks.generate, "DATA_GENERATED"),
            (tasks.train, "MODEL_TRAINED"),
            (tasks.evaluate, "EVAL_COMPLETED"),
        )
        order = ["NOT_STARTED", *(reached for names, reached in named if names)]
        assert order.index(state) <= order.index(results[job].state) + 1


def _until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_report_needs_nothing_but_the_folder(whole: Run, tmp_path: Path) -> None:
    workload, opened = load_run(whole.folder)
    assert workload is not None
    report = workload.collect(opened)
    assert isinstance(report, alignment.Report)
    frame = report.frame()
    assert list(frame["round"]) == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert frame["avg_reward"].between(0, 1).all()
    assert str(report.show("PITA", prompts=3, draws=2)).count("=") == 3
    whole_run, with_barrier = report.plot_timelines()
    assert "as it was" in whole_run.get_title("left")
    assert "with a barrier between rounds" in with_barrier.get_title("left")
    paths = report.save(tmp_path)
    assert {path.name for path in paths} >= {
        "result.json",
        "summary.csv",
        "reward_against_kl.png",
        "reward_by_round.png",
        "graph.png",
    }
    [best] = [line for line in report.plot().get_lines() if line.get_color() == NEUTRAL]
    asked = sums_frontier([0, 1, 2])  # three examples are evaluated
    assert np.asarray(best.get_ydata())[0] == pytest.approx(asked.at(0.0).reward)
    assert all(path.stat().st_size for path in paths)
    results = {name: data for name, data in files(whole.folder).items() if name.startswith("results")}
    assert {
        str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("result.json")
    } == results


def test_data_come_in_the_order_of_the_examples(whole: Run) -> None:
    chunks = [r.value["samples"] for r in whole.records if r.name.startswith("DPO_gpt2_sums_r1_generate")]
    samples = [sample for chunk in chunks for sample in unpack(chunk)]
    assert [(sample.index, sample.draw) for sample in samples] == sorted(
        (sample.index, sample.draw) for sample in samples
    )
    texts = [
        (row.question, row.y_a, row.y_b) for row in read_rows(whole.folder / "datasets/DPO/sums_gpt2_r1.csv")
    ]
    assert texts == [(sample.question, sample.y_a, sample.y_b) for sample in samples]


def test_more_rounds_etas_and_algorithms_run_what_is_missing(
    whole: Run, pool: GPUPool, tmp_path: Path
) -> None:
    small = ("rounds_of_training=1", "evaluation.etas=[8]", "algos.DPO.enabled=false")
    first = run(tmp_path / "run", pool, *small)
    good = started(first)
    assert len(good) < len(whole.tasks)
    again = run(tmp_path / "run", pool)
    assert started(again).items() >= good.items()
    assert files(again.folder) == files(whole.folder)


def test_a_model_that_is_damaged_is_named_at_the_door_if_something_still_needs_it(
    whole: Run, pool: GPUPool, tmp_path: Path
) -> None:
    run(
        tmp_path / "run", pool, "rounds_of_training=1", "algos.PITA.enabled=false", "algos.GRPO.enabled=false"
    )
    model = tmp_path / "run" / "models" / "DPO" / "sums_gpt2_r1" / "number.json"
    kept = model.read_text()
    model.write_text("1")
    only = ("algos.PITA.enabled=false", "algos.GRPO.enabled=false")
    alignment.tasks(config(tmp_path / "run", *only, "rounds_of_training=1"))  # all is done
    with pytest.raises(ValueError, match=r"number.json is damaged.*'DPO_gpt2_sums_r1_train'.*--no_resume"):
        alignment.start(config(tmp_path / "run", *only), pool)
    model.unlink()
    with pytest.raises(FileNotFoundError, match=r"number.json is missing.*'DPO_gpt2_sums_r1_train'"):
        alignment.start(config(tmp_path / "run", *only), pool)
    model.write_text(kept)
    run(tmp_path / "run", pool, *only)
    assert (tmp_path / "run" / "models" / "DPO" / "sums_gpt2_r2" / "number.json").read_bytes() == (
        whole.folder / "models" / "DPO" / "sums_gpt2_r2" / "number.json"
    ).read_bytes()


def test_a_run_with_other_settings_is_refused(whole: Run, pool: GPUPool) -> None:
    for change, words in (
        ("algos.PITA.top_k=5", r"algos.PITA.top_k was 20, is 5"),
        ("data_collection.max_examples=9", r"data_collection.max_examples was 8, is 9"),
        ("generation.temperature=0.5", r"generation.temperature was 0.8, is 0.5"),
        ("evaluation.samples_per_example=3", r"evaluation.samples_per_example was 2, is 3"),
        ("datasets.sums.train_examples=50", r"datasets.sums.train_examples was 128, is 50"),
    ):
        with pytest.raises(ValueError, match=rf"other settings: {words}.*--no_resume.*experiment.name"):
            alignment.start(config(whole.folder, change), pool)
    other = replace(config(whole.folder), seed=3)
    with pytest.raises(ValueError, match="other settings: seed was 42, is 3"):
        alignment.start(other, pool)
    disabled = ("algos.PITA.enabled=false", "algos.PITA.learning_rate=0.5")
    assert alignment.tasks(config(whole.folder, *disabled))
    assert states(whole.folder)["PITA_gpt2_sums_r1"] == "EVAL_COMPLETED"  # nothing was touched
