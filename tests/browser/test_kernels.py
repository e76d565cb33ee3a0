"""Interrupts, failing cells, restarts and shutdowns by JupyterLab: nothing is lost, nobody stays."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from lab import NotebookPage

from mgpu_nb import Run

SETUP = """
import os, pathlib, time
from mgpu_nb import GPUPool, Task
folder = pathlib.Path({folder!r})
def until(path, name):
    (folder / f"{{name}}.pid").write_text(str(os.getpid()))
    while not os.path.exists(path): time.sleep(0.01)
pool = GPUPool(slots=2, isolation={isolation!r})
"""
RUN = """
tasks = [Task(until, f"{folder}/go", f"t{i}", name=f"t{i}") for i in range(4)]
run = pool.run(tasks, folder=folder / "run", name="four")
"""
BEGUN = '(folder / "begun").touch()\n'
AGAIN = """
from mgpu_nb import GPUPool, Run
with GPUPool(slots=2) as pool:
    print("sum", sum(pool.map(abs, range(5))))
"""


def has(text: str) -> str:
    return f"() => document.querySelector('.jp-Notebook').innerText.includes({text!r})"


def workers(lab_waits: Callable[..., object], folder: Path) -> list[psutil.Process]:
    """Processes of the first two tasks, once they have begun."""
    files = [folder / f"t{n}.pid" for n in range(2)]
    lab_waits(lambda: all(file.exists() and file.read_text() for file in files), 60)
    return [psutil.Process(int(file.read_text())) for file in files]


@pytest.mark.parametrize(("end", "isolation"), [("restart", "task"), ("shutdown", "worker")])
def test_a_failing_cell_leaves_the_run_and_the_end_of_the_kernel_nobody(
    open_notebook: Callable[..., NotebookPage], tmp_path: Path, end: str, isolation: str
) -> None:
    setup = SETUP.format(folder=str(tmp_path), isolation=isolation)
    book = open_notebook("ends.ipynb", [setup, RUN, "1 / 0", "print(run.counts)", AGAIN])
    for index in (0, 1):
        book.run_cell(index)
        book.idle()
    processes = workers(book.lab.wait, tmp_path)
    book.run_cell(2)
    book.page.wait_for_function(has("ZeroDivisionError"), timeout=60_000)
    assert all(process.is_running() for process in processes)
    book.command(f"kernelmenu:{end}")
    if end == "restart":
        book.page.locator(".jp-Dialog .jp-mod-accept").click()
    psutil.wait_procs(processes, timeout=60)
    assert not any(process.is_running() for process in processes)
    records = Run.open(tmp_path / "run").records
    assert not any(record.ok for record in records)
    if end == "restart":
        book.lab.wait(book._connected, 60)
        book.idle()
        book.run_cell(4)
        book.page.wait_for_function(has("sum 10"), timeout=60_000)


def test_interrupts_by_its_button(open_notebook: Callable[..., NotebookPage], tmp_path: Path) -> None:
    setup = SETUP.format(folder=str(tmp_path), isolation="worker")
    endless = f"{BEGUN}while True: pool.submit(abs, 1)"
    book = open_notebook("interrupts.ipynb", [setup, endless, RUN, f"{BEGUN}run.wait()", AGAIN])

    def begin(index: int) -> None:
        """Run a cell until its code has begun: an interrupt before that would be nobody's."""
        book.run_cell(index)
        book.lab.wait((tmp_path / "begun").exists, 60)
        (tmp_path / "begun").unlink()

    book.run_cell(0)
    book.idle()
    begin(1)
    book.command("notebook:interrupt-kernel")
    book.idle()
    book.run_cell(2)
    begin(3)
    processes = workers(book.lab.wait, tmp_path)
    book.command("notebook:interrupt-kernel")
    book.page.wait_for_function(has("stopped waiting"), timeout=60_000)
    book.idle()
    assert all(process.is_running() for process in processes)
    begin(3)
    cell = book.page.locator(".jp-CodeCell").nth(3)
    for _ in range(2):
        with book.page.expect_response(lambda answer: "/interrupt" in answer.url, timeout=60_000):
            book.command("notebook:interrupt-kernel")
    cell.locator(".jp-OutputArea-output", has_text="KeyboardInterrupt").wait_for(timeout=60_000)
    # One that meets ipykernel while it replies costs the reply: the page, unlike the server, thinks that the cell runs.
    book.lab.wait(book._connected, 60)
    book.run_cell(4)
    book.page.wait_for_function(has("sum 10"), timeout=60_000)
    (tmp_path / "go").touch()
