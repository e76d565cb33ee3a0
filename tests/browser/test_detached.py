"""A run in a job of its own, followed by its panel in a real JupyterLab; the notebook goes, the run stays."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lab import Lab, NotebookPage
from slurm_cluster import Cluster, slurm_here

from mgpu_nb import Run

if TYPE_CHECKING:
    from playwright.sync_api import Page

SETUP = """
import os, time
from mgpu_nb import GPUPool, Run, Slurm, Task
os.chdir({folder!r})
def until(path):
    print("waits for", path)
    while not os.path.exists(path): time.sleep(0.05)
    return path
def tasks(name): return [Task(until, os.path.abspath(f"{{name}}.go"), name=f"t{{n}}") for n in range(3)]
pool = GPUPool("cpu", slots=1, cluster=Slurm(nodes=2, time="0:05:00", mem="1500M", detach=True))
"""
START = "run = pool.run(tasks({name!r}), folder={name!r}, name={name!r}); run"
OPEN = "again = Run.open({name!r}); again"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_here(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab on a machine from which jobs are submitted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(cluster.conf))
        lab = Lab(tmp_path_factory.mktemp("lab"))
        yield lab
        lab.close()


def says(cell: int, part: str) -> str:
    return (
        f"() => [...document.querySelectorAll('.jp-CodeCell')[{cell}].querySelectorAll('.mgpu')]"
        f".some(panel => panel.innerText.includes({part!r}))"
    )


def queue(cluster: Cluster) -> str:
    command = ["squeue", "--noheader"]
    return subprocess.run(
        command, env=cluster.environ, capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()


def test_a_detached_run_is_followed_and_cancelled_and_outlives_its_kernel(
    open_notebook: Callable[..., NotebookPage],
    screenshot: Callable[["Page", str], None],
    cluster: Cluster,
    tmp_path: Path,
) -> None:
    cells = [SETUP.format(folder=str(tmp_path)), START.format(name="first"), START.format(name="second")]
    book = open_notebook("detached.ipynb", [*cells, OPEN.format(name="first")])
    for index in (0, 1):
        book.run_cell(index)
        book.idle()
    book.page.wait_for_function(says(1, "RUNNING on n[1-2]"), timeout=90_000)
    screenshot(book.page, "detached-live")
    book.run_cell(2)
    book.idle()
    book.page.locator(".jp-CodeCell").nth(2).locator("button", has_text="Cancel").click()
    book.page.wait_for_function(says(2, "SLURM job 2: CANCELLED"), timeout=90_000)
    book.lab.kill_kernel(book.name)
    book.lab.wait(book._connected, 60)  # the server starts another
    book.open()
    book.run_cell(0)
    book.run_cell(3)
    book.page.wait_for_function(says(3, "RUNNING on n[1-2]"), timeout=60_000)
    (tmp_path / "first.go").touch()
    book.page.wait_for_function(says(3, "3 of 3 done"), timeout=90_000)
    screenshot(book.page, "detached-ended")
    assert Run.open(tmp_path / "first").results() == [str(tmp_path / "first.go")] * 3
    book.lab.wait(lambda: queue(cluster) == "" or None, 60)
