"""Tasks of a workload shared among ranks that torchrun or srun started.

Each rank takes the costliest task that nobody has begun, as the workers of a pool do, and the values are those that a
pool would give. They travel through the store at which the ranks meet, as JSON and the bytes of the files that a run
folder has for them: machines need not share a folder, and nothing is unpickled. Rank 0 alone writes the run folder.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..context import Worker, set_worker
from ..distributed.environment import RankEnvironment, meet
from ..runs.fingerprint import fingerprint
from ..runs.frame import task_rows
from ..runs.plan import names_of
from ..runs.provenance import provenance
from ..store.files import atomic_write, file_stem
from ..store.journal import RunFolder, export, record_of
from ..store.values import store_value
from ..summary import short
from ..tasks import Record, Task, derive_seed, import_path
from ..value_of import ValueOf
from .base import mark_folder, workload_of
from .outputs import note

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

__all__ = ["RankError", "join_tasks", "rank_device"]

MEETING = 600.0  # seconds that a rank waits for the others to come
BEAT = 1.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one after which a rank is gone
LOOK = 0.05  # seconds between two looks at the store
PART = 4 * 2**20  # bytes that a key of the store holds at most; it takes 8 MiB


class RankError(RuntimeError):
    """Another rank has failed or is gone; the message names it."""


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
    with meet(ranks, folder, MEETING) as store, _Board(store, ranks) as board:
        here = Worker(ranks.rank, device, (device,), None, "", folder=folder)
        if ranks.rank == 0:
            _lead(board, plan, here, workload.name, folder)
        else:
            for number in board.numbers(plan):
                board.hand_in(number, plan.run(number, here))
            board.wait_for("over")


def _lead(board: _Board, plan: _Plan, here: Worker, name: str, folder: Path) -> None:
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
        board.announce(plan, left)

        def take(number: int, handed: str) -> None:
            records[number] = _write(run, folder, json.loads(handed))
            failed = "" if records[number].ok else f"; {plan.names[number]}: {records[number].error}"
            note(f"{name}: {len(records)} of {len(plan.tasks)} tasks done{failed}")

        for number in board.numbers(plan):
            take(number, plan.run(number, here))
            for other, handed in board.handed_in([other for other in left if other not in records]):
                take(other, handed)
        while missing := [number for number in left if number not in records]:
            board.look()
            for other, handed in board.handed_in(missing):
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
    return record


class _Plan:
    """Tasks with their names, seeds and identities; the same on each rank."""

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        waiting = [task.name for task in tasks if task.after or task.devices > 1 or _asks(task)]
        if waiting:
            raise ValueError(
                f"task {waiting[0]!r} waits for others or takes several devices, which ranks do not share: run it "
                "without torchrun or srun"
            )
        self.tasks, self.seed, self.names = tasks, seed, names_of(tasks)
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


def _asks(task: Task) -> bool:
    """Whether the value of another task is an argument."""
    return any(isinstance(value, ValueOf) for value in (*task.args, *task.kwargs.values()))


def _failure(error: Exception) -> dict[str, str]:
    import torch

    memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return {
        "status": "out-of-memory" if memory else "error",
        "error": f"{type(error).__qualname__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
    }


class _Board:
    """What ranks tell each other through their store; a context that a rank is within as long as it works.

    The store is asked often instead of waited at: who waits has it for himself, and could give no sign of life.
    """

    def __init__(self, store: Store, ranks: RankEnvironment) -> None:
        self._store, self._ranks = store, ranks
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="mgpu_nb-rank", daemon=True)
        now = time.monotonic()
        others = range(1, ranks.world) if ranks.rank == 0 else (0,)
        self._seen = dict.fromkeys(others, (-1, now))

    def __enter__(self) -> _Board:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not isinstance(error, RankError):
            text = f"rank {self._ranks.rank} has failed: {type(error).__name__}: {error}"
            with contextlib.suppress(RankError):
                self._fail(text)
        with contextlib.suppress(RankError):
            self._leave(error is not None)
        self._over.set()
        self._thread.join()

    def announce(self, plan: _Plan, left: Sequence[int]) -> None:
        """Tell the others which tasks are to be done, in this order."""
        self._left = list(left)
        self.tell("plan", json.dumps({"digest": plan.digest, "left": self._left}))

    def numbers(self, plan: _Plan) -> Iterator[int]:
        """Numbers of the tasks of this rank, each when the one before has ended."""
        if self._ranks.rank:
            told = json.loads(self.wait_for("plan"))
            if told["digest"] != plan.digest:
                raise ValueError(
                    f"rank {self._ranks.rank} has other tasks than rank 0: give all ranks the same options and, on "
                    "each machine, the same files and the same version of mgpu_nb"
                )
            self._left = told["left"]
        while True:
            self.look()
            place = self._ask("add", "next", 1) - 1
            if place >= len(self._left):
                return
            yield self._left[place]

    def hand_in(self, number: int, handed: str) -> None:
        """Give rank 0 what came of a task."""
        data = handed.encode()
        parts = [data[at : at + PART] for at in range(0, len(data), PART)]
        for place, part in enumerate(parts):
            self.tell(f"part/{number}/{place}", part)
        self.tell(f"parts/{number}", str(len(parts)))

    def handed_in(self, numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
        """What came of those of these tasks that other ranks have handed in; it leaves the store."""
        for number in numbers:
            if not self._is_there(f"parts/{number}"):
                continue
            keys = [f"part/{number}/{n}" for n in range(int(self._ask("get", f"parts/{number}")))]
            data = b"".join(self._ask("get", key) for key in keys)
            for key in keys:
                self._ask("delete_key", key)
            yield number, data.decode()

    def tell(self, key: str, value: str | bytes) -> None:
        """Write a key for all to read."""
        self._ask("set", key, value)

    def wait_for(self, key: str) -> bytes:
        """Value of a key, as soon as it is there."""
        while not self._is_there(key):
            self.look()
            time.sleep(LOOK)
        found: bytes = self._ask("get", key)
        return found

    def wait_for_others(self) -> None:
        """Wait until all other ranks have left."""
        while not self._all_gone():
            self.look()
            time.sleep(LOOK)
        self.look()

    def look(self) -> None:
        """Raise a RankError if a rank has failed, or one that this one needs has given no sign of life."""
        if self._is_there("failed"):
            raise RankError(self._ask("get", "failed").decode())
        now = time.monotonic()
        for rank, (count, since) in self._seen.items():
            beats = self._ask("add", f"beat/{rank}", 0)
            if beats != count or self._is_there(f"gone/{rank}"):
                self._seen[rank] = beats, now
            elif now - since > SILENCE:
                text = (
                    f"rank {rank} has given no sign of life for {SILENCE:g} s: its process or machine is gone"
                )
                self._fail(text)
                raise RankError(text)

    def _live(self) -> None:
        with contextlib.suppress(RankError):
            self._ask("add", f"beat/{self._ranks.rank}", 1)
            while not self._over.wait(BEAT):
                self._ask("add", f"beat/{self._ranks.rank}", 1)

    def _fail(self, text: str) -> None:
        self._ask("compare_set", "failed", "", text)

    def _leave(self, failed: bool) -> None:
        """Tell that this rank leaves; rank 0 may serve the store, and lets the others read there that it has failed."""
        self.tell(f"gone/{self._ranks.rank}", "")
        end = time.monotonic() + (2 * BEAT + 1 if failed and self._ranks.rank == 0 else 0)
        while not self._all_gone() and time.monotonic() < end:
            time.sleep(LOOK)

    def _all_gone(self) -> bool:
        return all(self._is_there(f"gone/{rank}") for rank in range(1, self._ranks.world))

    def _is_there(self, key: str) -> bool:
        return bool(self._ask("check", [key]))

    def _ask(self, what: str, key: str | list[str], *values: Any) -> Any:
        name: Any = [f"mgpu_nb/{each}" for each in key] if isinstance(key, list) else f"mgpu_nb/{key}"
        try:
            return getattr(self._store, what)(name, *values)
        except RuntimeError as error:  # what torch says of connections differs by version
            raise RankError(
                f"rank {self._ranks.rank} has lost the store at which the ranks meet: rank 0, or its torchrun, is gone "
                f"({str(error).splitlines()[0]})"
            ) from error
