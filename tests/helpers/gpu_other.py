"""A program that is none of ours and holds memory of the GPU."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gpu_dry import DRY
from gpu_jobs import wait_for

_CODE = """
import sys, time
from pathlib import Path
size, there = int(sys.argv[1]), Path(sys.argv[2])
if {dry}:
    import gpu_dry
    held = gpu_dry.take(size)
else:
    import torch
    held = torch.empty(size, dtype=torch.uint8, device="cuda")
there.touch()
time.sleep(120)
"""


@contextlib.contextmanager
def other_program(size: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds `size` bytes of the GPU, called ``python stranger.py``; it is killed at the end."""
    script, there = folder / "stranger.py", folder / "stranger-is-there"
    script.write_text(_CODE.format(dry=DRY))
    path = os.pathsep.join(entry for entry in sys.path if entry)
    other = subprocess.Popen(
        [sys.executable, str(script), str(size), str(there)], env={**os.environ, "PYTHONPATH": path}
    )
    try:
        wait_for(there, 25)
        yield other
    finally:
        other.kill()
        other.wait()
