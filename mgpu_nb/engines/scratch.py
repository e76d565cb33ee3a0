"""Files without a name, for what a process writes."""

from __future__ import annotations

import os
import tempfile
from typing import IO

__all__ = ["scratch_file"]


def scratch_file() -> IO[bytes]:
    """File without a name that needs no folder for temporary files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("mgpu_nb-output", os.MFD_CLOEXEC), "w+b", buffering=0)
    return tempfile.TemporaryFile()
