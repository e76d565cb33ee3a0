"""``torchrun -m mgpu_nb.workloads.training ...``, ``srun python -m mgpu_nb.workloads.training ...``."""

from __future__ import annotations

import os
import sys

from torch.distributed.elastic.multiprocessing.errors import record

from ..command import execute
from .workload import WORKLOAD


@record  # torchrun shows the traceback of the rank that failed first
def main() -> int:
    """Run the command line; return the exit code."""
    try:
        return execute(WORKLOAD, sys.argv[1:], "python -m mgpu_nb.workloads.training")
    except (ValueError, TypeError, OSError) as error:
        if "RANK" in os.environ or "SLURM_PROCID" in os.environ:  # somebody else shows it, with its rank
            raise
        print(f"mgpu_nb.workloads.training: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
