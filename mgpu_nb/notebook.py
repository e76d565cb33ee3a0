"""What this process knows of the notebook it runs for."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from typing import Any

__all__ = [
    "after_cell",
    "answer_while_busy",
    "answers_while_busy",
    "cell",
    "cell_number",
    "has_widgets",
    "in_notebook",
]


def in_notebook() -> bool:
    """Whether this process is a notebook kernel."""
    return _kernel() is not None


def has_widgets() -> bool:
    """Whether a page that shows widgets is connected to this notebook kernel; nbconvert and papermill have none."""
    if not in_notebook():
        return False
    pages = ("JPY_SESSION_NAME", "VSCODE_PID", "VSCODE_CWD", "COLAB_RELEASE_TAG")
    return any(name in os.environ for name in pages)


def cell() -> tuple[str, str]:
    """Id of the running cell, and id of this execution of it; empty outside a notebook.

    JupyterLab, Notebook 7 and VS Code send the id of the cell. For a front end that sends none (Notebook 6, Colab,
    a client of one's own) it is a hash of the cell's source: an edited cell is another one then, and two cells of the
    same source are one.
    """
    kernel = _kernel()
    if kernel is None:
        return "", ""
    parent = kernel.get_parent()
    execution = str(parent.get("header", {}).get("msg_id", ""))
    if given := parent.get("metadata", {}).get("cellId"):
        return str(given), execution
    source = parent.get("content", {}).get("code")
    if not source:
        return execution, execution
    return f"source:{hashlib.blake2b(str(source).encode(), digest_size=16).hexdigest()}", execution


def cell_number() -> int | None:
    """Number of the running cell as its prompt shows it; None outside a notebook."""
    kernel = _kernel()
    number = getattr(getattr(kernel, "shell", None), "execution_count", None)
    return number if isinstance(number, int) else None


def after_cell(callback: Callable[[], None]) -> None:
    """Call `callback` when the running cell has ended and shown its value; at once outside a notebook."""
    kernel = _kernel()
    events = getattr(getattr(kernel, "shell", None), "events", None)
    if events is None:
        callback()
        return

    def once(*_: Any) -> None:
        events.unregister("post_execute", once)
        callback()

    events.register("post_execute", once)


def answers_while_busy() -> bool:
    """Whether the kernel handles a click on a widget while a cell runs, where the page asks for that."""
    return bool(getattr(_kernel(), "_supports_kernel_subshells", False))


def answer_while_busy(widget: Any) -> None:
    """Have a click on a widget handled where the page asks for it: while a cell runs, in a thread of its own.

    ipykernel 7.4 leaves it to the thread that made the widget, which is the one that waits.
    """
    comm = widget.comm
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda data, asked: asked


def _kernel() -> Any:
    """The notebook kernel of this process; None outside a notebook. IPython is not imported for that."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None)
