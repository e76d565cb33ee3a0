"""States of jobs by what has become of their tasks, and the names of these."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpu_nb import Record
from mgpu_nb.workloads.alignment.job import Job
from mgpu_nb.workloads.alignment.names import JobTasks, TaskName, by_job, name_of, read_name
from mgpu_nb.workloads.alignment.states import JobResult, read_states, state_of, write_states

JOB = Job("GRPO-HF", "my_gpt2", "sums_r2", 3)
TASKS = JobTasks(
    ["J_r1_generate-0", "J_r1_generate-16"], ["J_r1_train"], ["J_r1_evaluate-1", "J_r1_evaluate-8"]
)


def test_a_name_says_job_stage_and_part() -> None:
    for name, part in (
        (name_of(JOB, "generate", 16), ("generate", "16")),
        (name_of(JOB, "train"), ("train", "")),
        (name_of(JOB, "evaluate", 0.5), ("evaluate", "0.5")),
        (name_of(JOB, "evaluate", 1e-7), ("evaluate", "1e-07")),
    ):
        assert read_name(name) == TaskName(JOB.id, *part)  # type: ignore[arg-type]
    assert read_name("something-else") is None
    found = by_job([name_of(JOB, "generate", 0), name_of(JOB, "train"), name_of(JOB, "evaluate")])
    assert found == {JOB.id: JobTasks([f"{JOB.id}_generate-0"], [f"{JOB.id}_train"], [f"{JOB.id}_evaluate"])}


@pytest.mark.parametrize(
    ("good", "failed", "state"),
    [
        (0, (), "NOT_STARTED"),
        (1, (), "NOT_STARTED"),
        (2, (), "DATA_GENERATED"),
        (3, (), "MODEL_TRAINED"),
        (4, (), "MODEL_TRAINED"),
        (5, (), "EVAL_COMPLETED"),
        (1, ("J_r1_generate-16",), "FAILED"),
        (4, ("J_r1_evaluate-8",), "FAILED"),
        (2, ("other_r1_train",), "DATA_GENERATED"),
    ],
)
def test_a_job_is_as_far_as_its_tasks_are(good: int, failed: tuple[str, ...], state: str) -> None:
    assert state_of(TASKS, set(TASKS.every[:good]), failed) == state


def test_a_job_that_draws_its_own_data_has_no_state_for_them() -> None:
    tasks = JobTasks([], ["train"], ["evaluate"])
    assert [state_of(tasks, good) for good in ([], ["train"], ["train", "evaluate"])] == [
        "NOT_STARTED",
        "MODEL_TRAINED",
        "EVAL_COMPLETED",
    ]


def test_states_come_back(tmp_path: Path) -> None:
    write_states(tmp_path, {"a_r1": "FAILED", "b_r1": "NOT_STARTED"})
    assert read_states(tmp_path) == {"a_r1": "FAILED", "b_r1": "NOT_STARTED"}
    assert [path.name for path in tmp_path.iterdir()] == ["job_states.json"]


def test_states_that_are_missing_or_damaged_are_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"job_states.json: there is no such file: give the folder of an"
    ):
        read_states(tmp_path)
    for text in ("{", "[1]", '{"a_r1": "DONE"}', "\xff"):
        (tmp_path / "job_states.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=r"job_states.json.*; start the run again, which writes it anew"):
            read_states(tmp_path)


def test_the_result_of_a_job_is_that_of_the_eta_nearest_to_its_own(tmp_path: Path) -> None:
    values = {
        "J_r1_train": {
            "trained_steps": 7,
            "loss": 0.5,
            "metrics": {"kept": 0.25},
            "reward_calls": 2,
            "scored": 40,
        },
        "J_r1_evaluate-1": {"avg_reward": 0.4, "avg_kl": 0.1, "reward_calls": 1, "scored": 8},
        "J_r1_evaluate-8": {"avg_reward": 0.9, "avg_kl": 1.5, "reward_calls": 1, "scored": 8},
    }
    records = {
        name: Record(name=name, index=0, kind="f", status="ok", value=value, seconds=1.0)
        for name, value in values.items()
    }
    result = JobResult(Job("PITA", "gpt2", "sums", 1), TASKS, records, eta=6.0)
    assert result.counts() == (4, 56)
    assert result.counts(TASKS.evaluate) == (2, 16)
    assert result.seconds == 3
    path = result.write(tmp_path)
    assert path == tmp_path / "results" / "PITA" / "gpt2" / "sums" / "r1" / "result.json"
    assert json.loads(path.read_text()) == {
        "metrics": {"trained_steps": 7, "loss": 0.5, "avg_reward": 0.9, "avg_kl": 1.5},
        "training": {"kept": 0.25},
        "eval": {"1": {"avg_reward": 0.4, "avg_kl": 0.1}, "8": {"avg_reward": 0.9, "avg_kl": 1.5}},
    }
