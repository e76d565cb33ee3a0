"""``mgpu-nb <workload> ...``: what the notebooks do, without a notebook."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from .distributed.slurm import BatchJob, SubmitError, submit, write_script
from .pool import GPUPool
from .runs.run import Run
from .tasks import Task
from .workloads import protein, tracin

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = {
        "devices": _devices,
        "protein": _protein,
        "protein-train": _protein_train,
        "tracin": _tracin,
        "tracin-batch": _tracin_batch,
        "tracin-train": _tracin_train,
        "train": _train_emulator,
        "slurm": _slurm,
    }
    if not arguments or arguments[0] not in commands:
        print(f"usage: mgpu-nb {{{','.join(commands)}}} ... (--help after a command tells its options)")
        return 0 if arguments[:1] in ([], ["-h"], ["--help"]) else 2
    try:
        return commands[arguments[0]](arguments[1:])
    except (ValueError, TypeError, OSError, SubmitError) as error:
        print(f"mgpu-nb {arguments[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\nmgpu-nb {arguments[0]}: interrupted. {interrupt}", file=sys.stderr)
        return 130


def _devices(arguments: list[str]) -> int:
    from .hardware.slots import devices

    print(devices())
    return 0


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which experiments; every option of the preset can be overridden beside it."""

    preset: Annotated[str | None, tyro.conf.arg(help=f"One of {', '.join(protein.PRESETS)}.")] = None
    run_all: Annotated[bool, tyro.conf.arg(help="Run all presets, one after the other.")] = False


def _protein(arguments: list[str]) -> int:
    choice, rest = tyro.cli(Choice, args=arguments, return_unknown_args=True, add_help=False)
    presets = list(protein.PRESETS) if choice.run_all else [choice.preset]
    codes = []
    for name in presets:
        default = protein.preset(name) if name else protein.Config()
        config = tyro.cli(
            tyro.conf.OmitArgPrefixes[protein.Config],
            args=rest,
            default=default,
            prog="mgpu-nb protein",
            use_underscores=True,
        )
        if name and config.gpu_ids is not None and config.slots == default.slots:
            config = dataclasses.replace(
                config, slots=None
            )  # the preset's number gives way to the GPUs named
        codes.append(_run_protein(config, name or "protein"))
    return max(codes)


def _run_protein(config: Any, name: str) -> int:
    tasks = protein.tasks(config)
    folder = (
        Path(config.output_dir) / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}" if config.output_dir else None
    )
    with GPUPool(config.gpu_ids, config.slots, isolation="task") as pool:
        print(f"{name}: {len(tasks)} experiments on {pool!r}")
        run = _run(pool, tasks, name, folder, config.seed)
    report = protein.collect(run)
    print(report)
    for path in report.save():
        print(path)
    return 0 if all(record.ok for record in run.records) else 1


def _run(pool: GPUPool, tasks: list[Task], name: str, folder: Path | None, seed: int) -> Run:
    """Run tasks to their end; an interrupt cancels what is left."""
    run: Run = pool.run(tasks, name=name, folder=folder, seed=seed)
    try:
        run.wait()
    except KeyboardInterrupt:
        run.cancel()
        run.wait()
    return run


def _protein_train(arguments: list[str]) -> int:
    config = tyro.cli(protein.TrainConfig, args=arguments, prog="mgpu-nb protein-train", use_underscores=True)
    print(protein.train(config))
    return 0


def _tracin(arguments: list[str]) -> int:
    config = tyro.cli(tracin.Config, args=arguments, prog="mgpu-nb tracin", use_underscores=True)
    tasks = tracin.tasks(config)
    folder = Path(config.output_dir).expanduser() if config.output_dir else None
    with GPUPool(config.gpu_ids, config.slots) as pool:
        print(f"tracin: {len(tasks)} tasks on {pool!r}\n{tracin.sharding_of(config).reason}")
        run = _run(pool, tasks, "tracin", folder, config.seed)
    failed = [record for record in run.records if not record.ok]
    for record in failed:
        print(f"{record.name}: {record.status}: {record.error}", file=sys.stderr)
    if failed:
        print(f"the same command with --output_dir {run.folder} does what is missing", file=sys.stderr)
        return 1
    report = tracin.collect(run, config)
    print(report)
    for path in report.save():
        print(path)
    return 0


def _tracin_batch(arguments: list[str]) -> int:
    config = tyro.cli(tracin.BatchConfig, args=arguments, prog="mgpu-nb tracin-batch", use_underscores=True)
    tasks = tracin.batch_tasks(config)
    folder = Path(config.output_dir).expanduser() if config.output_dir else None
    if (
        folder is not None
    ):  # with skip_existing a run of its own, of what is missing; else the same one, resumed
        folder /= f"run-{time.strftime('%Y%m%d-%H%M%S')}" if config.skip_existing else "run"
    run = None
    if tasks:
        with GPUPool(config.gpu_ids, config.slots) as pool:
            print(f"tracin-batch: {len(tasks)} tasks on {pool!r}")
            run = _run(pool, tasks, "tracin-batch", folder, config.seed)
    summary = tracin.summarise(run, config)
    counts = {key: value for key, value in summary.items() if key != "results"}
    print(", ".join(f"{value} {key.replace('_', ' ')}" for key, value in counts.items()))
    for entry in summary["results"]:
        if entry["status"] == "failed_tracin":
            print(f"triple {entry['index']}: {entry['error']}", file=sys.stderr)
    place = Path(config.output_dir).expanduser() if config.output_dir else run.folder if run else Path()
    print(place / "batch_tracin_summary.json")
    return 1 if summary["failed_tracin"] else 0


def _tracin_train(arguments: list[str]) -> int:
    config = tyro.cli(tracin.TrainConfig, args=arguments, prog="mgpu-nb tracin-train", use_underscores=True)
    with GPUPool(slots=1) as pool:
        run = _run(pool, [tracin.training_task(config)], "tracin-train", Path(config.output_dir), config.seed)
    record = run.records[0]
    if not record.ok:
        print(f"mgpu-nb tracin-train: {record.status}: {record.error}", file=sys.stderr)
        return 1
    value = record.value
    ranks = f", filtered MRR {value['mrr']:.3f}, Hits@10 {value['hits_at_10']:.3f}" if "mrr" in value else ""
    print(f"loss {value['loss'][-1]:.4f} after {config.epochs} epochs in {value['seconds']:.1f} s{ranks}")
    for file in value["checkpoints"]:
        print(run.folder / file)
    return 0


def _train_emulator(arguments: list[str]) -> int:
    from .workloads.training.command import command

    return command(arguments)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Where the script goes, and whether it is submitted."""

    script: str = "train.sbatch"
    """File for the script."""
    submit: bool = False
    """Submit it."""
    wait: bool = False
    """Submit it, and wait until the job has ended."""


def _slurm(arguments: list[str]) -> int:
    from .workloads.training.command import batch_job

    if arguments[:1] != ["train"]:
        print("usage: mgpu-nb slurm train [options of the job] [options of mgpu-nb train]", file=sys.stderr)
        return 0 if arguments[:1] in ([], ["-h"], ["--help"]) else 2
    if "--help" in arguments or "-h" in arguments:
        tyro.cli(_Script, args=["--help"], prog="mgpu-nb slurm train", use_underscores=True)
    batch, rest = tyro.cli(Batch, args=arguments[1:], return_unknown_args=True, add_help=False)
    job, rest = tyro.cli(
        BatchJob, args=rest, default=BatchJob(job_name="train"), return_unknown_args=True, add_help=False
    )
    text, results = batch_job(job, rest)
    results.mkdir(parents=True, exist_ok=True)
    script = write_script(text, batch.script)
    print(script)
    if batch.submit or batch.wait:
        print(f"job {submit(script, wait=batch.wait)}")
    else:
        print(f"submit it with: sbatch {script}")
    return 0


@dataclasses.dataclass(frozen=True)
class _Script:
    """Write a batch script that trains on a SLURM cluster; all options of mgpu-nb train can stand beside these."""

    batch: tyro.conf.OmitArgPrefixes[Batch]
    job: tyro.conf.OmitArgPrefixes[BatchJob]
