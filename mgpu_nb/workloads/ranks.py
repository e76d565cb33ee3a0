"""Tasks of a workload shared among ranks that torchrun or srun started.

Each rank takes the costliest task that nobody has begun, as the workers of a pool do, and the values are those that a
pool would give. They travel through the store at which the ranks meet, as JSON and the bytes of the files that a run
folder has for them: machines need not share a folder, and nothing is unpickled. Rank 0 alone writes the run folder.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import random
import socket
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..context import Worker, set_worker
from ..distributed.environment import RankEnvironment, meet
from ..errors import message_of, out_of_memory
from ..runs.fingerprint import fingerprint
from ..runs.frame import task_rows
from ..runs.plan import names_of, values_asked
from ..runs.provenance import provenance
from ..store.files import atomic_write, file_stem
from ..store.journal import RunFolder, export, record_of
from ..store.values import store_value
from ..summary import short
from ..tasks import Record, Task, derive_seed, import_path
from .base import mark_folder, workload_of
from .board import LOOK, MEETING, Board
from .outputs import note

__all__ = ["join_tasks", "rank_device"]


def rank_device(ranks: RankEnvironment, gpu_ids: Sequence[int] | str | None) -> str:
    """Device of a rank as torch names it, ``cpu`` if `gpu_ids` says so; a GPU becomes the current one.

    Raises
    ------
    ValueError
        If `gpu_ids` names GPUs.
    """
    import torch

    if gpu_ids is not None and gpu_ids != "cpu":
        raise ValueError("gpu_ids: torchrun and srun say which GPUs a rank has; leave it out")
    device = "cpu" if gpu_ids == "cpu" else ranks.device
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    return device


def join_tasks(config: Any, ranks: RankEnvironment, folder: Path) -> None:
    """Work as a rank on the tasks of a config; return when all have ended and their records are in `folder`.

    A task that fails ends in a record, as in a pool. What `folder` of rank 0 holds already is kept.

    Parameters
    ----------
    config
        Options of a workload, the same for all ranks.
    ranks
        This rank.
    folder
        Folder of the run, which rank 0 writes; those of srun share it.

    Raises
    ------
    ValueError, OSError
        If an option is invalid or the folder cannot be used.
    RankError
        If another rank has failed or is gone.
    """
    workload = workload_of(config)
    if workload.tasks is None:
        raise ValueError(f"{workload.name} is a gang and has no tasks to share")
    if getattr(config, "slots", None) is not None:
        raise ValueError("slots: torchrun and srun say how many ranks share the tasks; leave it out")
    device = rank_device(ranks, getattr(config, "gpu_ids", None))
    plan = _Plan(workload.tasks(config, ranks.world), getattr(config, "seed", 0))
    if ranks.rank == 0:
        mark_folder(workload, folder)
    with meet(ranks, folder, MEETING) as store, Board(store, ranks) as board:
        here = Worker(ranks.rank, device, (device,), None, "", folder=folder)
        if ranks.rank == 0:
            _lead(board, plan, here, workload.name, folder)
        else:
            for number in board.numbers(plan.digest):
                board.hand_in(number, plan.run(number, here))
            board.wait_for("over")


def _lead(board: Board, plan: _Plan, here: Worker, name: str, folder: Path) -> None:
    """Work as rank 0, which writes what all ranks hand in."""
    arguments = {
        each: {key: short(value) for key, value in task.arguments.items()}
        for each, task in zip(plan.names, plan.tasks, strict=True)
    }
    kinds = [task.kind for task in plan.tasks]
    of_tasks = list(zip(plan.names, kinds, plan.prints, strict=True))
    made = provenance(())
    run = RunFolder(folder, name, plan.seed, of_tasks, whole=True, arguments=arguments, made=made)
    try:
        records = {}
        for number, each in enumerate(plan.names):
            record, _ = run.kept(each, plan.prints[number])
            if record is not None:
                records[number] = dataclasses.replace(record, index=number)
        left = [number for number in plan.order if number not in records]
        board.announce(plan.digest, left)

        def take(number: int, handed: str) -> None:
            records[number] = _write(run, folder, json.loads(handed))
            failed = "" if records[number].ok else f"; {plan.names[number]}: {records[number].error}"
            note(f"{name}: {len(records)} of {len(plan.tasks)} tasks done{failed}")

        for number in board.numbers(plan.digest):
            take(number, plan.run(number, here))
            for other, handed in board.handed_in():
                take(other, handed)
        while len(records) < len(plan.tasks):
            board.look()
            for other, handed in board.handed_in():
                take(other, handed)
            time.sleep(LOOK)
    finally:
        run.close()
    ordered = [records[number] for number in sorted(records)]
    export(folder, ordered, task_rows(plan.names, ordered))
    board.tell("over", "")
    board.wait_for_others()


def _write(run: RunFolder, folder: Path, handed: dict[str, Any]) -> Record:
    """Write what a rank has handed in; return the record."""
    for name, text in handed["files"].items():
        path = folder / "values" / Path(name).name
        with atomic_write(path) as part:
            part.write_bytes(base64.b64decode(text))
    record = record_of({**handed["record"], "value": json.loads(handed["value"] or "null")}, folder)
    run.append(record, handed["value"])
    run.sync()
    return record


class _Plan:
    """Tasks with their names, seeds and identities; the same on each rank."""

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        self.tasks, self.seed, self.names = tasks, seed, names_of(tasks)
        named = zip(self.names, tasks, strict=True)
        waiting = [name for name, t in named if t.after or t.devices > 1 or values_asked(name, t)]
        if waiting:
            raise ValueError(
                f"task {waiting[0]!r} waits for others or takes several devices, which ranks do not share: run it "
                "without torchrun or srun"
            )
        self.seeds = [derive_seed(seed, n) if t.seed is None else t.seed for n, t in enumerate(tasks)]
        self.prints = [fingerprint(task, own) for task, own in zip(tasks, self.seeds, strict=True)]
        self.order = sorted(range(len(tasks)), key=lambda number: -(tasks[number].cost or 0.0))

    @property
    def digest(self) -> str:
        """Identity of all tasks."""
        return hashlib.blake2b(" ".join(self.prints).encode(), digest_size=16).hexdigest()

    def run(self, number: int, here: Worker) -> str:
        """What came of a task, as a rank hands it in: JSON with its record, its value and the files of that."""
        task, name, seed = self.tasks[number], self.names[number], self.seeds[number]
        metrics: dict[str, Any] = {}
        known: dict[str, Any] = {
            "name": name,
            "index": number,
            "kind": task.kind,
            "arguments": {key: short(value) for key, value in task.arguments.items()},
            "fingerprint": self.prints[number],
            "slot": here.slot,
            "device": here.device,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        value = ""
        files: dict[str, str] = {}
        for attempt in range(1, task.retries + 2):
            worker = dataclasses.replace(
                here, task=name, index=number, seed=seed, attempt=attempt, _send=metrics.update
            )
            started, clock = time.time(), time.perf_counter()
            known["attempt"], known["started"] = attempt, started
            try:
                value, files = _value_of(task, seed, worker, file_stem(number, name))
                known["status"] = "ok"
            except Exception as error:  # whatever the function raises is what became of the task
                known |= _failure(error)
            known["seconds"] = time.perf_counter() - clock
            if known["status"] == "ok":
                known |= {"error": "", "traceback": ""}
                break
        known |= {"finished": known["started"] + known["seconds"], "metrics": metrics}
        return json.dumps({"record": known, "value": value, "files": files}, default=str)


def _value_of(task: Task, seed: int, worker: Worker, stem: str) -> tuple[str, dict[str, str]]:
    """JSON text of a task's value, and the files that belong to it, by name in base64."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    set_worker(worker)
    try:
        fn = import_path(task.fn) if isinstance(task.fn, str) else task.fn
        value = fn(*task.args, **task.kwargs)
    finally:
        set_worker(None)
    with tempfile.TemporaryDirectory(prefix="mgpu_nb-rank-") as folder:
        text = store_value(Path(folder), stem, value)
        found = {path.name: path.read_bytes() for path in Path(folder).glob("values/*")}
    return text, {name: base64.b64encode(data).decode() for name, data in found.items()}


def _failure(error: Exception) -> dict[str, str]:
    return {
        "status": "out-of-memory" if out_of_memory(error) else "error",
        "error": f"{type(error).__qualname__}: {message_of(error)}",
        "traceback": "".join(traceback.format_exception(error)),
    }
