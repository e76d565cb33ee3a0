"""What this process knows of the notebook it runs for."""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["cell", "has_widgets", "in_notebook"]


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

    Both are the id of the execution if the front end, unlike JupyterLab, sends no cell id.
    """
    kernel = _kernel()
    if kernel is None:
        return "", ""
    parent = kernel.get_parent()
    execution = str(parent.get("header", {}).get("msg_id", ""))
    return str(parent.get("metadata", {}).get("cellId", execution)), execution


def _kernel() -> Any:
    """The notebook kernel of this process; None outside a notebook. IPython is not imported for that."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None)
