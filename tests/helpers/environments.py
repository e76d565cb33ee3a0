"""Environments of other interpreters, made of what this machine has, without a network."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import pytest

__all__ = ["environment", "fake_python", "interpreter_of"]

CORE: tuple[str, ...] = ("cloudpickle", "lazy_loader")
TORCH: tuple[str, ...] = (
    "torch",
    "torchgen",
    "functorch",
    "numpy",
    "safetensors",
    "sympy",
    "mpmath",
    "networkx",
    "jinja2",
    "fsspec",
)
TORCH += ("filelock", "typing_extensions", "markupsafe")


def environment(folder: Path, packages: Iterable[str] = CORE, python: str = sys.executable) -> Path:
    """Virtual environment of a Python, with links to some packages of this one; returns its interpreter."""
    base = subprocess.run(
        [python, "-c", "import sys; print(getattr(sys, '_base_executable', sys.executable))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    subprocess.run([base, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for name in packages:
        add(site, name)
    return folder / "bin" / "python"


def add(site: Path, name: str) -> None:
    """Link a package of this process's environment, and what its metadata is, into another."""
    ours = Path(sysconfig.get_paths()["purelib"])
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin)
    source = file.parent if file.name == "__init__.py" else file
    for each in (source, *ours.glob(f"{name}-*.dist-info"), *ours.glob(f"{name}.libs")):
        if not (site / each.name).exists():
            (site / each.name).symlink_to(each)


def interpreter_of(minor: str) -> str:
    """A Python of another minor version on this machine; the test is skipped where there is none."""
    places = sorted(Path.home().glob(f".pyenv/versions/{minor}.*/bin/python"))
    found = str(places[-1]) if places else shutil.which(f"python{minor}")
    if found is None:
        pytest.skip(f"no Python {minor} on this machine")
    return found


def fake_python(folder: Path, text: str, mode: int = 0o755) -> Path:
    """A program with the name of an interpreter."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "python"
    path.write_text(text)
    path.chmod(mode)
    return path
