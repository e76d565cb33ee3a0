"""Options of an alignment on the command line."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb.cli import main
from mgpu_nb.workloads.alignment.config import Config, default_output
from mgpu_nb.workloads.alignment.plan import pool_options
from mgpu_nb.workloads.arguments import UsageError
from mgpu_nb.workloads.base import Workload
from mgpu_nb.workloads.request import parse

pytestmark = pytest.mark.slow

WORKLOAD = Workload(
    name="alignment", summary="", config=Config, tasks=lambda config, slots: [], collect=lambda run: None,  # type: ignore[arg-type,return-value]
)  # fmt: skip

ROUNDS, PROMPT = "rounds_of_training=3", "datasets.gsm8k.prompt=Q: {question} A:"


def read(line: str) -> Any:
    (config,) = parse(WORKLOAD, shlex.split(line), "mgpu-nb alignment").configs.values()
    return config


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", Config()),
        (
            "experiment.name=my_run algos.DPO.enabled=false --profile 80gb 8gpus --slots 2",
            Config(("experiment.name=my_run", "algos.DPO.enabled=false"), profile=("80gb", "8gpus"), slots=2),
        ),
        ("--profile 40gb rounds_of_training=3", Config(("rounds_of_training=3",), profile=("40gb",))),
        ("--config my.yaml --gpu_ids 0 1 rounds_of_training=3", Config((ROUNDS,), "my.yaml", gpu_ids=(0, 1))),
        ("'datasets.gsm8k.prompt=Q: {question} A:' --seed 3", Config((PROMPT,), seed=3)),
    ],
)
def test_settings_stand_beside_options(line: str, wanted: Config) -> None:
    assert read(line) == wanted


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("experiment.nam=x", "there is no setting experiment.nam; did you mean experiment.name?"),
        ("foo", "'foo' is no setting: give KEY=VALUE"),
        ("--slots 2 foo", "'foo' is no setting: give KEY=VALUE"),
        ("seed=3", "it is an option beside the settings: give --seed 1"),
        ("gpu_ids=0", "give --gpu_ids 0 1"),
        ("config=a.yaml", "give --config mine.yaml"),
        (
            "--rounds_of_training 3",
            "there is no option --rounds_of_training; KEY=VALUE stands without dashes",
        ),
        ("--profile 90gb", "--profile must be one of 40gb, 80gb, 2gpus, 8gpus, embedded, got '90gb'"),
        ("--profile 40gb 40gb", "--profile must be"),
    ],
)
def test_what_is_neither_is_refused(line: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(line)
    assert words in str(caught.value)


def test_the_folder_has_name_and_seed() -> None:
    assert default_output(Config(("experiment.name=mine",), seed=7)) == "outputs/mine/seed_7"
    with pytest.raises(ValueError, match=r"rounds_of_training must be"):
        default_output(Config(("rounds_of_training=0",)))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("experiment.nam=x", "did you mean experiment.name?"),
        ("run rounds_of_training=0", "rounds_of_training must be an integer >= 1, got 0"),
        ("foo", "'foo' is no setting"),
        ("chek", "did you mean 'check'?"),
        ("check experiment.nam=x", "did you mean experiment.name?"),
        ("slurm foo", "'foo' is no setting"),
    ],
)
def test_the_command_says_what_is_wrong(line: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    words_of = shlex.split(line)
    slurm = words_of[0] == "slurm"
    assert main(["slurm", "alignment", *words_of[1:]] if slurm else ["alignment", *words_of]) == 2
    error = capfd.readouterr().err
    assert error.startswith("mgpu-nb slurm: " if slurm else "mgpu-nb alignment: ")
    assert words in error


def test_a_batch_script_has_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = (
        "slurm alignment experiment.name=a --time 10 rounds_of_training=3 --profile 40gb 8gpus algos.DPO=null"
    )
    assert main(shlex.split(line)) == 0
    script = (tmp_path / "alignment.sbatch").read_text()
    assert "alignment experiment.name=a rounds_of_training=3 algos.DPO=null --profile 40gb 8gpus" in script
    assert (tmp_path / "outputs" / "a" / "seed_42").is_dir()


def test_without_parallel_execution_there_is_one_slot() -> None:
    alone = ("system.use_parallel_execution=false",)
    assert pool_options(Config(alone))["slots"] == 1
    assert pool_options(Config(alone, gpu_ids="cpu"))["slots"] == 1
    assert pool_options(Config(alone, gpu_ids=(3,)))["slots"] is None
    assert "slots" not in pool_options(Config(slots=2))
    with pytest.raises(ValueError, match=r"has one slot, got slots=2"):
        pool_options(Config(alone, slots=2))
    with pytest.raises(ValueError, match=r"has one slot, got gpu_ids=\(0, 1\)"):
        pool_options(Config(alone, gpu_ids=(0, 1)))
