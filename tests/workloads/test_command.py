"""Running a workload from the command line: the way on after an interrupt."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpu_nb.workloads.command import _going_on


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
