"""A group of processes with a memory limit, below or beside that of the tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpu_nb.hardware.cgroups import levels


class LimitedGroup:
    """A group that programs of a test run in.

    Parameters
    ----------
    folder
        Its folder, which is there.
    version
        1 or 2.
    """

    def __init__(self, folder: Path, version: int) -> None:
        self.folder = folder
        self.version = version

    def limit(self, size: int) -> None:
        """Allow so many bytes, and no swap."""
        self._write("memory.limit_in_bytes" if self.version == 1 else "memory.max", size)
        with contextlib.suppress(OSError):  # where swap is not counted
            if self.version == 1:
                self._write("memory.memsw.limit_in_bytes", size)
            else:
                self._write("memory.swap.max", 0)

    def _write(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))

    def run(self, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """A Python program in this group, with the packages that the tests see."""
        join = f"open({str(self.folder / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
        program = f"import os, sys\n{join}\nsys.path[:] = {sys.path!r}\n{textwrap.dedent(code)}"
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def remove(self) -> None:
        """Remove it, once its processes have gone."""
        end = time.monotonic() + 20
        while True:
            try:
                self.folder.rmdir()
                return
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)


@contextlib.contextmanager
def limited_group(size: int) -> Iterator[LimitedGroup]:
    """A group with a limit; the test is skipped where none can be made, with the reason."""
    group = _make(size)
    try:
        yield group
    finally:
        group.remove()


def _make(size: int) -> LimitedGroup:
    said = "no control group of this process has the memory controller"
    for level in levels("memory"):
        place = Path(level.folder)
        if not (
            place / ("memory.limit_in_bytes" if level.version == 1 else "cgroup.subtree_control")
        ).exists():
            continue
        if level.version == 2 and "memory" not in (place / "cgroup.subtree_control").read_text().split():
            continue  # what is below has no limits of its own
        group = LimitedGroup(place / f"mgpu-nb-test-{os.getpid()}-{time.monotonic_ns()}", level.version)
        try:
            group.folder.mkdir()
        except OSError as error:
            said = f"no control group can be made: {error}"
            continue
        try:
            group.limit(size)
            return group
        except OSError as error:
            said = f"a control group takes no limit: {error}"
            group.remove()
    pytest.skip(said)
