"""``mgpu-nb train ...``, which is also what torchrun and srun start: ``python -m mgpu_nb.workloads.training ...``."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ...distributed.environment import RankEnvironment, group
from .config import CONFIGS, Config, named

if TYPE_CHECKING:
    from ...distributed.slurm import BatchJob
    from ...runs.run import Run

__all__ = ["batch_job", "command"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What to do; every option of the named config can be overridden beside it."""

    config: Annotated[str, tyro.conf.arg(help=f"One of {', '.join(CONFIGS)}.")] = "multi_gpu"
    backend: Annotated[str | None, tyro.conf.arg(help="nccl or gloo; by default what the devices have.")] = (
        None
    )
    check: Annotated[
        bool, tyro.conf.arg(help="Check the set-up with one rank, or world_size ranks, and train nothing.")
    ] = False
    check_all: Annotated[bool, tyro.conf.arg(help="The same with a rank on every device.")] = False


def _parse(arguments: list[str], prog: str) -> tuple[Choice, Config]:
    """Read the options.

    Raises
    ------
    ValueError
        Where one cannot be.
    SystemExit
        After ``--help``, and for what is no option.
    """
    choice, rest = tyro.cli(Choice, args=arguments, return_unknown_args=True, add_help=False)
    config = tyro.cli(
        tyro.conf.OmitArgPrefixes[Config],
        args=rest,
        default=named(choice.config),
        prog=prog,
        description=f"{Config.__doc__}\n\nBeside these: --config {'|'.join(CONFIGS)}, --backend, --check, --check_all.",
        use_underscores=True,
    )
    if choice.backend is not None:
        config = dataclasses.replace(config, distributed_backend=choice.backend)
    return choice, config


def command(arguments: list[str], prog: str = "mgpu-nb train") -> int:
    """Train, or be a rank of a training where torchrun or srun started this process; return the exit code."""
    choice, config = _parse(arguments, prog)
    ranks = RankEnvironment.of()
    if choice.check or choice.check_all:
        return _check(config, choice.check_all) if ranks is None else _check_as(ranks, config)
    if ranks is not None:
        return _train_as(ranks, config)
    from .start import start

    return _see_to_its_end(start(config))


def _see_to_its_end(run: Run) -> int:
    """Show what rank 0 writes until the training has ended; an interrupt cancels it."""
    from .report import collect

    try:
        _follow(run)
    except KeyboardInterrupt:
        run.cancel()
        run.wait(progress=False)
    if not all(record.ok for record in run.records):
        for record in run.records:
            print(f"{record.name}: {record.status}: {record.error}", file=sys.stderr)
    try:
        report = collect(run)
    except ValueError as error:
        print(f"mgpu-nb train: {error}\nlogs of the ranks are in {run.folder / 'logs'}", file=sys.stderr)
        return 1
    print(report)
    for path in report.files:
        print(path)
    return 0


def _follow(run: Run) -> None:
    file, seen = run.log_file(run.tasks[0]), 0
    while True:
        try:
            run.wait(0.5, progress=False)
            ended = True
        except TimeoutError:
            ended = False
        if file.exists():
            with file.open("rb") as log:
                log.seek(seen)
                new = log.read()
            seen += len(new)
            print(new.decode(errors="backslashreplace"), end="", flush=True)
        if ended:
            return


def _train_as(ranks: RankEnvironment, config: Config) -> int:
    """Be a rank of torchrun or srun."""
    from .rank import train
    from .report import Report
    from .start import check_folder

    if config.resume and config.output_dir is None:
        raise ValueError("resume: say in which output_dir the checkpoint is")
    job = ranks.job or os.environ.get("TORCHELASTIC_RUN_ID", "none")
    folder = Path(config.output_dir or Path("runs") / f"train-{job}").absolute()
    check_folder(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    device, backend = _device(ranks, config)
    with group(ranks, backend, folder, config.timeout):
        train(config, folder, device)
    if ranks.rank == 0:
        report = Report.open(folder)
        print(report)
        for path in report.files:
            print(path)
    return 0


def _device(ranks: RankEnvironment, config: Config) -> tuple[str, str]:
    """Return device and backend of a rank of torchrun or srun."""
    import torch

    if config.gpu_ids is not None and config.gpu_ids != "cpu":
        raise ValueError("gpu_ids: torchrun and srun say which GPUs a rank has; leave it out")
    device = "cpu" if config.gpu_ids == "cpu" else ranks.device
    kind = device.partition(":")[0]
    config.check_world(ranks.world, kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    return device, config.distributed_backend or ("nccl" if kind == "cuda" else "gloo")


def _check_as(ranks: RankEnvironment, config: Config) -> int:
    """Check the set-up as a rank of torchrun or srun: the one that is there, over all machines."""
    from ...distributed.check import check_rank, summary

    device, backend = _device(ranks, config)
    folder = Path(config.output_dir or ".").absolute()
    with group(ranks, backend, folder, min(config.timeout, 60.0)):
        found = check_rank(device)
    print(f"Process {ranks.rank}/{ranks.world} initialized on {found['device']}")
    if ranks.rank == 0:
        print(summary(found, ranks.world))
    print(f"Rank {ranks.rank}: Test completed successfully", flush=True)
    return 0


def _check(config: Config, every: bool) -> int:
    """Run the check of the set-up, and print what it found."""
    from ...distributed.check import check_here, tell
    from ...distributed.launch import launch
    from ...hardware.slots import devices, resolve_slots

    world = len(resolve_slots(config.gpu_ids)) if every else config.world_size or 1
    ids = config.gpu_ids[:world] if isinstance(config.gpu_ids, tuple) else config.gpu_ids
    backend = config.distributed_backend
    with tempfile.TemporaryDirectory(prefix="mgpu_nb-check-") as folder:
        run = launch(
            check_here, nprocs=world, gpu_ids=ids, backend=backend, timeout=60, name="check", folder=folder
        )
        try:
            found = run.results(120)
        except Exception as error:
            cause = next((r for r in run.records if r.status not in ("ok", "cancelled")), None)
            print(f"mgpu-nb train --check: {cause.name if cause else ''}: {error}", file=sys.stderr)
            return 1
    print(tell(found, sum(device.kind == "cuda" for device in devices())))
    return 0


def batch_job(job: BatchJob, arguments: list[str]) -> tuple[str, Path]:
    """Return the batch script of a training, and the folder for its files, which must be there when it starts.

    The script goes on from the checkpoint where it finds one: the same script, submitted again, continues.

    Parameters
    ----------
    job
        What to ask the cluster for; as many ranks train.
    arguments
        Options of ``mgpu-nb train``.

    Raises
    ------
    ValueError
        Where an option cannot be.
    """
    from ...distributed.slurm import render_script

    choice, config = _parse(arguments, "mgpu-nb slurm train")
    if choice.check or choice.check_all:
        raise ValueError("slurm train trains: srun python -m mgpu_nb.workloads.training --check checks")
    if config.gpu_ids is not None and config.gpu_ids != "cpu":
        raise ValueError("gpu_ids: SLURM says which GPUs a rank has; leave it out")
    config.check_world(job.world, "cuda" if job.gpus_per_node else "cpu")
    folder = Path(config.output_dir or "train_results").absolute()
    options = [*arguments, *([] if config.output_dir else ["--output_dir", str(folder)])]
    options += [] if config.resume or {"--no-resume", "--no_resume"} & set(arguments) else ["--resume"]
    if job.world == 1 and config.world_size is None:
        options += ["--world_size", "1"]  # one rank, however many GPUs
    return render_script(job, "mgpu_nb.workloads.training", options, folder), folder
