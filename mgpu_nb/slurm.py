"""Former name of `mgpu_nb.distributed.slurm`, with the former names of what is in it."""

from __future__ import annotations

from .distributed.slurm import BatchJob as Job
from .distributed.slurm import SubmitError, submit, write_script
from .distributed.slurm import render_script as batch_script

__all__ = ["Job", "SubmitError", "batch_script", "submit", "write_script"]
