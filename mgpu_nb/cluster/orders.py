"""What a batch job is to run of a detached pool: a file that is read back only with the digest that its script has.

The file is a pickle, as are the calls that a pool sends to its workers. It is taken for what it was when the job was
submitted: SLURM keeps the script, with the SHA-256 of the file, where none but it can change it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..engines import attachments, main_module
from ..engines.definitions import definitions
from ..engines.environment import import_path
from ..engines.payload import dumps_in_band
from ..pool import GPUPool
from ..runs.submitted import DETACHED, write_job
from ..store.files import atomic_write, make_private
from ..tasks import Task
from .allocation import Allocation
from .facts import Refused, check_facts, facts_of_this_node

__all__ = ["FILE", "Order", "carry_out"]

FILE = "tasks.pickle"

_OF_RUN = ("name", "seed", "retry_alone", "gang", "by_round", "whole")

log = logging.getLogger("mgpu_nb")


@dataclass(frozen=True)
class Order:
    """What a job is to run.

    Attributes
    ----------
    pool
        Options of its `GPUPool`.
    port
        Port that agents dial.
    tasks, name, seed, retry_alone, gang, by_round, whole
        As `GPUPool.run` takes them.
    """

    pool: dict[str, Any]
    port: int
    tasks: list[Task]
    name: str
    seed: int
    retry_alone: bool
    gang: bool | Literal["devices"]
    by_round: bool | Mapping[str, int]
    whole: bool

    def write(self, folder: Path) -> str:
        """Write it for the job of a run's folder, for this user alone; return the SHA-256 of the file.

        Raises
        ------
        Exception
            What pickling raised, with a note that names the part that does not pickle.
        OSError
            If the folder cannot be written.
        """
        body = dumps_in_band({name: getattr(self, name) for name in self.__dataclass_fields__})
        sent = attachments.Sent().missing(body.sources, definitions())
        facts = facts_of_this_node()
        about = {"path": import_path(), "facts": {**facts, "environment": {}, "slurm": {}}}
        data = pickle.dumps((json.dumps(about), [part for _, part in sent], body.body), 5)
        make_private(folder / DETACHED)
        with atomic_write(folder / DETACHED / FILE) as part:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(fd)  # it is read on another machine
        return hashlib.sha256(data).hexdigest()

    @classmethod
    def read(cls, folder: Path, digest: str) -> Order:
        """Read that of a run's folder, in a process of its own: its ``__main__`` becomes that of the notebook.

        Raises
        ------
        OSError
            If the file is not there.
        ValueError
            If it is not the file of this digest, or of another Python or package: no task was unpickled.
        """
        file = folder / DETACHED / FILE
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"there is no {file} on {socket.gethostname()}: a detached run needs its folder on a file system that "
                "the nodes share; of a run that has ended well it was removed"
            ) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(
                f"{file} is not what was submitted (its SHA-256 is another than the script's), so it is not read: "
                "submit the run again"
            )
        about, sent, body = pickle.loads(data)
        facts = json.loads(about)
        try:
            for note in check_facts(facts["facts"]):
                log.warning("%s", note)
        except Refused as refused:
            raise ValueError(
                f"this job cannot read the tasks, see environment= of Slurm: {refused}"
            ) from None
        sys.path += [place for place in facts["path"] if place not in sys.path]
        main_module.adopt()
        for part in sent:
            attachments.take(part)
        found = cls(**pickle.loads(body))
        main_module.load_all()
        return found


def carry_out(folder: Path, digest: str) -> int:
    """Run what a run's folder holds on the nodes of the job that this process is in; return the exit code.

    SIGTERM, which SLURM sends before the time limit and `Run.cancel` has it send, cancels the run: its records say so.

    Raises
    ------
    OSError, ValueError
        If the order cannot be read, see `Order.read`; if this process is in no job; or if another writes the folder.
    """
    order = Order.read(folder, digest)
    number, nodes = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_JOB_NUM_NODES", "")
    if number.isdecimal() and nodes.isdecimal():  # the script may have been submitted again by hand
        write_job(folder, "slurm", int(number), int(nodes))
    given = {option: getattr(order, option) for option in _OF_RUN}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with GPUPool(**order.pool, cluster=Allocation(port=order.port), rerun="keep", share=True) as pool:
        run = pool.run(order.tasks, folder=folder, rerun="keep", **given)
        try:
            run.wait(progress=False)
        except KeyboardInterrupt:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            log.warning("run %r is cancelled: this job was told to end", run.name)
            run.cancel()
            run.wait(progress=False)
    log.info("run %r: %s", run.name, run.progress)
    if not all(record.ok for record in run.records):
        return 1
    (folder / DETACHED / FILE).unlink(missing_ok=True)
    return 0
