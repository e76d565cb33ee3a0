"""The behaviour of pools on this machine, of pools of two agents."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = (
    "test_pool.py",
    "runs/test_run.py",
    "runs/test_retry.py",
    "engines/test_large.py",
    "distributed/test_launch.py",
)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_what_holds_here_holds_on_nodes(file: str) -> None:
    """The tests of a file, but those that `agent_farm.ELSEWHERE` names, with agents in the place of local engines."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "agent_farm",
            "-p",
            "no:cacheprovider",
            str(TESTS / file),
        ],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS / "helpers"), *sys.path])},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
