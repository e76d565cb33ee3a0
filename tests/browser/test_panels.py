"""The panels in a real JupyterLab: they move, cancel, end, escape, survive."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from lab import NotebookPage

if TYPE_CHECKING:
    from playwright.sync_api import Page

SETUP = """
import os, pathlib, tempfile, time
from mgpu_nb import GPUPool, Task, watch
folder = tempfile.mkdtemp()
def until(path):
    print("waits for", path)
    while not os.path.exists(path): time.sleep(0.01)
def fail(text):
    raise ValueError(text)
pool = GPUPool(slots=2)
_ = [pool.submit(abs, i).result() for i in range(4)]
"""
RUN = """
tasks = [Task(until, f"{folder}/go", name=f"t{i}") for i in range(6)]
run = pool.run(tasks, folder=f"{folder}/run", name="six")
run
"""
PANEL = ".jp-OutputArea-output .mgpu"


def js_text(part: str) -> str:
    return f"() => [...document.querySelectorAll({PANEL!r})].some(e => e.innerText.includes({part!r}))"


def test_a_runs_panel_moves_and_leaves_a_static_output(
    open_notebook: Callable[..., NotebookPage], screenshot: Callable[["Page", str], None]
) -> None:
    book = open_notebook(
        "moves.ipynb", [SETUP, RUN, "pathlib.Path(folder, 'go').touch()", "_ = run.wait(30)"]
    )
    book.run_cell(0)
    book.idle()
    book.run_cell(1)
    book.page.wait_for_function(js_text("2 running"), timeout=60_000)
    found = re.search(r"as of (\S+)", book.text(PANEL))
    assert found
    first = found[1]
    book.page.wait_for_function(js_text("as of ") + f" && !({js_text(first)})()", timeout=60_000)
    assert "0 of 6 done" in book.text(PANEL)
    assert "t0" in book.text(PANEL)
    screenshot(book.page, "run-live")
    book.run_cell(2)
    book.page.wait_for_function(js_text("6 of 6 done"), timeout=60_000)
    book.page.wait_for_selector(".jp-OutputArea-output .widget-html", state="detached", timeout=60_000)
    screenshot(book.page, "run-ended")
    saved = book.save()
    outputs = saved.cells[1].outputs
    assert "6 of 6 done" in outputs[0].data["text/html"]
    assert not any("application/vnd.jupyter.widget-view+json" in output.data for output in outputs)
    book.open(kernel=False)  # reopened: what was saved is shown
    book.page.wait_for_function(js_text("6 of 6 done"), timeout=60_000)
    assert "model not found" not in book.page.locator("body").inner_text()


def test_cancel_is_pressed_while_it_runs(
    open_notebook: Callable[..., NotebookPage], screenshot: Callable[["Page", str], None]
) -> None:
    book = open_notebook("cancel.ipynb", [SETUP, RUN])
    book.run_all()
    book.page.wait_for_function(js_text("2 running"), timeout=60_000)
    book.page.get_by_role("button", name="Cancel", exact=True).click()
    book.page.wait_for_function(js_text("0 ok, 6 cancelled"), timeout=60_000)
    screenshot(book.page, "run-cancelled")


TRAINING = """
import tempfile, threading
from mgpu_nb import GPUPool
from mgpu_nb.workloads import training
folder = tempfile.mkdtemp()
pool = GPUPool(slots=2, isolation="task")
"""
TRAIN = """
small = dict(columns=53, width=8, layers=1, heads=2, batch_size=12)
config = training.Config(epochs=100000, world_size=2, output_dir=folder, **small)
run = training.start(config, pool)
training.show(run)
"""


def test_a_training_shows_its_curves_and_is_cancelled(
    open_notebook: Callable[..., NotebookPage], screenshot: Callable[["Page", str], None]
) -> None:
    book = open_notebook("training.ipynb", [TRAINING, TRAIN, "_ = run.wait(60)"])
    book.run_cell(0)
    book.idle()
    book.run_cell(1)
    book.page.wait_for_function(js_text("validation"), timeout=60_000)
    book.page.wait_for_selector(".mgpu svg path[stroke-width]", state="attached")
    book.page.wait_for_function(js_text("rank-1"), timeout=60_000)
    book.page.wait_for_function(js_text("columns_per_second"), timeout=60_000)
    screenshot(book.page, "training-live")
    book.page.get_by_role("button", name="Cancel", exact=True).click()
    book.page.wait_for_function(js_text("2 cancelled"), timeout=60_000)
    book.page.wait_for_selector(".jp-OutputArea-output .widget-html", state="detached", timeout=60_000)
    screenshot(book.page, "training-cancelled")
    saved = book.save()
    html = saved.cells[1].outputs[0].data["text/html"]
    assert "last validation" in html


def test_markup_in_names_is_shown_and_not_run(
    open_notebook: Callable[..., NotebookPage], screenshot: Callable[["Page", str], None]
) -> None:
    name = "<img src=x onerror=document.title='run'>"
    cell = f"""
tasks = [Task(fail, {name!r}, name={name!r}), Task(until, folder + "/go", name="<b>bold<script>")]
run = pool.run(tasks, folder=folder + "/run", name="<i>run")
run
"""
    book = open_notebook("escape.ipynb", [SETUP, cell])
    titles = []
    book.page.on("dialog", lambda dialog: titles.append(dialog.message))
    book.run_all()
    book.page.wait_for_function(js_text("1 error"), timeout=60_000)
    book.page.wait_for_function(js_text("<b>bold<script>"), timeout=60_000)
    assert name in book.text(PANEL)
    assert book.page.locator(f"{PANEL} img, {PANEL} script, {PANEL} i").count() == 0
    book.page.locator(".widget-dropdown select").select_option(label=name)
    book.page.wait_for_function(js_text("ValueError"), timeout=60_000)
    screenshot(book.page, "run-escaped")
    book.page.get_by_role("button", name="Cancel", exact=True).click()
    book.page.wait_for_function(js_text("1 cancelled"), timeout=60_000)
    assert book.page.locator(f"{PANEL} img, {PANEL} script, {PANEL} i").count() == 0
    assert book.page.title() != "run"
    assert titles == []


def test_a_cell_run_again_has_one_panel_and_one_writer(open_notebook: Callable[..., NotebookPage]) -> None:
    count = "from mgpu_nb.telemetry import sampler; print('listeners', len(sampler.shared._listeners))"
    show = "panel = watch()\npanel"
    book = open_notebook("again.ipynb", ["from mgpu_nb import watch", show, count, "panel.close()", count])
    for index in (0, 1, 1, 1, 2):
        book.run_cell(index)
        book.idle()
    book.page.wait_for_function(js_text("this machine"), timeout=60_000)
    assert "listeners 1" in book.page.locator(".jp-Notebook").inner_text()
    for index in (3, 4):
        book.run_cell(index)
        book.idle()
    assert "listeners 0" in book.page.locator(".jp-Notebook").inner_text()
    book.page.wait_for_function(js_text("stopped, as of"), timeout=60_000)


def test_an_interrupted_wait_and_a_killed_kernel(
    open_notebook: Callable[..., NotebookPage], screenshot: Callable[["Page", str], None]
) -> None:
    begins = "print('be' + 'gun'); run.wait()"
    book = open_notebook("restart.ipynb", [SETUP, RUN, begins, "from mgpu_nb import Run"])
    for index in (0, 1, 2):
        book.run_cell(index)
    book.page.wait_for_function(js_text("2 running"), timeout=60_000)
    book.page.wait_for_function(
        "() => document.querySelector('.jp-Notebook').innerText.includes('begun')", timeout=60_000
    )
    book.command("notebook:interrupt-kernel")
    book.page.wait_for_function(
        "() => document.querySelector('.jp-Notebook').innerText.includes('stopped waiting')", timeout=60_000
    )
    book.lab.kill_kernel(book.name)
    book.lab.wait(book._connected, 60)  # the server starts another
    saved = book.save()
    book.open(kernel=False)
    screenshot(book.page, "after-a-kill")
    shown = book.page.locator(".jp-Notebook").inner_text()
    assert "Run.open(" in shown  # the panel is gone with its kernel; what is left says how to see the run
    assert len(str(saved)) < 100_000


def test_dark_theme_and_a_narrow_page(
    open_notebook: Callable[..., NotebookPage], screenshot: Callable[["Page", str], None]
) -> None:
    tables = ["from mgpu_nb import devices; devices()", "run.table()"]
    book = open_notebook("dark.ipynb", [SETUP, RUN, "watch()", *tables], width=800)
    book.page.evaluate(
        "() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
    )
    book.run_all()
    book.page.wait_for_function(js_text("2 running"), timeout=60_000)
    book.page.wait_for_function(js_text("workers of this process"), timeout=60_000)
    screenshot(book.page, "dark-800")
    book.page.wait_for_function(js_text("virtual CPU device"), timeout=60_000)
    book.page.wait_for_function(js_text("… running"), timeout=60_000)
    # The text of panels and of static tables alike: light on dark, cells without a ground of their own.
    styles = book.page.evaluate(
        f"""() => [...document.querySelectorAll({PANEL + " td:not(.s)"!r})].map(getComputedStyle)
            .map(style => [style.color, style.backgroundColor])"""
    )
    assert {ground for _, ground in styles} == {"rgba(0, 0, 0, 0)"}
    assert min(int(n) for colour, _ in styles for n in re.findall(r"\d+", colour)[:3]) > 150
    book.scroll_to(f"{PANEL} table[aria-label='tasks of the run']")
    screenshot(book.page, "dark-tables")
    book.page.evaluate(
        "() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})"
    )


GPUS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "helpers")!r})
from fake_nvml import GIB, FakeNvml, Gpu, uuid
from mgpu_nb.hardware import nvml
import os
from mgpu_nb import watch
held = [(os.getppid(), 4 * GIB)]
gpus = [
    Gpu(uuid=uuid(n), bus=f"00000000:{{n:02x}}:00.0", name="NVIDIA H100 80GB HBM3", total=80 * GIB,
        used=(9 * n + 5) * GIB, compute=held if n % 3 == 0 else [])
    for n in range(COUNT)
]
nvml.load = lambda: FakeNvml(gpus)
"""


@pytest.mark.parametrize(("count", "width"), [(1, 800), (4, 1280), (8, 800), (8, 1280)])
def test_every_gpu_has_a_row_that_fits(
    open_notebook: Callable[..., NotebookPage],
    screenshot: Callable[["Page", str], None],
    count: Any,
    width: Any,
) -> None:
    cells = [GPUS.replace("COUNT", str(count)), "panel = watch()\npanel", "panel.close()"]
    book = open_notebook(f"gpus-{count}-{width}.ipynb", cells, width=width)
    for index in (0, 1):
        book.run_cell(index)
        book.idle()
    book.page.wait_for_function(js_text("GPU 0"), timeout=60_000)
    # A copy is hidden, for the saved notebook.
    rows = book.page.locator(f"{PANEL} tbody tr").locator("visible=true")
    assert rows.count() == count
    book.scroll_to(PANEL)
    screenshot(book.page, f"gpus-{count}-{width}")
    notebook = book.page.locator(".jp-Notebook")
    assert notebook.evaluate("e => e.scrollWidth <= e.clientWidth")
    book.run_cell(2)
    book.page.wait_for_function(js_text("stopped, as of"), timeout=60_000)


def test_the_static_output_is_shown_where_the_notebook_is_not_trusted(
    open_notebook: Callable[..., NotebookPage], screenshot: Callable[["Page", str], None]
) -> None:
    book = open_notebook(
        "trusted.ipynb", [SETUP, RUN, "pathlib.Path(folder, 'go').touch(); _ = run.wait(30)"]
    )
    book.run_all()
    book.page.wait_for_function(js_text("6 of 6 done"), timeout=60_000)
    saved = book.save()
    saved.cells[0].source += "\n# changed by somebody else, so its signature is gone"
    nbformat.write(saved, book.lab.root / "untrusted.ipynb")
    book.name = "untrusted.ipynb"
    book.open(kernel=False)
    book.page.wait_for_function(
        "() => document.querySelector('.jp-Notebook').innerText.includes('6 of 6 done')", timeout=60_000
    )
    screenshot(book.page, "untrusted")


LONG = """
tasks = [Task(until, f"{folder}/never", name=f"t{i}") for i in range(4)]
run = pool.run(tasks, name="long")
run
"""


def test_a_cell_executed_again_shows_and_cancels_what_it_left(
    open_notebook: Callable[..., NotebookPage], screenshot: Callable[["Page", str], None]
) -> None:
    book = open_notebook("left.ipynb", [SETUP, LONG, "pool.runs", "run.cancel(); _ = run.wait(30)"])
    book.run_cell(0)
    book.idle()
    book.run_cell(1)
    book.page.wait_for_function(js_text("2 running"), timeout=60_000)
    book.run_cell(1)
    left = "an earlier execution of this cell left run 'long' (0 of 4 done, 2 running) under way"
    book.page.wait_for_function(js_text(left), timeout=60_000)
    book.page.wait_for_function(js_text("busy with run 'long' of "), timeout=60_000)
    assert "idle" not in book.text(PANEL)
    assert "UserWarning" not in book.page.locator(".jp-Notebook").inner_text()
    book.run_cell(2)
    book.idle()
    assert book.page.locator("table[aria-label='runs of the pool'] tbody tr").count() == 2
    screenshot(book.page, "run-left")
    book.page.get_by_role("button", name="Cancel run 'long' of").click()
    book.page.wait_for_function(js_text("2 running"), timeout=60_000)  # the second has the slots now
    book.page.wait_for_function(f"() => !({js_text('an earlier execution')})()", timeout=60_000)
    book.page.wait_for_function(
        "() => ![...document.querySelectorAll('button')].some(b => b.innerText.startsWith('Cancel run'))",
        timeout=60_000,
    )
    book.run_cell(3)
    book.page.wait_for_function(js_text("0 ok, 4 cancelled"), timeout=60_000)
    assert "failed" not in book.text(PANEL)


def test_a_notebook_saved_with_a_live_panel_is_readable_without_its_kernel(
    open_notebook: Callable[..., NotebookPage], screenshot: Callable[["Page", str], None]
) -> None:
    book = open_notebook("saved-live.ipynb", [SETUP, LONG, "watch()"])
    book.run_all()
    book.page.wait_for_function(js_text("2 running"), timeout=60_000)
    visible = f"() => [...document.querySelectorAll({PANEL!r})].filter(e => e.offsetHeight > 0).length"
    book.page.wait_for_function(f"() => ({visible})() === 2", timeout=60_000)  # the snapshots are hidden

    def with_a_late_snapshot() -> Any:
        saved = book.save()
        return saved if "2 running" in saved.cells[1].outputs[1].data["text/html"] else None

    saved = book.lab.wait(with_a_late_snapshot)
    outputs = saved.cells[1].outputs
    assert outputs[0].data["text/plain"].startswith("Run('long': 0 of 4 done")
    assert "VBox(" not in str(saved)
    book.open(kernel=False)
    book.page.wait_for_function(js_text("2 running"), timeout=60_000)
    book.page.wait_for_function(js_text("cores of this machine"), timeout=60_000)
    assert book.page.evaluate(visible) >= 2
    screenshot(book.page, "saved-live")
