"""Packages of other people, installed beside ours for the programs that a test starts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import mgpu_nb

MAIN = "from mgpu_nb.cli import main; sys.exit(main(sys.argv[1:]))"


class Site:
    """A folder of installed packages.

    Parameters
    ----------
    folder
        Working directory of the programs; the packages are in ``site`` below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "site"

    def add(self, distribution: str, points: Mapping[str, Mapping[str, str]], **modules: str) -> None:
        """Install a distribution: its entry points by group and name, its modules as text."""
        about = self.path / f"{distribution}-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in each.items())
            for group, each in points.items()
        ]
        (about / "entry_points.txt").write_text("\n".join(lines))
        for name, source in modules.items():
            (self.path / f"{name}.py").write_text(source)

    def run(self, code: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """A Python program (`sys` is imported), with these packages and the package under test on its path."""
        paths = [str(self.path), str(Path(mgpu_nb.__file__).parents[1])]
        program = f"import sys; sys.path[:0] = {paths!r}\n{textwrap.dedent(code)}"
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=self.folder,
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=120,
        )
