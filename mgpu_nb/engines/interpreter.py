"""Another Python interpreter, by which workers are started: what it is, what it has, what a worker finds in it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..installation import PACKAGES, installed_folders
from ..version import __version__
from .carried import carry
from .environment import Environment, import_path
from .pickler import refusing_code
from .protocol import PROTOCOL
from .scratch import scratch_file

__all__ = ["OLDEST", "Interpreter", "find_interpreter", "this_interpreter"]

OLDEST = (3, 10)
"""Oldest Python that the worker's half of this package runs in."""
NEEDS = {"cloudpickle": "3.0", "lazy-loader": "0.4"}
"""Distributions that a worker cannot do without, and the oldest version of each."""
TOLD = ("torch", "numpy", "mgpu-nb", *NEEDS)
PATIENCE = 60.0  # seconds for an interpreter to start; some are on a file system that sleeps
IMPORTS = 300.0  # seconds for it to import what is asked for
TICK = 0.01  # seconds between looks at a process

_FOLDER = Path(__file__).parents[1]
_PROBE = Path(__file__).with_name("probe.py")
# Of this process's own installation: the other one would take its packages, or its standard library, for its own.
_OURS = frozenset(
    {"PYTHONPATH", "PYTHONHOME", "PYTHONEXECUTABLE", "PYTHONSAFEPATH", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV"}
    | {"VIRTUAL_ENV_PROMPT", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "CONDA_PROMPT_MODIFIER", "CONDA_SHLVL"}
)


@dataclass(frozen=True)
class Interpreter:
    """Another Python interpreter, as a probe found it.

    Attributes
    ----------
    path
        Its file.
    version
        Its version, ``"3.10.13"``.
    search
        Its own ``sys.path``.
    packages
        Versions of torch, numpy, cloudpickle, lazy-loader and mgpu-nb in it; empty texts where it has none.
    errors
        Why modules that it was asked for do not import there, by name.
    """

    path: str
    version: str
    search: tuple[str, ...]
    packages: Mapping[str, str]
    errors: Mapping[str, str]

    @property
    def runs_our_code(self) -> bool:
        """Whether it runs the bytecode of this process."""
        return _minor(self.version) == sys.version_info[:2]

    @property
    def pip(self) -> str:
        """The command that installs packages for it, but for their names."""
        return f"{self.path} -m pip install"

    def boot(self) -> str:
        """Source text that it runs first, so that it finds this package."""
        return carry(str(_FOLDER))

    def variables(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Environment variables as they are for it: without those of this process's own installation."""
        kept = {name: value for name, value in variables.items() if name not in _OURS}
        own = str(Path(self.path).parent)
        rest = [entry for entry in kept.get("PATH", os.defpath).split(os.pathsep) if entry != own]
        return kept | {"PATH": os.pathsep.join([own, *rest])}

    def import_path(self, path: Sequence[str]) -> list[str]:
        """``sys.path`` in it, for one of this process: its own, then the user's own folders, never our packages."""
        own = [entry for entry in path if entry not in self.search and not _is_installation(entry)]
        return [*self.search, *own]

    def environment(self, environment: Environment) -> Environment:
        """What a task finds around it, for what it would find in this process's own workers."""
        return replace(
            environment,
            variables=self.variables(environment.variables),
            path=tuple(self.import_path(environment.path)),
        )

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Within the block, pickling refuses functions that would go to it as bytecode which it does not run."""
        if self.runs_our_code:
            yield
            return
        major, minor = sys.version_info[:2]
        reason = (
            f"is not importable by name (of a notebook cell, a script, or within another function), so it would go to "
            f"the worker as bytecode, which another minor version of Python does not run: this is Python "
            f"{platform.python_version()}, {self.path} is Python {self.version}. Put it into a module, a file beside "
            f"the notebook will do, and import it from there; or make that environment with Python {major}.{minor}"
        )
        with refusing_code(reason):
            yield

    def described(self) -> dict[str, Any]:
        """What the provenance of a run says of it."""
        known = {name: version for name, version in self.packages.items() if version}
        return {"path": self.path, "python": self.version, "packages": known}


def find_interpreter(
    python: str | os.PathLike[str],
    imports: Sequence[str] = (),
    *,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Interpreter:
    """Ask another Python interpreter what it is, by starting it once; nothing of ours is imported there.

    Parameters
    ----------
    python
        Its path, or its name where it is on PATH.
    imports
        Modules that it is to import, to see whether they do: `Interpreter.errors`.
    env
        Environment variables for it, over those that it would have.
    timeout
        Seconds until it must have answered; by default a minute, and five where it imports something.

    Raises
    ------
    ValueError
        If it is not there, is no Python, is too old, does not answer, or lacks what a worker needs; the message says
        which, and what to do.
    """
    path = _executable(python)
    timeout = timeout if timeout is not None else IMPORTS if imports else PATIENCE
    bare = Interpreter(path, "", (), {}, {})
    variables = {**bare.variables(os.environ), **(env or {})}
    found = _ask(path, imports, variables, timeout, bare.import_path(import_path()), bare.boot())
    version = ".".join(map(str, found["version"]))
    if found["implementation"] != "cpython":
        raise ValueError(f"python={path!r} is {found['implementation']}, and workers need CPython")
    if tuple(found["version"]) < OLDEST:
        raise ValueError(
            f"python={path!r} is Python {version}, and workers need {'.'.join(map(str, OLDEST))} or later: make its "
            f"environment with one, and give the python of that"
        )
    interpreter = Interpreter(path, version, tuple(found["path"]), found["packages"], found["errors"])
    _check_packages(interpreter)
    _check_protocol(interpreter, found["place"])
    return interpreter


def this_interpreter(imports: Sequence[str], timeout: float = IMPORTS) -> Interpreter:
    """What this process's own interpreter is, and which modules do not import in its workers.

    Raises
    ------
    ValueError
        If it does not answer in time.
    """
    path = sys.executable
    found = _ask(path, imports, os.environ, timeout, [], f"import sys; sys.path[:] = {import_path()!r}")
    version = platform.python_version()
    return Interpreter(path, version, tuple(found["path"]), found["packages"], found["errors"])


def _executable(python: str | os.PathLike[str]) -> str:
    """Absolute path of an interpreter; a link stays one, for by it a virtual environment is known."""
    if not isinstance(python, (str, os.PathLike)):
        raise TypeError(f"python must be the path of an interpreter, got {python!r}")
    given = os.fspath(python)
    path = Path(given).expanduser()
    if os.sep not in given and (named := shutil.which(given)) is not None:
        path = Path(named)
    path = Path(os.path.abspath(path))
    if path.is_dir():
        inside = path / "bin" / "python"
        more = f"give python={str(inside)!r}" if inside.exists() else "give the path of its interpreter"
        raise ValueError(f"python={given!r} is a folder: {more}")
    if not path.exists():
        raise ValueError(
            f"python={given!r} does not exist: give the path of the interpreter of the other environment (there, "
            "`python -c 'import sys; print(sys.executable)'` prints it)"
        )
    if not os.access(path, os.X_OK):
        raise ValueError(f"python={given!r} is not executable: give an interpreter, or chmod +x it")
    return str(path)


def _ask(
    path: str,
    imports: Sequence[str],
    variables: Mapping[str, str],
    timeout: float,
    folders: Sequence[str],
    boot: str,
) -> dict[str, Any]:
    """Run the probe."""
    mark = f"mgpu_nb-{secrets.token_hex(8)}:"
    asked = TOLD, list(imports), list(folders), boot
    words = [mark, *map(json.dumps, asked)]
    try:
        text, code = _output_of(
            [path, "-c", _PROBE.read_text(encoding="utf-8"), *words],
            variables,
            timeout,
        )
    except OSError as error:
        raise ValueError(f"python={path!r} does not start ({error}): is it a Python interpreter?") from error
    if code is None:
        what = f" and import {', '.join(imports)}" if imports else ""
        raise ValueError(
            f"python={path!r} did not start{what} within {timeout:g} s: try it in a terminal (a sitecustomize or .pth "
            f"file may hang, or a file system sleep).{_said(text)}"
        )
    _, _, answer = text.rpartition(mark)
    try:
        found: dict[str, Any] = json.loads(answer.partition("\n")[0])
    except ValueError:  # without the mark, or with it in a message that repeats what the program was given
        raise ValueError(
            f"python={path!r} is not a Python interpreter, or far too old (exit code {code}).{_said(text)}"
        ) from None
    return found


def _said(text: str) -> str:
    return f" It said: {text.strip()[-500:]}" if text.strip() else ""


def _output_of(command: list[str], env: Mapping[str, str], timeout: float) -> tuple[str, int | None]:
    """What a program writes, and its exit code; None if it does not end in time. Nothing of it is left."""
    with scratch_file() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            process_group=0,
        )
        try:
            end = time.monotonic() + timeout
            while (code := process.poll()) is None and time.monotonic() < end:
                time.sleep(TICK)
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return output.read().decode(errors="replace"), code


def _check_packages(interpreter: Interpreter) -> None:
    """Check that a worker finds what it cannot do without."""
    missing, old = [], []
    for name, least in NEEDS.items():
        version = interpreter.packages[name]
        if not version:
            missing.append(name)
        elif _minor(version) < _minor(least):
            old.append(f"{name} {version}")
    if missing or old:
        problems = [f"lacks {' and '.join(missing)}"] * bool(missing) + [f"has {' and '.join(old)}"] * bool(
            old
        )
        wanted = " ".join(f"'{name}>={least}'" for name, least in NEEDS.items())
        raise ValueError(
            f"python={interpreter.path!r} (Python {interpreter.version}) {' and '.join(problems)}, and workers need "
            f"{' and '.join(f'{name} {least} or later' for name, least in NEEDS.items())}: {interpreter.pip} {wanted}"
        )


def _check_protocol(interpreter: Interpreter, place: str) -> None:
    """Check that the mgpu_nb which is installed there, if one is, speaks as this one does."""
    if not place:
        return
    try:
        text = Path(place).with_name("engines").joinpath("protocol.py").read_text(encoding="utf-8")
    except OSError:
        text = ""
    stated = re.search(r"^PROTOCOL = (\d+)$", text, re.MULTILINE)
    if stated is None or int(stated[1]) != PROTOCOL:
        which = f"protocol {stated[1]}" if stated else "a protocol of its own"
        raise ValueError(
            f"python={interpreter.path!r} has mgpu_nb {interpreter.packages['mgpu-nb'] or 'of ' + place}, whose "
            f"workers speak {which}; this process has mgpu_nb {__version__} with protocol {PROTOCOL}. Install the same "
            f"version there, or none ({interpreter.path} -m pip uninstall mgpu-nb): then this one is used"
        )


def _minor(version: str) -> tuple[int, ...]:
    """First two numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


@functools.lru_cache(maxsize=1000)
def _is_installation(entry: str) -> bool:
    """Whether an entry of ``sys.path`` holds installed packages or a standard library, not a user's own modules."""
    if os.path.realpath(entry) in installed_folders() or os.path.basename(entry) in PACKAGES:
        return True
    if entry.endswith(".zip") and os.path.basename(entry).startswith("python"):
        return True
    try:
        return any(name.endswith(".dist-info") for name in os.listdir(entry))
    except OSError:
        return False
