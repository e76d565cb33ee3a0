"""A JupyterLab of the tests' own, and a page in Debian's Chromium that looks at it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import nbformat
import psutil

if TYPE_CHECKING:
    from playwright.sync_api import Page

T = TypeVar("T")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_QUIET = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}


class Lab:
    """A server on the loopback, with settings, kernels and notebooks below `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "notebooks"
        self.root.mkdir()
        for name, values in _QUIET.items():
            file = home / "settings" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.token = secrets.token_hex(16)
        places = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
        environment = {
            **os.environ,
            **{f"JUPYTER_{name}_DIR": str(home / folder) for name, folder in places.items()},
            "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "IPYTHONDIR": str(home / "ipython"),
        }
        options = ["--no-browser", "--ip=127.0.0.1", f"--port={self.port}", "--ServerApp.port_retries=0"]
        options += [f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.root}"]
        options += ["--allow-root", "--expose-app-in-browser"]
        self._log = (home / "server.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        self.wait(lambda: self.api("status"), 90)

    def api(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{path}",
            headers={"Authorization": f"token {self.token}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def wait(self, what: Callable[[], T], seconds: float = 60.0) -> T:
        """Wait until `what` is true; a server that refuses or fails meanwhile is asked again."""
        end = time.monotonic() + seconds
        while True:
            try:
                if answer := what():
                    return answer
            except (OSError, urllib.error.URLError):
                pass
            if time.monotonic() > end:
                raise TimeoutError((self.home / "server.log").read_text()[-3000:])
            time.sleep(0.05)

    def notebook(self, name: str, cells: list[str]) -> Path:
        """Write a notebook of code cells; return its path."""
        book = nbformat.v4.new_notebook(
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        )
        book.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
        path = self.root / name
        nbformat.write(book, path)
        return path

    def stop_kernels(self) -> None:
        for session in self.api("sessions"):
            try:
                self.api(f"sessions/{session['id']}", "DELETE")
            except urllib.error.HTTPError as error:
                gone = error.code in (
                    404,
                    410,
                )  # a page that ended its kernel has ended the session meanwhile
                if not gone:
                    raise

    def kill_kernel(self, notebook: str) -> None:
        """Kill the kernel of a notebook as the system would."""
        (kernel,) = [s["kernel"]["id"] for s in self.api("sessions") if s["path"] == notebook]
        for process in psutil.Process(self._process.pid).children():
            if kernel in " ".join(process.cmdline()):
                process.kill()

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()


class NotebookPage:
    """A notebook open in the browser."""

    def __init__(self, lab: Lab, page: Page, name: str) -> None:
        self.lab, self.page, self.name = lab, page, name
        self.open()

    def open(self, kernel: bool = True) -> None:
        """Load the page and wait until the notebook, and its kernel, are there."""
        self.page.goto(f"http://127.0.0.1:{self.lab.port}/lab/tree/{self.name}?token={self.lab.token}&reset")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        if kernel:
            self.lab.wait(self._connected, 60)
            self.idle()

    def _connected(self) -> bool:
        kernels = [s["kernel"] for s in self.lab.api("sessions") if s["path"] == self.name]
        return any(k["execution_state"] == "idle" and k["connections"] for k in kernels)

    def command(self, name: str) -> None:
        """Start a command of JupyterLab, without waiting for its end."""
        self.page.evaluate(f"() => {{ window.jupyterapp.commands.execute({name!r}) }}")

    def idle(self, seconds: float = 60.0) -> None:
        """Wait until the kernel has nothing to do, and no cell waits for it."""
        self.page.wait_for_function(
            "() => document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'"
            " && ![...document.querySelectorAll('.jp-InputPrompt')].some(p => p.innerText.includes('*'))",
            timeout=1000 * seconds,
        )

    def run_all(self) -> None:
        self.command("notebook:run-all-cells")

    def run_cell(self, index: int) -> None:
        """Click into a cell and run it; it has been taken when this returns."""
        cell = self.page.locator(".jp-CodeCell").nth(index)
        prompt = cell.locator(".jp-InputPrompt").inner_text()
        cell.locator(".jp-InputArea-editor").click()
        self.command("notebook:run-cell")
        self.page.wait_for_function(
            "([index, prompt]) => { const cell = document.querySelectorAll('.jp-CodeCell')[index];"
            " const now = cell.querySelector('.jp-InputPrompt').innerText;"
            " return now.includes('*') || now !== prompt; }",
            arg=[index, prompt],
            timeout=60_000,
        )

    def scroll_to(self, selector: str) -> None:
        """Scroll to an element at once; one that is drawn anew all the time never stands still."""
        self.page.evaluate("selector => document.querySelector(selector).scrollIntoView()", selector)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def save(self) -> Any:
        """Save the notebook; return it as it is on disk."""
        path = self.lab.root / self.name
        before = path.stat().st_mtime_ns
        self.command("docmanager:save")
        return self.lab.wait(lambda: path.stat().st_mtime_ns != before and _read(path), 30)


def _read(path: Path) -> Any:
    """Return a notebook, None while it is being written."""
    try:
        return nbformat.read(path, 4)
    except nbformat.reader.NotJSONError:
        return None
