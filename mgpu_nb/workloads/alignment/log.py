"""``run.log`` and ``job_states.json``: what a run says of itself, a line at a time, while it goes on."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ...hardware.slots import devices
from ...listeners import Listener, Started
from ...output import clean
from ...places import device_name, elsewhere
from ...runs.run import Run
from ...store.journal import Journal, read_journal
from ...tasks import Record
from .config import Config
from .counts import count_data, write_counts
from .device_manager import DeviceMemory, memory_lines
from .inputs import resolved
from .names import REFERENCE, TaskName, read_name
from .resume import write_settings
from .settings import Settings
from .states import JobResult, State, job_results, state_of, write_states

__all__ = ["LOG", "Chronicle", "RunLog", "listeners", "write"]

LOG = "run.log"
Level = Literal["INFO", "WARNING", "ERROR"]


class RunLog:
    """A file to which lines are appended, each with the time and by one write.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def line(self, text: str, level: Level = "INFO") -> None:
        """Append a line."""
        at = datetime.now(UTC).isoformat(sep=" ", timespec="milliseconds")
        safe = clean(text.replace("\n", " | "))
        os.write(self._fd, f"{at} {level} {safe}\n".encode(errors="backslashreplace"))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class Chronicle(Listener):
    """Writes `STATES`, `LOG` and the result of each job as soon as it is known.

    Parameters
    ----------
    settings
        Settings of the run, with absolute paths.
    seed
        Its seed.
    folder
        Its folder. Nothing is written before the run is told of.
    """

    def __init__(self, settings: Settings, seed: int, folder: Path) -> None:
        self.settings, self.seed, self.folder = settings, seed, folder
        self._log: RunLog | None = None
        self._jobs: dict[str, JobResult] = {}
        self._good: set[str] = set()
        self._failed: set[str] = set()
        self._states: dict[str, State] = {}
        self._kept: set[str] = set()
        self._memory: dict[str, DeviceMemory] = {}
        self._totals: dict[tuple[str, str], int] = {}

    def started(self, attempt: Started) -> None:
        """Note that a task runs: what was known of it is void."""
        self._begin()
        self._kept.discard(attempt.task)
        if attempt.task in self._good or attempt.task in self._failed:
            self._good.discard(attempt.task)
            self._failed.discard(attempt.task)
            self._update(attempt.task)

    def ended(self, record: Record) -> None:
        """Note what became of a task."""
        log = self._begin()
        name = read_name(record.name)
        if name is None or name.job not in self._jobs:
            return
        self._jobs[name.job].records[record.name] = record
        if record.ok:
            self._good.add(record.name)
        elif record.failed:
            self._failed.add(record.name)
        if record.name not in self._kept:
            self._tell(log, record, name)
        self._remember(record)
        self._update(record.name)

    def close(self) -> None:
        """Sum the run up."""
        if self._log is None:
            return
        log = self._log
        counts: dict[State, int] = {}
        for state in self._states.values():
            counts[state] = counts.get(state, 0) + 1
        log.line("jobs: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
        calls, scored = map(sum, zip(*(result.counts() for result in self._jobs.values()), strict=True))
        log.line(f"reward calls: {calls} for {scored} texts in all")
        self._tell_memory(log)
        for text in utilisation(self.folder):
            log.line(text)
        log.close()
        self._log = None

    def _begin(self) -> RunLog:
        """Begin with what the journal has: it is the truth, whatever an earlier process could still write."""
        if self._log is not None:
            return self._log
        log = self._log = RunLog(self.folder / LOG)
        journal = read_journal(self.folder)
        self._jobs = job_results(self.settings, journal.tasks)
        self._kept = _kept(journal)
        self._good = set(self._kept)
        self._states = _states(self._jobs, self._good)
        write_states(self.folder, self._states)
        how = f", {len(self._kept)} of them are kept" if self._kept else ""
        log.line(
            f"run {self.settings.experiment.name}: {len(self._jobs)} jobs, {len(journal.tasks)} tasks{how}; seed "
            f"{self.seed}"
        )
        for device in devices():
            self._totals[device.host, device.uuid] = device.total or 0
            size = "" if device.total is None else f", {device.total / 1e9:.2f} GB"
            log.line(f"device {device_name(device.label or device.uuid, device.host)}: {device.name}{size}")
        return log

    def _tell(self, log: RunLog, record: Record, name: TaskName) -> None:
        what = f"job {name.job}: task {record.name}"
        for note in record.notes:
            log.line(f"{what}: {note}", "WARNING")
        if record.failed:
            log.line(f"{what} ended {record.status}: {record.error}", "ERROR")
        elif record.status == "skipped":
            log.line(f"{what} is not run: {record.error}", "WARNING")
        elif record.status == "cancelled":
            log.line(f"{what} was cancelled")
        else:
            took = "" if record.seconds is None else f" in {record.seconds:.2f} s"
            where = device_name(record.device, record.host)
            log.line(f"{what} is done{took} on device {where}, slot {record.slot}")

    def _update(self, task: str) -> None:
        """Write the state of a job if it is another, and the results of one that is done."""
        log = self._begin()
        name = read_name(task)
        result = None if name is None else self._jobs.get(name.job)
        if name is None or result is None:
            return
        state = state_of(result.tasks, self._good, self._failed)
        whole = all(each in result.records for each in result.tasks.every)
        if state == "EVAL_COMPLETED" and whole:
            result.write(self.folder)
        before = self._states.get(name.job)
        if before is None or state == before:
            return
        self._states[name.job] = state
        write_states(self.folder, self._states)
        log.line(f"job {name.job}: {before} -> {state}")
        if state in ("DATA_GENERATED", "EVAL_COMPLETED"):
            calls, scored = result.counts()
            log.line(f"job {name.job}: reward calls: {calls} for {scored} texts")
        if state in ("MODEL_TRAINED", "EVAL_COMPLETED"):
            self._tell_memory(log)

    def _remember(self, record: Record) -> None:
        """Keep the peak of memory on a device, as its worker measured it."""
        allocated = record.peak_memory if record.peak_allocated is None else record.peak_allocated
        if allocated is None or record.slot is None:
            return
        short = record.device.replace("cpu:", "CPU ") if record.gpu_id is None else f"GPU {record.gpu_id}"
        name = device_name(short, record.host)
        peaks = (allocated, record.peak_reserved or allocated)
        known = self._memory.get(name)
        if known is not None:
            peaks = (max(peaks[0], known.allocated), max(peaks[1], known.reserved))
        self._memory[name] = DeviceMemory(name, *peaks, self._total(elsewhere(record.host), record.uuid))

    def _total(self, host: str, uuid: str) -> int:
        """Memory of a device in bytes, 0 if unknown. A node may have come after the run began."""
        if (host, uuid) not in self._totals:
            found = {(device.host, device.uuid): device.total or 0 for device in devices()}
            self._totals[host, uuid] = found.get((host, uuid), 0)
        return self._totals[host, uuid]

    def _tell_memory(self, log: RunLog) -> None:
        """Write peaks of memory by device."""
        if self._memory:
            for text in memory_lines(self._memory[name] for name in sorted(self._memory)):
                log.line(text)


def utilisation(folder: Path) -> list[str]:
    """Lines with the utilisation of the devices of a run, and the share of time in which its slots had tasks."""
    run = Run.open(folder)
    lines = []
    if run.idle is not None:
        lines.append(f"GPU utilization: the slots had tasks {1 - run.idle:.0%} of the time")
    try:
        samples = run.samples()
    except FileNotFoundError:  # it was over before the first
        return lines
    of_devices = samples[samples.kind == "device"]
    for (host, device), rows in of_devices.groupby(["host", "device"]):
        known = rows.utilisation.dropna()
        if len(known):
            what = device_name("no GPU, CPU" if str(device).startswith("cpu") else str(device), str(host))
            lines.append(
                f"GPU utilization: {what} {known.mean():.0f} % on average, {known.max():.0f} % at most"
            )
    return lines


def _kept(journal: Journal) -> set[str]:
    """Names of the tasks that have ended ok."""
    return {name for name in journal.tasks if journal.records.get(name, {}).get("status") == "ok"}


def _states(jobs: Mapping[str, JobResult], good: Collection[str]) -> dict[str, State]:
    """State of each job with a model of its own, by `Job.id`."""
    return {job: state_of(result.tasks, good) for job, result in jobs.items() if result.job.algo != REFERENCE}


def write(config: Config, folder: Path) -> None:
    """Write settings, counts of data and the states of the jobs of a run into its folder, before any task begins."""
    settings, journal = resolved(config), read_journal(folder)
    write_settings(folder, settings)
    write_counts(folder, count_data(settings))
    write_states(folder, _states(job_results(settings, journal.tasks), _kept(journal)))


def listeners(config: Config, folder: Path) -> Sequence[Listener]:
    """Who hears of a run: a `Chronicle`."""
    return (Chronicle(resolved(config), config.seed, folder),)
