"""Running a workload from the command line: the way on after an interrupt."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pytest

from mgpu_nb import Task
from mgpu_nb.workloads.arguments import UsageError
from mgpu_nb.workloads.base import WORKLOADS, Workload
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


@dataclass(frozen=True)
class Plants:
    output_dir: str | None = None


def grow() -> int:
    logging.getLogger("garden").info("it grows")
    logging.getLogger("mgpu_nb.garden").debug("one leaf more")
    return 1


GARDEN = Workload(
    name="garden",
    summary="Grow plants.",
    config=Plants,
    tasks=lambda config, slots: [Task(grow, name="rose")],
    collect=lambda run, config=None: run,
    pool={"slots": 1, "gpu_ids": "cpu"},
)


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING"])
def test_log_records_are_shown_from_a_level_on(
    level: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ours = logging.getLogger(), logging.getLogger("mgpu_nb")
    before = root.level, list(root.handlers), ours.level
    monkeypatch.setattr("mgpu_nb.workloads.command._show", lambda *_: 0)
    assert execute(GARDEN, ["--output_dir", str(tmp_path), "--log_level", level], "mgpu-nb garden") == 0
    shown = capsys.readouterr().err
    assert ("INFO garden: [rose] it grows" in shown) == (level != "WARNING")
    assert ("DEBUG mgpu_nb.garden: [rose] one leaf more" in shown) == (level == "DEBUG")
    assert ("DEBUG mgpu_nb.scheduler: [rose] attempt 1 begins" in shown) == (level == "DEBUG")
    written = "".join(log.read_text() for log in tmp_path.glob("logs/*"))
    assert ("it grows" in written) == (level != "WARNING")
    assert (root.level, list(root.handlers), ours.level) == before


def test_a_level_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="--log_level must be one of DEBUG, INFO, WARNING, ERROR, got 'LOUD'"
    ):
        execute(GARDEN, ["--output_dir", str(tmp_path), "--log_level", "LOUD"], "mgpu-nb garden")
