"""What a run was made with: versions, commit, machine and program, kept in its journal."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hardware.slots import Slot
from ..notebook import in_notebook
from ..version import __version__

__all__ = ["git_state", "packages", "provenance"]

PATIENCE = 2.0  # seconds that git may take
PAUSE = 60.0  # seconds in which git is not asked again after it failed
FILES = 5000  # of which the times are compared; of a larger repository an answer holds for PAUSE
LONGEST = 500  # characters of a command line

_versions: dict[str, str] = {}


def provenance(slots: Iterable[Slot], python: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a run that starts now is made with, as JSON: a few milliseconds at first, then less than one.

    Python, packages, git (commit, and whether tracked files differ from it; None if unknown), folder, program,
    platform, GPUs by name; as ``job`` the number of the SLURM job that this process is in, if any; and as
    ``workers`` path, Python and packages of the workers' interpreter, `python`, where it is not this process's own.
    """
    torch = sys.modules.get("torch")
    gpus = {slot.device: slot.name for slot in slots if slot.kind == "cuda"}
    return {
        "python": platform.python_version(),
        "packages": packages(),
        "cuda": getattr(getattr(torch, "version", None), "cuda", None),
        "git": git_state(_working_folder()),
        "folder": str(_working_folder()),
        "program": _program(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "gpus": dict(Counter(gpus.values())),
        **({"job": job} if (job := os.environ.get("SLURM_JOB_ID")) else {}),
        **({} if python is None else {"workers": dict(python)}),
    }


def packages() -> dict[str, str]:
    """Versions of the installed packages that are imported in this process, and of torch and numpy."""
    names = {name.partition(".")[0] for name in list(sys.modules)} - sys.stdlib_module_names
    found = {"mgpu_nb": __version__}
    for name in sorted(names | {"torch", "numpy"}):
        if name.startswith("_") or name == "mgpu_nb":
            continue
        if name not in _versions:
            _versions[name] = _version(name)
        if version := _versions[name]:
            found[name] = version
    return found


def _version(name: str) -> str:
    """Version of a package by its distribution of that name, or as it says itself; empty if unknown."""
    try:
        return str(importlib.metadata.version(name))
    except Exception:  # no distribution of that name, or a damaged one
        own = vars(sys.modules[name]).get("__version__") if name in sys.modules else None
        return own if isinstance(own, str) else ""


def _program() -> str:
    """Notebook or command line of this process."""
    if in_notebook():
        return os.environ.get("JPY_SESSION_NAME", "a notebook")
    return shlex.join(map(str, sys.argv))[:LONGEST]


def _working_folder() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it was removed
        return Path()


@dataclass
class _Known:
    """What is known of a repository, and what it was like then."""

    index: tuple[int, int] | None
    files: tuple[str, ...]
    state: object
    dirty: bool | None
    at: float


_repositories: dict[Path, _Known] = {}


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the git repository that a folder is in, and whether tracked files differ from it (None if unknown).

    None outside a repository. The commit is read from files; git itself is asked only if a file has changed since it
    was asked last, and is given up after two seconds.
    """
    try:
        found = _repository(folder)
        if found is None:
            return None
        root, git = found
        commit = _commit(git)
        return {"commit": commit, "dirty": _dirty(root, git, commit)}
    except (OSError, ValueError):
        return None


def _repository(folder: Path) -> tuple[Path, Path] | None:
    """Root of the working tree, and its git directory."""
    for root in (folder, *folder.parents):
        git = root / ".git"
        if git.is_dir():
            return root, git
        if git.is_file():  # of a worktree or submodule
            text = git.read_text(encoding="utf-8")
            return root, (root / text.removeprefix("gitdir:").strip()).resolve()
    return None


def _commit(git: Path) -> str:
    """Hash of the commit that is checked out; empty before the first."""
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref:"):
        return head
    name = head.removeprefix("ref:").strip()
    common = git / "commondir"
    shared = (git / common.read_text(encoding="utf-8").strip()).resolve() if common.is_file() else git
    for place in (git, shared):
        if (place / name).is_file():
            return (place / name).read_text(encoding="utf-8").strip()
    packed = shared / "packed-refs"
    for line in packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else ():
        if line.endswith(f" {name}"):
            return line.partition(" ")[0]
    return ""


def _dirty(root: Path, git: Path, commit: str) -> bool | None:
    known, index = _repositories.get(root), _stamp(git / "index")
    now = time.monotonic()
    if known is not None and known.dirty is None and now - known.at < PAUSE:
        return None
    if known is None or known.index != index:
        listed = _git(root, "ls-files", "-z")
        files = tuple(listed.split("\0")[:-1]) if listed is not None else ()
        known = _Known(index, files, None, None, now)
    state = (commit, _state(root, known.files)) if len(known.files) <= FILES else (commit, int(now / PAUSE))
    if known.state != state:
        status = _git(root, "status", "--porcelain", "--untracked-files=no")
        known = _Known(index, known.files, state, None if status is None else bool(status), now)
    _repositories[root] = known
    return known.dirty


def _state(root: Path, files: Iterable[str]) -> int:
    return hash(tuple(_stamp(f"{root}/{name}") for name in files))


def _stamp(path: str | Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - of thousands of files, a Path costs as much again
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _git(root: Path, *words: str) -> str | None:
    """What git says; None if there is no git, if it fails or takes too long."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="surrogateescape")
