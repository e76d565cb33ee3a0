"""``mgpu-nb train``, and what torchrun starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mgpu_nb.cli import main
from mgpu_nb.workloads import training

pytestmark = pytest.mark.slow
OPTIONS = "--columns 53 --width 8 --layers 1 --heads 2 --batch_size 12 --epochs 2 --learning_rate 3e-3"
TINY = OPTIONS.split()
MODULE = "mgpu_nb.workloads.training"


def module(
    *arguments: str,
    launcher: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    interpreter = [*launcher] if launcher else [sys.executable]
    env = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    command = [*interpreter, "-m", MODULE, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env={**env, **(environ or {})}, check=False
    )


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture(scope="module")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "two"
    options = [
        "--config",
        "minimal",
        *TINY,
        "--world_size",
        "2",
        "--backend",
        "gloo",
        "--output_dir",
        str(folder),
    ]
    assert main(["train", *options]) == 0
    return folder


def losses(folder: Path) -> npt.NDArray[np.float64]:
    return training.Report.open(folder).frame()[["loss", "validation"]].to_numpy()


def test_train_ends_with_its_results_and_files(
    by_command: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "one"
    options = ["--config", "minimal", *TINY, "--output_dir", str(folder), "--log_level", "WARNING"]
    assert main(["train", *options]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("1 rank (gloo) x 12 columns: batch of 12")  # nothing is said at WARNING
    assert str(folder / "model.safetensors") in shown
    np.testing.assert_allclose(losses(folder), losses(by_command), rtol=1e-4)
    assert main(["training", *options, "--epochs", "3"]) == 0  # goes on
    assert len(losses(folder)) == 3
    assert main(["training", "run", *options, "--no_resume"]) == 0
    (new,) = folder.glob("run-*")
    assert len(losses(new)) == 2
    assert len(losses(folder)) == 3
    assert capsys.readouterr().out.count("1 rank (gloo)") == 2


def test_train_shows_what_rank_0_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "minimal", *TINY, "--output_dir", str(tmp_path / "run")]
    assert main(["train", *options]) == 0
    shown = capsys.readouterr().out
    assert len(re.findall(r"epoch \d of 2: loss", shown)) == 2


def test_torchrun_gives_the_same_and_is_resumed_from_here(by_command: Path, tmp_path: Path) -> None:
    folder = tmp_path / "torchrun"
    done = module("--config", "minimal", *TINY, "--output_dir", str(folder), launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(folder), losses(by_command), rtol=1e-6)
    assert done.stdout.count("2 ranks (gloo) x 6 columns: batch of 12") == 1
    assert (folder / "model.safetensors").is_file()
    before = losses(folder)
    options = ["--config", "minimal", *TINY, "--output_dir", str(folder), "--epochs", "3"]
    assert main(["train", *options]) == 0
    np.testing.assert_array_equal(losses(folder)[:2], before)
    assert len(losses(folder)) == 3


def test_torchrun_names_the_rank_that_failed_with_its_traceback(tmp_path: Path) -> None:
    pickled = tmp_path / "batch.pkl"
    pickled.write_bytes(b"")
    done = module(*TINY, "--data", str(pickled), "--output_dir", str(tmp_path / "run"), launcher=TORCHRUN)
    assert done.returncode != 0
    assert "give trust=True" in done.stderr
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "minimla"], "did you mean 'minimal'"),
        (["--backend", "mpi"], "distributed_backend must be one of nccl, gloo"),
        (["--backend", "nccl"], "needs a GPU for each rank"),
        (["--world_size", "0"], "world_size must be"),
        (["--config", "minimal", "--world_size", "64"], "--batch_size 32 over 64 ranks"),
        (["--config", "minimal", "--data", "nothing.npz"], "there is no such file"),
        (["--epochs", "many"], "many"),
    ],
)
def test_bad_options_are_a_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: str | int | None = main(["train", *arguments])
    except SystemExit as left:  # the parser's own way out
        code = left.code
    assert code == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--world_size", "2"], "--world_size 2, and there are 1 ranks"),
        (["--gpu_ids", "7"], "torchrun and srun say which GPUs a rank has"),
    ],
)
def test_what_torchrun_decides_is_not_asked_for(tmp_path: Path, option: list[str], words: str) -> None:
    environ = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = module(*TINY, *option, "--output_dir", str(tmp_path / "run"), environ=environ)
    assert done.returncode != 0
    assert words in done.stderr


def test_bad_options_of_the_module_are_a_line() -> None:
    done = module("--config", "minimla")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "mgpu_nb.workloads.training: --preset must be one of minimal, "
    )
    assert "Traceback" not in done.stderr


SAID = r"""Available GPUs: 0
Testing DDP with {n} CPU device\(s\)
{ranks}
DDP test completed successfully!
World size: {n}
Time for 10 iterations: (\d+\.\d{{4}}) seconds
Average time per iteration: (\d+\.\d{{4}}) seconds
Model parameters: 1010
{ended}
DDP test completed!
"""


@pytest.mark.parametrize(("option", "world"), [(["--check"], 1), (["--check", "--world_size", "2"], 2)])
def test_the_check_prints_the_lines_of_the_seed(
    option: list[str],
    world: int,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *option]) == 0
    ranks = "\n".join(f"Process {n}/{world} initialized on cpu:{n}" for n in range(world))
    ended = "\n".join(f"Rank {n}: Test completed successfully" for n in range(world))
    found = re.fullmatch(SAID.format(n=world, ranks=ranks, ended=ended), capsys.readouterr().out)
    assert found
    assert float(found[2]) == pytest.approx(float(found[1]) / 10, abs=1e-4)
    assert float(found[1]) > 0
    assert list(tmp_path.iterdir()) == []  # it leaves nothing


def test_the_check_of_all_devices(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mgpu_nb.hardware.slots import resolve_slots

    monkeypatch.chdir(tmp_path)
    assert main(["train", "--check_all"]) == 0
    assert f"World size: {len(resolve_slots())}" in capsys.readouterr().out
