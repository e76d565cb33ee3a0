"""A run displayed where no page shows widgets: nbconvert keeps its last state."""

import subprocess
import sys
from pathlib import Path

import nbformat


def test_the_last_state_is_in_the_html(tmp_path: Path) -> None:
    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_code_cell(source)
        for source in (
            "import pathlib, time\nfrom mgpu_nb import GPUPool, Task, watch\npool = GPUPool(slots=1)",
            "def until(path):\n    while not pathlib.Path(path).exists(): time.sleep(0.01)\n"
            "run = pool.run([Task(until, 'go', name='<b>waits')], folder='run', name='six')\nrun",
            "panel = watch()\npanel",
            "pathlib.Path('go').touch()\n_ = run.wait(60)\npanel.close()",
        )
    ]
    nbformat.write(book, tmp_path / "book.ipynb")
    command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "html", "book.ipynb"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    html = (tmp_path / "book.html").read_text()
    assert "1 of 1 done" in html
    assert "0 of 1 done" not in html
    assert "stopped, as of" in html
    assert "<b>waits" not in html
