from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mgpu_nb.tasks import Record
from mgpu_nb.workloads.protein import Config, collect, run_experiment
from mgpu_nb.workloads.protein.files import SUMMARY_COLUMNS
from mgpu_nb.workloads.protein.report import best_structure

NAN = float("nan")


def value(
    method: str, branches: int, scores: list[float], nfe: int, score: str = "tm_score"
) -> dict[str, Any]:
    return {
        "method": method, "num_branches": branches, "config": {"scoring_function": score}, "num_samples": len(scores),
        "mean_score": float(np.mean(scores)), "std_score": float(np.std(scores)), "max_score": max(scores),
        "min_score": min(scores), "total_time": 2.0, "time_per_sample": 1.0, "scores": list(scores),
        "scoring_function": score, "nfe": nfe, "structures": [], "best_sample": 0, "positions": [[0.0, 0.0, 0.0]],
    }  # fmt: skip


def record(result: dict[str, Any], **changes: Any) -> Record:
    name = f"{result['method']}-b{result['num_branches']}"
    fields = {
        "name": name,
        "index": 0,
        "kind": "k",
        "status": "ok",
        "value": result,
        "device": "cuda:1",
        "gpu_id": 3,
    }
    return Record(**{**fields, "peak_memory": 1000, "pid": 42, "attempt": 1, **changes})


def test_devices_of_two_machines_are_told_apart(tmp_path: Path) -> None:
    hosts = {"standard": "n1", "best_of_n": "n2"}
    records = [record(value(method, 2, [0.6], 50), host=host) for method, host in hosts.items()]
    text = str(collect(SimpleNamespace(records=records, folder=tmp_path)))
    assert [name for name in ("n1 GPU 3", "n2 GPU 3") if name not in text] == []


@pytest.fixture
def run(tmp_path: Path) -> SimpleNamespace:
    records = [
        record(value("standard", 1, [0.6, 0.8], 50)),
        record(value("best_of_n", 4, [0.7, 0.9], 200)),
        record(value("best_of_n", 2, [0.7, 0.8], 100), gpu_id=None, device="cpu:0"),
        Record(
            name="noise_search-b8",
            index=3,
            kind="k",
            status="killed",
            error="killed: <out of memory> & gone",
            pid=43,
            attempt=2,
        ),
    ]
    return SimpleNamespace(records=records, folder=tmp_path)


def test_the_summary_begins_with_the_seeds_columns(run: SimpleNamespace) -> None:
    frame = collect(run).frame()
    seed = (
        "method,num_branches,mean_score,std_score,max_score,min_score,total_time,time_per_sample,num_samples,"
        "scoring_function,gpu_id,nfe,status"
    )
    assert ",".join(SUMMARY_COLUMNS) == seed
    ours = ["improvement", "best_of_n", "difference", "difference_error", "verdict"]
    assert list(frame.columns) == [*SUMMARY_COLUMNS, *ours]
    assert frame.method.tolist() == ["standard", "best_of_n", "best_of_n", "noise_search"]
    assert frame.status.tolist() == ["ok", "ok", "ok", "killed"]
    assert frame.num_branches.tolist() == [1, 4, 2, 8]
    assert frame.nfe[1] == 200


def test_a_failed_experiment_is_known_by_its_name(run: SimpleNamespace) -> None:
    failed = collect(run).results[3]
    assert (failed["method"], failed["num_branches"], failed["status"]) == ("noise_search", 8, "killed")
    assert failed["error"] == "killed: <out of memory> & gone"
    assert (failed["pid"], failed["attempt"], failed["mean_score"], failed["scores"]) == (43, 2, None, [])


def test_a_failed_experiment_of_a_budget_is_known_by_its_name() -> None:
    lost = Record(name="sde_path_exploration-b3.every14", index=0, kind="k", status="killed")
    (result,) = collect(SimpleNamespace(records=[lost], folder=None)).results
    assert (result["method"], result["num_branches"]) == ("sde_path_exploration", 3)


def test_the_record_says_where_it_ran(run: SimpleNamespace) -> None:
    first = collect(run).results[0]
    assert (first["gpu_id"], first["peak_memory_bytes"], first["pid"], first["attempt"]) == (3, 1000, 42, 1)
    assert first["error"] == ""


def test_a_table_per_method_and_the_best(run: SimpleNamespace) -> None:
    text = str(collect(run))
    blocks = text.split("\n\n")
    assert [block.splitlines()[0] for block in blocks[:3]] == ["standard", "best_of_n", "noise_search"]
    rows = [line.split() for line in blocks[1].splitlines()[2:]]
    assert rows == [
        ["2", "0.7500", "+0.0500", "(+7.1%)", "100", "2.00", "s", "cpu:0"],
        ["4", "0.8000", "+0.1000", "(+14.3%)", "200", "2.00", "s", "GPU", "3"],
    ]
    assert "baseline" in blocks[0]
    assert (
        "Highest mean: best_of_n with 4 branches, mean tm_score to the nearest reference fold 0.8000 at 200"
        in text
    )
    assert "No clear best: within the error of it are best_of_n with 2 branches at 100\n" in text
    assert "1 of 4 experiments failed:\n  noise_search-b8: killed: <out of memory> & gone" in text


@pytest.mark.parametrize(
    ("scores", "clear"),
    [
        ([0.70, 0.80, 0.90, 0.60], True),  # the same 0.05 less each time
        ([0.70, 0.80, 0.90, 0.65], True),
        ([0.50, 0.95, 0.80, 0.75], False),
        ([0.75, 0.85, 0.95, 0.55], False),
    ],
)
def test_a_winner_is_better_beyond_the_error_of_paired_samples(scores: list[float], clear: bool) -> None:
    best = [0.75, 0.85, 0.95, 0.66]
    records = [
        record(value("best_of_n", 4, best, 200)),
        record(value("noise_search", 2, scores, 100)),
        record(value("standard", 1, [0.1, 0.2, 0.3, 0.1], 50)),
    ]
    report = collect(SimpleNamespace(records=records, folder=None))
    difference = np.subtract(best, scores)
    assert clear == bool(difference.mean() > 2 * difference.std(ddof=1) / 2)
    assert [result["method"] for result in report.rivals()] == ([] if clear else ["noise_search"])
    assert ("Best: best_of_n with 4 branches" in str(report)) == clear
    assert ("No clear best" in str(report)) == (not clear)


def test_of_one_sample_each_nothing_is_clear() -> None:
    records = [record(value("best_of_n", n, [0.5 + n / 10], 50 * n)) for n in (1, 2, 3, 4, 5)]
    report = collect(SimpleNamespace(records=records, folder=None))
    assert [result["num_branches"] for result in report.rivals()] == [4, 3, 2, 1]
    assert (
        "4 branches at 200, best_of_n with 3 branches at 150, best_of_n with 2 branches at 100 and 1 more"
        in str(report)
    )


def beside(
    scores: list[float], nfe: int, method: str = "noise_search", score: str = "tm_score"
) -> dict[str, Any]:
    result = value(method, 2, scores, nfe, score)
    result["config"] |= {"steps": 50, "branch_interval": 0.1 if nfe < 200 else 0.3}
    if method == "best_of_n":  # at each of four starts a tenth better
        result["scores_by_n"] = [[one - 0.3, one - 0.2, one - 0.1, one] for one in scores]
    return result


@pytest.mark.parametrize(
    ("scores", "nfe", "starts", "difference", "verdict"),
    [
        ([0.85, 0.75, 0.65], 200, 4, 0.05, "better"),
        ([0.85, 0.75, 0.65], 101, 3, 0.15, "better"),  # rounded up to whole starts
        ([0.70, 0.65, 0.40], 200, 4, -0.35 / 3, "worse"),
        ([0.95, 0.65, 0.60], 200, 4, 0.1 / 3, "not told apart"),
    ],
)
def test_a_search_is_compared_with_best_of_n_at_its_network_calls(
    scores: list[float], nfe: int, starts: int, difference: float, verdict: str
) -> None:
    rival = beside([0.8, 0.7, 0.6], 200, "best_of_n")
    records = [record(rival), record(value("standard", 1, [0.1, 0.1, 0.1], 50)), record(beside(scores, nfe))]
    report = collect(SimpleNamespace(records=records, folder=None))
    (each,) = report.at_equal_work()
    assert (each.starts, each.nfe) == (starts, 50 * starts)
    assert each.mean == pytest.approx(0.7 - 0.1 * (4 - starts))
    assert each.difference == pytest.approx(difference)
    paired = np.subtract(scores, np.subtract([0.8, 0.7, 0.6], 0.1 * (4 - starts)))
    assert each.error == pytest.approx(paired.std(ddof=1) / 3**0.5, abs=1e-9)
    first, *lines = str(report).splitlines()
    assert first == "At equal network calls, against best_of_n:"
    assert f"  {verdict}: noise_search (2 branches)" in lines[:3]
    row = report.frame().set_index("method").loc["noise_search"]
    assert row.verdict == verdict
    assert row.difference == pytest.approx(difference)
    page = report._repr_html_()
    assert page.count("<table ") == 2
    assert page.index("At equal network calls") < page.index("Every experiment")


def test_of_distances_less_is_better_at_equal_work_too() -> None:
    far, near = beside([2.0, 3.0], 200, "best_of_n", "rmsd"), beside([1.0, 1.9], 200, score="rmsd")
    (each,) = collect(SimpleNamespace(records=[record(far), record(near)], folder=None)).at_equal_work()
    assert each.difference == pytest.approx(1.05)
    assert each.verdict == "better"


def test_what_cannot_be_compared_at_equal_work_is_told() -> None:
    searched = record(beside([0.5, 0.6], 400))
    few = record(beside([0.5, 0.6], 200, "best_of_n"))
    for records, why in (
        ([searched], "it was not run"),
        ([searched, few], "too few starts of it ended well"),
    ):
        report = collect(SimpleNamespace(records=records, folder=None))
        assert report.at_equal_work() == []
        expected = f"Nothing is compared at equal network calls: that takes best_of_n, and {why}"
        assert str(report).startswith(expected)
        assert expected in report._repr_html_()
    one = [record(beside([0.5], 200, "best_of_n")), record(beside([0.6], 200))]
    (each,) = collect(SimpleNamespace(records=one, folder=None)).at_equal_work()
    assert each.verdict == "not told apart"  # of one sample no error is known


def test_the_html_is_escaped(run: SimpleNamespace) -> None:
    page = collect(run)._repr_html_()
    assert "killed: &lt;out of memory&gt; &amp; gone" in page
    assert "<out" not in page
    assert page.count("<table ") == 1
    assert page.count(">improvement</th>") == 1


def test_of_distances_the_lower_is_the_better() -> None:
    records = [
        record(value("standard", 1, [2.0], 50, "rmsd")),
        record(value("best_of_n", 2, [1.5], 100, "rmsd")),
    ]
    report = collect(SimpleNamespace(records=records, folder=None))
    assert report.best is not None
    assert report.best["method"] == "best_of_n"
    assert report.improvement(report.best) == pytest.approx(0.5)
    assert "1.5000 angstrom" in str(report)


def test_without_a_baseline_there_is_no_improvement() -> None:
    report = collect(SimpleNamespace(records=[record(value("best_of_n", 2, [0.5], 100))], folder=None))
    assert report.baseline is None
    assert report.best is not None
    assert report.improvement(report.best) is None
    assert "%" not in str(report)


def test_a_run_in_which_all_failed_has_a_report() -> None:
    failed = Record(name="standard-b1", index=0, kind="k", status="error", error="ValueError: no")
    report = collect(SimpleNamespace(records=[failed], folder=None))
    assert report.best is None
    assert "1 of 1 experiments failed" in str(report)
    with pytest.raises(ValueError, match="no experiment succeeded"):
        best_structure(report)


def test_a_run_of_something_else_is_refused() -> None:
    other = Record(name="train-0", index=0, kind="k", status="ok", value={"loss": 1})
    with pytest.raises(ValueError, match="holds no protein experiment"):
        collect(SimpleNamespace(records=[other], folder=None))


def test_a_value_that_was_lost_from_disk_is_an_error() -> None:
    lost = Record(
        name="best_of_n-b2", index=0, kind="k", status="ok", value=None, notes=("value not on disk: torn",)
    )
    result = collect(SimpleNamespace(records=[lost], folder=None)).results[0]
    assert (result["status"], result["error"]) == ("error", "value not on disk: torn")


def test_files_are_those_of_the_seed(run: SimpleNamespace, tmp_path: Path) -> None:
    paths = collect(run).save()
    assert [path.name for path in paths] == ["detailed_results.json", "summary_results.csv"]
    assert {path.parent for path in paths} == {
        tmp_path / "results"
    }  # the run's own tables have these names, too
    detailed = json.loads(paths[0].read_text())
    seed = {
        "method", "num_branches", "config", "num_samples", "mean_score", "std_score", "max_score", "min_score",
        "total_time", "time_per_sample", "scores", "scoring_function", "gpu_id",
    }  # fmt: skip
    ours = {"nfe", "status", "error", "peak_memory_bytes", "pid", "attempt"}
    assert all(seed | ours <= set(result) for result in detailed)
    with paths[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["mean_score"] == "0.8"
    assert rows[2]["gpu_id"] == rows[3]["mean_score"] == ""
    assert rows[3]["status"] == "killed"


def test_json_is_strict_and_csv_holds_no_formula(tmp_path: Path) -> None:
    odd = value("standard", 1, [NAN, float("inf")], 50)
    formula = Record(name='=HYPERLINK("http://x")', index=1, kind="k", status="error", error="@x")
    report = collect(SimpleNamespace(records=[record(odd), formula], folder=None))
    detailed, summary = report.save(tmp_path / "new")
    scores = json.loads(detailed.read_text(), parse_constant=lambda name: pytest.fail(name))[0]["scores"]
    assert scores == [None, None]
    with summary.open(newline="") as file:
        assert list(csv.DictReader(file))[1]["method"] == '\'=HYPERLINK("http://x")'
    assert report.best is None


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_every_start_of_a_formula_is_neutralised(start: str, tmp_path: Path) -> None:
    records = [
        record(value("standard", 1, [-0.5], 50)),
        Record(name=f"{start}1", index=1, kind="k", status="error"),
    ]
    _, summary = collect(SimpleNamespace(records=records, folder=None)).save(tmp_path)
    with summary.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["method"] == f"'{start}1"
    assert rows[0]["mean_score"] == "-0.5"  # a number stays one


def test_saving_without_a_folder_is_refused(run: SimpleNamespace) -> None:
    run.folder = None
    with pytest.raises(ValueError, match="nowhere to save"):
        collect(run).save()


@pytest.mark.slow
def test_the_best_structure_lies_on_its_nearest_fold() -> None:
    config = Config(num_samples=3, sample_length=50, steps=25)
    records = [record(run_experiment(method, 2, config)) for method in ("standard", "best_of_n")]
    report = collect(SimpleNamespace(records=records, folder=None))
    laid, fold, name, result = best_structure(report)
    assert laid.shape == fold.shape == (50, 3)
    assert name.startswith("generated ")
    assert np.sqrt(((laid - fold) ** 2).sum(-1).mean()) < 2.5  # angstrom
    assert max(result["scores"]) == max(r["max_score"] for r in report.results)
    again = json.loads(json.dumps(report.results))  # as read back from disk
    reopened = collect(SimpleNamespace(records=[record(r) for r in again], folder=None))
    np.testing.assert_array_equal(best_structure(reopened)[0], laid)
