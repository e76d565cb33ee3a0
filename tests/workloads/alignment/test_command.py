"""``mgpu-nb alignment``: what is wrong is said before any process starts; a small run; a run under SIGTERM."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mgpu_nb.cli import main
from mgpu_nb.engines.servers import runtime
from mgpu_nb.workloads import alignment

pytestmark = pytest.mark.slow
SMALL = (
    "rounds_of_training=1",
    "data_collection.max_examples=4",
    "evaluation.max_examples=2",
    "evaluation.samples_per_example=2",
    "training.micro_batch_size=2",
    "algos.DPO.batch_size=4",
    "algos.DPO.epochs=1",
    *(f"algos.{name}.enabled=false" for name in ("PITA", "QSharp", "GRPO", "GRPO-HF")),
)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["algos.DPP.enabled=true"], "did you mean algos.DPO.enabled"),
        (["models.gpt3.reference=x"], "did you mean models.gpt2"),
        (["datasets.sum.kind=sums"], "did you mean datasets.sums"),
        (["data_collection.reward_batchsize=3"], "did you mean data_collection.reward_batch_size"),
        (["rounds_of_training=0"], "rounds_of_training must be an integer >= 1, got 0"),
        (["models.llama.reference=empty"], "empty has no config.json"),
        (["datasets.gsm8k.train=short.csv", "datasets.gsm8k.test=short.csv"], "answer"),
        (["generation.max_new_tokens=30"], "more than the context of"),
        (["evaluation.etas=[1,-1]"], "evaluation.etas[1] must be a finite number >= 0, got -1"),
        (["algos.DPO.learning_rate=-1"], "algos.DPO.learning_rate must be a finite number > 0, got -1"),
        (["system.use_parallel_execution=false", "--slots", "2"], "has one slot"),
        (["datasets.mine={kind: table, reward: 'no_such:f', train: short.csv, test: short.csv}"], "no_such"),
    ],
)
def test_bad_input_is_told_and_no_process_is_started(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.csv").write_text("question\n1\n")
    servers = list(runtime.servers)
    assert main(["alignment", *SMALL, *words, "--gpu_ids", "cpu"]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("mgpu-nb alignment: ")
    assert list(runtime.servers) == servers


def test_a_run_its_files_and_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["alignment", "experiment.name=first", *SMALL, "--gpu_ids", "cpu", "--slots", "2"]
    assert main([*words, "--log_level", "DEBUG"]) == 0
    shown = capsys.readouterr()
    assert "DPO, gpt2 on sums: reward" in shown.out
    assert (
        "Data of sums: 4 of 128 train examples, 124 left out by max_examples; 2 of 19 test examples"
        in shown.out
    )
    assert "INFO mgpu_nb.alignment: datasets.sums: 4 of 128 train examples" in shown.err
    said = r"DEBUG mgpu_nb.alignment: \[DPO_gpt2_sums_r1"
    assert re.search(
        rf"{said}_generate-0\] round 1: 16 samples of examples 0 to 3, .* tokens .* a second", shown.err
    )
    assert re.search(rf"{said}_train\] round 1: \d+ steps in .* s, loss .*, pairs \d+", shown.err)
    assert re.search(rf"{said}_evaluate\] 2 examples in .* s, 4 texts scored .*avg_kl", shown.err)
    folder = tmp_path / "outputs" / "first" / "seed_42"
    assert {path.name for path in folder.iterdir()} >= {
        "config.json", "config.yaml", "data.json", "datasets", "figures", "job_states.json", "models", "results",
        "run.log",
    }  # fmt: skip
    assert alignment.read_states(folder) == {"DPO_gpt2_sums_r1": "EVAL_COMPLETED"}
    assert json.loads((folder / "results/DPO/gpt2/sums/r1/result.json").read_text())["metrics"][
        "trained_steps"
    ]
    assert main([*words, "algos.DPO.beta=0.7"]) == 2
    assert "algos.DPO.beta was" in capsys.readouterr().err
    assert main(["report", str(folder)]) == 0
    assert "DPO, gpt2 on sums: reward" in capsys.readouterr().out
    again = [
        "alignment",
        "--config",
        str(folder / "config.yaml"),
        "--output_dir",
        str(folder),
        "--gpu_ids",
        "cpu",
    ]
    assert main(again) == 0
    assert "4 of them are kept" in (folder / "run.log").read_text()
