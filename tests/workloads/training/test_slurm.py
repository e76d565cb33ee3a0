"""A training on a real SLURM: its script, submitted, run by srun and by torchrun, on one machine and on two."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from slurm_cluster import Cluster, slurm_here

from mgpu_nb.cli import main
from mgpu_nb.distributed.slurm import SubmitError, submit
from mgpu_nb.workloads import training

OPTIONS = "--config minimal --columns 53 --width 8 --layers 1 --heads 2 --batch_size 12 --epochs 2"
TINY = OPTIONS.split()
SECONDS = 120
Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_here(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Floats:
    """Losses of the same training in this process."""
    options = {
        "columns": 53,
        "width": 8,
        "layers": 1,
        "heads": 2,
        "batch_size": 12,
        "epochs": 2,
    }  # as TINY says
    history = training.Trainer(training.named("minimal", **options), tmp_path_factory.mktemp("here")).fit()
    return np.array([[values["loss"], values["validation"]] for values in history])


def losses(folder: Path) -> Floats:
    return training.Report.open(folder).frame()[["loss", "validation"]].to_numpy()


def state_of(job: int) -> str:
    shown = subprocess.run(
        ["scontrol", "show", "job", str(job), "--oneliner"], capture_output=True, text=True, timeout=30
    ).stdout
    found = re.search(r"JobState=(\w+)", shown)
    return found[1] if found else shown


def finish(job: int) -> str:
    """Wait until a job has ended; return its state."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        state = state_of(job)
        if state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
            return state
        time.sleep(0.1)
    raise TimeoutError(f"job {job} is {state_of(job)} after {SECONDS} s")


def written(*arguments: str, folder: Path, script: str = "train.sbatch") -> Path:
    path = folder.parent / f"{folder.name}-{script}"
    options = [*TINY, "--output_dir", str(folder), "--script", str(path), "--env", "GLOO_SOCKET_IFNAME=lo"]
    assert main(["slurm", "train", *options, *arguments]) == 0
    return path


def said(folder: Path, job: int) -> str:
    return (folder / f"slurm-{job}.out").read_text()


@pytest.mark.parametrize(
    "asked",
    [
        ["--nodes", "2", "--gpus-per-node", "1"],
        ["--ranks-per-node", "2", "--launcher", "torchrun", "--cpus-per-task", "1"],
        ["--nodes", "2", "--launcher", "torchrun"],
    ],
    ids=["two machines", "torchrun", "torchrun on two machines"],
)
def test_a_job_of_two_ranks_finishes_with_the_loss_of_one_process(
    cluster: Cluster, wanted: Floats, tmp_path: Path, asked: list[str]
) -> None:
    folder = tmp_path / "results"
    script = written(*asked, "--time", "0:05:00", folder=folder)
    job = submit(script)
    assert finish(job) == "COMPLETED", said(folder, job)
    np.testing.assert_allclose(losses(folder), wanted, rtol=1e-4)
    report = training.Report.open(folder)
    assert report.results["world_size"] == 2
    assert report.results["backend"] == "gloo"
    assert "2 ranks (gloo) x 6 columns: batch of 12" in said(folder, job)
    assert not list(folder.glob(".meeting-*"))


def test_a_job_of_one_rank_is_submitted_where_it_is_asked_for(
    cluster: Cluster, wanted: Floats, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    path = written("--submit", folder=folder)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == str(path)
    job = int(shown[1].removeprefix("job "))
    assert finish(job) == "COMPLETED", said(folder, job)
    assert training.Report.open(folder).results["world_size"] == 1
    np.testing.assert_allclose(losses(folder), wanted, rtol=1e-4)


def test_one_rank_stays_one_however_many_gpus_it_has(tmp_path: Path) -> None:
    script = written("--gpus-per-node", "2", "--ranks-per-node", "1", folder=tmp_path / "results")
    assert script.read_text().endswith(" --world_size 1\n")


def test_the_check_by_srun(cluster: Cluster, tmp_path: Path) -> None:
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", sys.executable, "-m", "mgpu_nb.workloads.training"]
    environ = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, "--check"], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert "World size: 2" in done.stdout
    assert all(f"Rank {rank}: Test completed successfully" in done.stdout for rank in range(2))
    assert list(tmp_path.iterdir()) == []


def test_the_same_script_submitted_again_goes_on(cluster: Cluster, wanted: Floats, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    asked = ["--gpus-per-node", "2", "--cpus-per-task", "1"]
    job = submit(written(*asked, folder=folder))
    assert finish(job) == "COMPLETED", said(folder, job)
    before = losses(folder)
    np.testing.assert_allclose(before, wanted, rtol=1e-4)
    longer = written(*asked, "--epochs", "3", folder=folder, script="longer.sbatch")
    job = submit(longer)
    assert finish(job) == "COMPLETED", said(folder, job)
    np.testing.assert_array_equal(losses(folder)[:2], before)
    assert len(losses(folder)) == 3


def test_a_rank_that_fails_ends_the_job_and_its_last_words_are_told(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    (tmp_path / "data.npz").write_bytes(b"nothing")
    asked = ["--gpus-per-node", "2", "--cpus-per-task", "1", "--data", str(tmp_path / "data.npz")]
    script = written(*asked, folder=folder)
    with pytest.raises(
        SubmitError, match=r"(?s)job \d+ failed: .*slurm-\d+\.out ends with.*is no \.npz file"
    ):
        submit(script, wait=True)


def test_directives_of_ones_own_reach_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    job = submit(written("--sbatch", "begin=now+3hours", "exclusive", "signal=B:USR1@60", folder=folder))
    shown = subprocess.run(["scontrol", "show", "job", str(job)], capture_output=True, text=True, timeout=30)
    subprocess.run(["scancel", str(job)], timeout=30, check=True)
    assert "OverSubscribe=NO" in shown.stdout
    assert "Reason=BeginTime" in shown.stdout
    assert finish(job) == "CANCELLED"


def test_more_cores_than_there_are_are_refused_with_the_remedy(cluster: Cluster, tmp_path: Path) -> None:
    script = written("--gpus-per-node", "2", folder=tmp_path / "results")
    with pytest.raises(SubmitError, match=r"(?s)CPU count .* Give cpus_per_task a smaller number"):
        submit(script)


def test_one_task_of_srun_with_two_gpus_starts_its_ranks_itself(
    cluster: Cluster, wanted: Floats, tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    command = ["srun", "--gpus-per-node=2", "--ntasks=1", sys.executable, "-m", "mgpu_nb.workloads.training"]
    environ = {**os.environ, "SLURM_GPUS_PER_NODE": "2"}  # as sbatch sets it
    done = subprocess.run(
        [*command, *TINY, "--output_dir", str(folder)],
        env=environ, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert training.Report.open(folder).results["world_size"] == 2
    np.testing.assert_allclose(losses(folder), wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nodes", "0"], "nodes must be an integer >= 1, got 0"),
        (["--time", "soon"], "time must be minutes, m:ss, h:mm:ss or days-hours, got 'soon'"),
        (["--config", "minimla"], "did you mean 'minimal'"),
        (["--config", "minimal", "--nodes", "64"], "--batch_size 32 over 64 ranks"),
        (
            ["--config", "minimal", "--nodes", "2", "--world_size", "3"],
            "--world_size 3, and there are 2 ranks",
        ),
        (["--config", "minimal", "--backend", "nccl"], "needs a GPU for each rank"),
    ],
)
def test_a_job_that_cannot_be_is_refused_before_a_script_is_written(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code: str | int | None = main(["slurm", "train", *arguments])
    except SystemExit as left:  # the parser's own way out
        code = left.code
    assert code == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.glob("*.sbatch")) == []


def test_a_job_checks_the_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["slurm", "train", "--check", "--ranks_per_node", "2"]) == 0
    (script,) = tmp_path.glob("*.sbatch")
    assert "python -m mgpu_nb training check" in script.read_text()
    assert "--check" not in script.read_text()


def test_slurm_without_a_workload_shows_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm"]) == 0
    assert "usage: mgpu-nb slurm WORKLOAD" in capsys.readouterr().out
    assert main(["slurm", "tracing"]) == 2
    assert "did you mean 'tracin'" in capsys.readouterr().err
