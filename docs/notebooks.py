"""Run the notebooks whole and write them with outputs that name no machine.

``python docs/notebooks.py`` runs all, ``python docs/notebooks.py scaling`` one. Do it on a machine that does nothing
else: the figures of scaling.ipynb and training.ipynb are measured.
"""

from __future__ import annotations

import base64
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
ATTACHED = {"panel.png": ROOT / "docs" / "images" / "panel.png"}
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def without_paths(value: Any, folder: str) -> Any:
    """The outputs with other words for the places of this machine."""
    if isinstance(value, list):
        return [without_paths(entry, folder) for entry in value]
    if isinstance(value, dict):
        return {
            key: entry if key.startswith("image/") else without_paths(entry, folder)
            for key, entry in value.items()
        }
    if not isinstance(value, str):
        return value
    for place, words in ((folder, "/path/to"), (sys.prefix, "/path/to/.venv"), (f"{ROOT}/", "")):
        value = value.replace(place, words)
    # From the start of a word only: the base64 of a picture within HTML is one word of 100,000 characters.
    return re.sub(r"(?<![^\s\"&;])[^\s\"&;]*/ipykernel_\d+/\d+\.py", "a cell", value)


def run(path: Path) -> float:
    """Run a notebook in a new folder and write it; returns the seconds that it took."""
    book = nbformat.read(path, 4)
    for cell in book.cells:
        cell.metadata = {name: cell.metadata[name] for name in ("tags",) if name in cell.metadata}
        if "attachments" in cell:
            cell.attachments = {
                name: {"image/png": base64.b64encode(ATTACHED[name].read_bytes()).decode()}
                for name in cell.attachments
            }
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        place = {"metadata": {"path": folder}}
        NotebookClient(
            book, timeout=180, kernel_name="python3", resources=place, record_timing=False
        ).execute()
        took = time.monotonic() - began
        for cell in book.cells:
            if cell.cell_type == "code":
                cell.outputs = [nbformat.from_dict(without_paths(output, folder)) for output in cell.outputs]
    book.metadata = nbformat.from_dict({**KERNEL, "language_info": {"name": "python"}})
    nbformat.write(book, path)
    return took


if __name__ == "__main__":
    chosen = sys.argv[1:] or sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    for name in chosen:
        print(f"{name}: {run(ROOT / 'notebooks' / f'{name}.ipynb'):.0f} s")
