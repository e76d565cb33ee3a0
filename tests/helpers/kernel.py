"""A notebook kernel of the tests' own that runs cells, without a page that shows widgets."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.manager import start_new_kernel

DEADLINE = 120


def wait_until(what: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


class Notebook:
    """A kernel that runs cells."""

    def __init__(self, folder: Path) -> None:
        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=str(folder))
        self.folder = folder
        self.traceback: list[str] = []  # of the last error, as a page shows it

    def start(self, code: str) -> str:
        return str(self.client.execute(textwrap.dedent(code), store_history=False))

    def outputs(self, cell: str, deadline: float = DEADLINE) -> list[dict[str, Any]]:
        """Wait for the end of a cell; return the messages of its output."""
        end = time.monotonic() + deadline
        messages: list[dict[str, Any]] = []
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.1, end - time.monotonic()))
            if message["parent_header"].get("msg_id") != cell:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return messages
            messages.append(message)

    def finish(self, cell: str, deadline: float = DEADLINE) -> str:
        """Return what a cell printed, or how it failed."""
        printed = []
        for message in self.outputs(cell, deadline):
            content = message["content"]
            if message["msg_type"] == "stream" and content["name"] == "stdout":
                printed.append(content["text"])
            elif message["msg_type"] == "error":
                printed.append(f"{content['ename']}: {content['evalue']}")
                self.traceback = content["traceback"]
        return "".join(printed).strip()

    def run(self, code: str) -> str:
        return self.finish(self.start(code))

    @property
    def pid(self) -> int:
        pid = getattr(self.manager.provisioner, "pid", None)
        assert isinstance(pid, int)
        return pid

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def close(self) -> None:
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)
