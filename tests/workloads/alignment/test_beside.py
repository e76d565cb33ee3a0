"""Completions of policies side by side."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mgpu_nb import Record
from mgpu_nb.workloads.alignment.beside import Completions
from mgpu_nb.workloads.alignment.job import Job
from mgpu_nb.workloads.alignment.names import JobTasks
from mgpu_nb.workloads.alignment.states import JobResult


def result(algo: str, number: int, rewards: tuple[float, float] = (1.0, 0.0), text: str = "3+4") -> JobResult:
    job = Job(algo, "gpt2", "sums", number)
    samples: list[dict[str, Any]] = [
        {"index": index, "prompt": f"{index}=", "texts": [text, f"{algo} {number}"], "rewards": list(rewards)}
        for index in range(5)
    ]
    value = {"avg_reward": 0.5, "avg_kl": 0.1, "samples": samples}
    record = Record(name=f"{job.id}_evaluate", index=0, kind="f", status="ok", value=value)
    return JobResult(job, JobTasks([], [], [record.name]), {record.name: record})


def results(*found: JobResult) -> dict[str, JobResult]:
    return {each.job.id: each for each in found}


def test_a_column_is_the_last_round_of_an_algorithm_and_a_row_a_draw() -> None:
    every = results(result("reference", 0), result("DPO", 1), result("DPO", 2), result("PITA", 1))
    assert every["DPO_gpt2_sums_r2"].figures == {"avg_reward": 0.5, "avg_kl": 0.1}
    lines = str(Completions(every, prompts=2, draws=2)).splitlines()
    assert re.split(" {2,}", lines[0]) == ["prompt", "reference", "DPO, round 2", "PITA, round 1"]
    assert [line.split()[0] for line in lines[1::2]] == ["1=", "3="]  # spread over the examples
    assert lines[1].split()[1:] == ["3+4", "✓"] * 3
    assert "reference 0 ✗" in lines[2]
    assert "DPO 2 ✗" in lines[2]
    first = str(Completions(every, ["PITA"], 1, 1)).splitlines()[0]
    assert re.split(" {2,}", first) == ["prompt", "reference", "PITA, round 1"]
    frame = Completions(every).frame()
    assert len(frame) == 3 * 5 * 2
    assert frame["completion"].tolist()[:2] == ["3+4", "reference 0"]


def test_texts_are_shown_as_they_are_and_rewards_that_are_no_marks_as_numbers() -> None:
    found = results(result("reference", 0, (0.25, 0.5), "<b>two\nlines</b>" + "x" * 500), result("DPO", 1))
    html = Completions(found)._repr_html_()
    assert "&lt;b&gt;two lines" in html
    assert "(0.50)" in html
    assert "x" * 130 not in html
    assert "(nothing) ✗" in str(Completions(results(result("reference", 0, (0.0, 0.0), " \n"))))


def test_what_has_no_completions_is_refused() -> None:
    every = results(result("reference", 0), result("DPO", 1))
    with pytest.raises(ValueError, match="DPO"):
        Completions(every, ["DPOO"])
    with pytest.raises(ValueError, match="prompts"):
        Completions(every, prompts=0)
    assert str(Completions({})) == ""
