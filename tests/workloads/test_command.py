"""Running a workload from the command line: the way on after an interrupt."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpu_nb.workloads.arguments import UsageError
from mgpu_nb.workloads.base import WORKLOADS
from mgpu_nb.workloads.command import _going_on, execute


@pytest.mark.parametrize(
    ("arguments", "again"),
    [
        ("--slots 2", "--slots 2 --output_dir /r/quick"),
        ("--slots 2 --no-resume --output-dir out", "--slots 2 --output_dir /r/quick"),
        ("a.b=1 --kinds x --output_dir o c=2", "a.b=1 --kinds x c=2 --output_dir /r/quick"),
        ("--run-all --slots 2", "--slots 2 --preset quick --output_dir /r/quick"),
        ("--run_all --output_dir /o --slots 2 --resume", "--slots 2 --run_all --output_dir /o"),
    ],
)
def test_the_command_that_goes_on_names_the_folder(arguments: str, again: str) -> None:
    assert _going_on(arguments.split(), "quick", Path("/r/quick")) == again.split()


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
    ],
)
def test_ranks_that_cannot_share_the_tasks_are_refused(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="start it once, without torchrun or srun, which started 2"):
        execute(WORKLOADS["alignment"], [f"--output_dir={tmp_path / 'run'}"], "mgpu-nb alignment")
    assert not (tmp_path / "run").exists()
