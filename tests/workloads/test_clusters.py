"""``--cluster`` of a command line: options, which pool they make, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mgpu_nb import Agents, Ray, Slurm
from mgpu_nb.cli import main
from mgpu_nb.workloads.arguments import UsageError
from mgpu_nb.workloads.base import WORKLOADS
from mgpu_nb.workloads.command import execute
from mgpu_nb.workloads.request import parse

GPU_SLURM = ["--cluster", "slurm", "--nodes", "2", "--gpus_per_node", "4"]


@pytest.mark.parametrize("name", list(WORKLOADS))
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (GPU_SLURM, Slurm(nodes=2, gpus_per_node=4)),
        (["--cluster=slurm", "--time", "90"], Slurm(time="90")),
        (["--cluster", "slurm", "--sbatch", "exclusive", "hold"], Slurm(sbatch=("exclusive", "hold"))),
        (["--cluster", "ray", "--address", "head:6379", "--nodes", "3"], Ray("head:6379", nodes=3)),
        (["--cluster", "agents", "--here", "1", "--nodes", "2", "--port", "7000"], Agents(2, here=1, port=7000)),
        (["--cluster", "agents"], Agents()),
        (["--cluster", "here"], Agents(here=2)),
        (["--cluster", "here", "--nodes", "3"], Agents(here=3)),
    ],
)  # fmt: skip
def test_every_workload_takes_a_cluster(name: str, words: list[str], wanted: Any) -> None:
    assert parse(WORKLOADS[name], words, "mgpu-nb").cluster == wanted


def test_without_one_it_runs_here() -> None:
    assert parse(WORKLOADS["protein"], [], "mgpu-nb").cluster is None


def test_an_option_that_the_workload_has_as_well_is_that_of_the_workload() -> None:
    asked = parse(WORKLOADS["training"], ["--cluster", "ray", "--trust"], "mgpu-nb")
    assert asked.configs["multi_gpu"].trust
    assert asked.cluster == Ray()
    asked = parse(WORKLOADS["training"], ["--cluster", "ray", "--cluster_trust"], "mgpu-nb")
    assert not asked.configs["multi_gpu"].trust
    assert isinstance(asked.cluster, Ray)
    assert asked.cluster.trust
    assert parse(WORKLOADS["protein"], ["--cluster", "ray", "--trust"], "mgpu-nb").cluster == Ray(trust=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["protein", "--cluster", "slrum"], "--cluster must be one of slurm, ray, agents, allocation, here, got"),
        (["protein", "--cluster", "slurm", "--nodes", "0"], "--nodes must be an integer >= 1, got 0"),
        (["protein", "--cluster", "slurm", "--time", "1:99:00"], "--time 1:99:00 is no time"),
        (["protein", "--cluster", "here", "--gpus_per_node", "2"], "there is no option --gpus_per_node"),
        (["protein", *GPU_SLURM, "--gpu_ids", "0"], "--gpu_ids and --gpus_per_node 4 both choose devices"),
        (["train", "--cluster", "here", "--world_size", "3"], "--world_size 3: give a multiple of --nodes"),
        (["train", "--cluster", "agents", "--world_size", "3"], "--world_size 3: give a multiple of --nodes"),
        (["protein", "--cluster", "here", "--pick", "free"], "--pick free"),
        (["slurm", "protein", "--cluster", "here"], "--cluster: the job itself runs on the nodes"),
        (["protein", "--nodes", "2"], "there is no option --nodes; it goes with --cluster"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_a_line(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_without_slurm_it_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["protein", "--cluster", "slurm", "--output_dir", str(tmp_path / "run")]) == 2
    assert "there is no sbatch on this machine" in capsys.readouterr().err


def test_a_rank_of_srun_has_its_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="--cluster: torchrun and srun say which devices a rank has"):
        execute(WORKLOADS["training"], ["--cluster", "here", "--output_dir", str(tmp_path)], "mgpu-nb train")


@pytest.mark.slow
def test_a_workload_runs_on_agents_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--num_samples 1 --sample_length 20 --steps 10 --branch_counts 2 --methods standard best_of_n"
    cluster = "--cluster here --nodes 2 --gpu_ids cpu --slots 1"
    assert main(["protein", *words.split(), *cluster.split(), "--output_dir", str(tmp_path / "run")]) == 0
    assert "best_of_n" in capsys.readouterr().out
    assert len(list((tmp_path / "run" / "structures").rglob("*.pdb"))) == 2
