"""``python -m mgpu_nb.workloads.alignment ...``, what `mgpu-nb alignment` does."""

from __future__ import annotations

import sys

from ..command import run_module
from .workload import WORKLOAD

if __name__ == "__main__":
    sys.exit(run_module(WORKLOAD))
