"""The report: a row per job and eta, what was reached in words, files, and what it says of a run that is not whole."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb import Record
from mgpu_nb.workloads import alignment
from mgpu_nb.workloads.alignment.counts import Counts, read_counts, write_counts
from mgpu_nb.workloads.alignment.settings import from_plain
from mgpu_nb.workloads.alignment.sources import Split

pytest.importorskip("omegaconf")
ONLY = tuple(f"algos.{name}.enabled=false" for name in ("QSharp", "GRPO", "GRPO-HF"))
CONFIG = alignment.Config((*ONLY, "evaluation.etas=[1,8]"))


@dataclass
class Ended:
    """A run that has ended, as a report reads it."""

    records: list[Record]
    folder: Path | None = None
    tasks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tasks = self.tasks or [record.name for record in self.records]


def record(name: str, value: Any = None, status: str = "ok", error: str = "", **known: Any) -> Record:
    counts = {"reward_calls": 1, "scored": 8}
    whole = {**counts, **value} if status == "ok" else None
    place: dict[str, Any] = {"seconds": 2.0, "slot": 0, "device": "cpu:0", **known}
    return Record(name=name, index=0, kind="f", status=status, value=whole, error=error, **place)  # type: ignore[arg-type]


def figures(reward: float, kl: float) -> dict[str, float]:
    found = {"avg_reward": reward, "avg_kl": kl, "pass@1": reward, "maj@8": reward}
    return found | {f"{name}_se": 0.01 for name in found}


def trained(steps: int = 30) -> dict[str, Any]:
    return {"trained_steps": steps, "loss": 0.25, "metrics": {"accuracy": 0.9}, "folder": "x", "files": {}}


WHOLE = [
    record("reference_gpt2_sums_r0_evaluate", figures(0.38, 0.0)),
    record("PITA_gpt2_sums_r1_generate-0", {}),
    record("PITA_gpt2_sums_r1_train", trained()),
    record("PITA_gpt2_sums_r1_evaluate-1", figures(0.5, 0.1)),
    record("PITA_gpt2_sums_r1_evaluate-8", figures(0.9, 1.1)),
    record("PITA_gpt2_sums_r2_generate-0", {}),
    record("PITA_gpt2_sums_r2_train", trained(60)),
    record("PITA_gpt2_sums_r2_evaluate-1", figures(0.55, 0.1)),
    record("PITA_gpt2_sums_r2_evaluate-8", figures(0.95, 1.2)),
    record("DPO_gpt2_sums_r1_generate-0", {}),
    record("DPO_gpt2_sums_r1_train", trained()),
    record("DPO_gpt2_sums_r1_evaluate", figures(0.97, 0.95)),
]


def test_a_row_per_job_and_eta() -> None:
    frame = alignment.collect(Ended(WHOLE), CONFIG).frame()
    assert list(frame["round"]) == [0, 1, 1, 1, 2, 2]
    assert list(frame["eta"].fillna(-1)) == [-1, 1, 8, -1, 1, 8]
    last = frame.iloc[-1]
    assert (last["algo"], last["avg_reward"], last["avg_reward_se"], last["steps"], last["loss"]) == (
        "PITA", 0.95, 0.01, 60, 0.25,
    )  # fmt: skip
    assert last["seconds"] == 8.0
    assert last["state"] == "EVAL_COMPLETED"


def test_the_text_says_what_each_reached_what_it_took_and_what_a_barrier_costs() -> None:
    text = str(alignment.collect(Ended(WHOLE), CONFIG))
    assert (
        "PITA, gpt2 on sums: reward 0.380 of the reference, 0.900 in round 1, 0.950 in round 2; 1.20 nats from the "
        "reference at eta 8" in text
    )
    assert (
        "DPO, gpt2 on sums: reward 0.380 of the reference, 0.970 in round 1; 0.95 nats from the reference"
        in text
    )
    assert "Rewards: 12 calls for 96 texts, 32 at most in one" in text
    assert "with a barrier between rounds they would be idle" in text


def test_the_cost_of_a_barrier_is_that_of_the_durations() -> None:
    """Two chains on two slots: the longer task of one is in round 1, that of the other in round 2."""
    seconds = {"PITA": (9.0, 1.0), "DPO": (1.0, 9.0)}
    records = [
        record(f"{algo}_gpt2_sums_r{n}_train", trained(), seconds=of[n - 1], slot=place)
        for place, (algo, of) in enumerate(seconds.items())
        for n in (1, 2)
    ]
    idle = alignment.collect(Ended(records), CONFIG).idle
    assert idle is not None
    assert (idle.slots, idle.seconds, idle.seconds_by_round) == (2, 10.0, 18.0)
    assert idle.share == 0
    assert idle.share_by_round == pytest.approx(1 - 20 / 36)
    assert "2 slots were idle 44% of 18.0 s" in idle.words(by_round=True)


def test_a_run_that_is_not_whole_is_read_and_says_what_failed_and_what_is_left() -> None:
    records = [
        *WHOLE[:3],
        record("PITA_gpt2_sums_r1_evaluate-1", status="error", error="ValueError: <b>no</b>"),
        record("DPO_gpt2_sums_r1_generate-0", {}),
    ]
    report = alignment.collect(Ended(records, tasks=[each.name for each in WHOLE]), CONFIG)
    text = str(report)
    assert "PITA_gpt2_sums_r1: PITA_gpt2_sums_r1_evaluate-1 ended error: ValueError: <b>no</b>" in text
    assert "Not done: DPO_gpt2_sums_r1, PITA_gpt2_sums_r2" in text
    assert "<b>" not in report._repr_html_()
    frame = report.frame()
    assert dict(zip(frame["algo"] + frame["round"].astype(str), frame["state"], strict=True)) == {
        "reference0": "EVAL_COMPLETED",
        "PITA1": "FAILED",
        "DPO1": "DATA_GENERATED",
        "PITA2": "NOT_STARTED",
    }
    assert math.isnan(frame["avg_reward"].iloc[1])


@pytest.mark.slow  # matplotlib
def test_files_hold_no_times_and_pictures_are_written(tmp_path: Path) -> None:
    report = alignment.collect(Ended(WHOLE), CONFIG)
    paths = report.save(tmp_path)
    assert "seconds" not in (tmp_path / "results" / "summary.csv").read_text()
    result = json.loads((tmp_path / "results/PITA/gpt2/sums/r2/result.json").read_text())
    assert result["metrics"]["avg_reward"] == 0.95
    assert result["eval"]["1"]["avg_kl"] == 0.1
    assert (tmp_path / "figures" / "reward_against_kl.png").read_bytes().startswith(b"\x89PNG")
    assert all(path.is_file() for path in paths)
    with pytest.raises(ValueError, match="give save"):
        report.save()


def test_without_any_result_it_says_why() -> None:
    failed = record("DPO_gpt2_sums_r1_generate-0", status="killed", error="by SIGKILL")
    with pytest.raises(ValueError, match=r"no results \(DPO_gpt2_sums_r1_generate-0: by SIGKILL"):
        alignment.collect(Ended([failed]), CONFIG)
    with pytest.raises(ValueError, match="no results"):
        alignment.collect(Ended([record("something", {})]), CONFIG)


def test_what_was_left_out_is_told(tmp_path: Path) -> None:
    counts: dict[str, dict[Split, Counts]] = {
        "sums": {"train": Counts(None, 128, 8, 3), "test": Counts(None, 19, 19, 0)},
        "gone": {"train": Counts("a.csv", 3, 3, 0), "test": Counts("a.csv", 3, 3, 0)},
    }
    write_counts(tmp_path, counts)
    assert read_counts(tmp_path) == counts
    taught = record("DPO_gpt2_sums_r1_train", {**trained(), "metrics": {"pairs": 60.0, "left_out": 1204.0}})
    records = [taught if each.name == taught.name else each for each in WHOLE]
    text = str(alignment.collect(Ended(records, tmp_path), CONFIG))
    assert (
        "Data of sums: 8 of 128 train examples, 120 left out by max_examples; 19 of 19 test examples\n"
        in text
    )
    assert "from which nothing is learnt, were left out: 1,204 in DPO_gpt2_sums_r1\n" in text
    assert "gone" not in text
    assert "left out" not in str(alignment.collect(Ended(WHOLE), CONFIG))
    (tmp_path / "data.json").write_text('{"sums": {"train": {"used": 1}}}')
    with pytest.raises(ValueError, match=r"data.json does not hold counts of data: .*; start the run again"):
        read_counts(tmp_path)


def test_settings_of_a_run_that_are_damaged_are_named(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for text, words in (
        ("a: [1", r"config.yaml is not YAML: .*; put it back as it was"),
        ("- 1", r"config.yaml does not hold the settings of a run: put it back"),
        ("models: [1]", r"config.yaml does not hold the settings of a run: put it back"),
        ("a: ä", r"config.yaml, line 1: it is not text in UTF-8"),
        ("rounds_of_training: 0\nalgos: {}", rf"experiment must be a mapping .*\(in {file}\)"),
    ):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=words):
            alignment.collect(Ended(WHOLE, tmp_path))


def test_settings_come_back_from_what_a_run_writes() -> None:
    settings = alignment.load_settings(CONFIG)
    assert from_plain(json.loads(json.dumps(settings.plain()))) == settings
