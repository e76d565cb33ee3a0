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
    "runs/test_graph.py",
    "runs/test_errors.py",
    "engines/test_large.py",
    "engines/test_forks.py",
    "engines/test_ground.py",
    "distributed/test_launch.py",
)


@pytest.mark.slow
def test_what_holds_here_holds_on_nodes() -> None:
    """The tests of these files, but those that `agent_farm.ELSEWHERE` names, with agents in the place of local engines.

    In one process: the agents, and the servers of their workers, are then the same for all.
    """
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
            *(str(TESTS / file) for file in FILES),
        ],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS / "helpers"), *sys.path])},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-16000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
