"""``torchrun -m mgpu_nb.workloads.training ...``, ``srun python -m mgpu_nb.workloads.training ...``."""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing.errors import record

from .command import command
from .place import Place


@record  # torchrun shows the traceback of the rank that failed first
def main() -> int:
    """Run the command line; return the exit code."""
    try:
        return command(sys.argv[1:], "python -m mgpu_nb.workloads.training")
    except (ValueError, OSError) as error:
        if Place.of() is not None:
            raise
        print(f"mgpu_nb.workloads.training: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
