"""A workload from the command line: run, report; as a rank of torchrun or srun, or as a batch job."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..distributed.environment import RankEnvironment
from ..engines.base import Cluster
from ..errors import warn_user
from ..hardware.slots import devices, with_defaults
from ..pool import GPUPool
from ..runs.run import Run
from .arguments import UsageError, option_names, speaking, spoken
from .base import Workload, command_words, output_of, pool_options, start, taskless_run, write_config
from .inputs import LogLevel
from .outputs import note, say, silence
from .request import Request, known_options, parse

if TYPE_CHECKING:
    from ..distributed.slurm import BatchJob

__all__ = ["INTERRUPTED", "batch_job", "execute", "logging_at", "parse", "run_module"]

INTERRUPTED = 130  # exit code after Ctrl-C
MOST_LISTED = 10  # files of a folder that are listed each


def execute(workload: Workload, arguments: Sequence[str], prog: str) -> int:
    """Run a workload to its end and print its report; return the exit code.

    A process that torchrun or srun started is a rank of it.

    Returns
    -------
    int
        0; 1 if something failed; 130 after an interrupt, when the command that goes on has been printed.

    Raises
    ------
    ValueError, TypeError, OSError
        If an option is invalid, or files are missing.
    """
    request = parse(workload, arguments, prog)
    with logging_at(request.log_level):
        return _execute(request, arguments, prog)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(self.format(record))


@contextlib.contextmanager
def logging_at(level: LogLevel) -> Iterator[None]:
    """Show log records of a level and above: of our own loggers, and those of INFO and above of all others."""
    root, ours = logging.getLogger(), logging.getLogger("mgpu_nb")
    before = root.level, ours.level
    notes = _Notes()
    notes.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    root.addHandler(notes)
    root.setLevel("INFO" if level == "DEBUG" else level)
    ours.setLevel(level)
    try:
        yield
    finally:
        root.removeHandler(notes)
        root.setLevel(before[0])
        ours.setLevel(before[1])


def _execute(request: Request, arguments: Sequence[str], prog: str) -> int:
    workload, configs, resume, pick, log_level, cluster, _ = request
    shows_more = log_level in ("DEBUG", "INFO")
    ranks = _ranks(workload)
    if cluster is not None and ranks is not None and ranks.world == 1:  # within a job, say of a notebook
        ranks = None
    if ranks is not None and workload.tasks is not None and len(configs) > 1:
        raise UsageError("--run_all: ranks share the tasks of one preset; start them for each")
    codes = []
    for preset, config in configs.items():
        if ranks is not None:
            if pick == "free" or cluster is not None:
                option = "--cluster" if cluster is not None else "--pick free"
                raise UsageError(f"{option}: torchrun and srun say which devices a rank has; leave it out")
            with speaking(known_options(workload)):
                codes.append(_join(workload, config, resume, ranks))
            continue
        with speaking(known_options(workload)), contextlib.ExitStack() as stack:
            pool = None
            if pick == "free":
                pool = _freest_pool(workload, config, shows_more)
                stack.callback(pool.shutdown, wait=False)
            elif cluster is not None:
                pool, config = _pool_of_cluster(workload, config, cluster, shows_more)
                stack.callback(pool.shutdown, wait=False)
            run = start(workload, config, pool, resume=resume, forward_logs=shows_more)
        tasks = f"{len(run.tasks)} task{'s' * (len(run.tasks) != 1)}"
        note(f"{workload.name}: {tasks}; the run's folder is {run.folder}")
        again = shlex.join([*prog.split(), *_going_on(arguments, preset, run.folder)])
        codes.append(_wait_and_report(workload, run, again))
        if codes[-1] == INTERRUPTED:
            left = ", ".join(str(name) for name in list(configs)[len(codes) :])
            note(f"{workload.name}: of --run_all these presets have not begun: {left}" if left else "")
            break
    return max(codes)


def _ranks(workload: Workload) -> RankEnvironment | None:
    """Which rank this process is; None for one that stands alone.

    Raises
    ------
    UsageError
        If it is one of several, of a workload whose tasks ranks cannot share.
    """
    if workload.join is not None:
        return RankEnvironment.from_env()
    try:
        ranks = RankEnvironment.from_env()
    except ValueError:  # RANK may be anybody's variable
        return None
    if ranks is not None and ranks.world > 1:
        raise UsageError(
            f"{workload.name} is one process, whose pool has workers on all GPUs: start it once, without torchrun or "
            f"srun, which started {ranks.world}; mgpu-nb slurm {' '.join(command_words(workload))} writes a job"
        )
    return None


def run_module(workload: Workload) -> int:
    """Run the command line of ``python -m <module>``, which torchrun and srun start; return the exit code."""
    from torch.distributed.elastic.multiprocessing.errors import record

    @record  # torchrun shows the traceback of the rank that failed first
    def run() -> int:
        try:
            return execute(workload, sys.argv[1:], f"python -m {workload.module}")
        except (ValueError, TypeError, OSError) as error:
            if "RANK" in os.environ or "SLURM_PROCID" in os.environ:  # somebody else shows it, with its rank
                raise
            print(f"{workload.module}: {error}", file=sys.stderr)
            return 2

    return run() or 0


def _freest_pool(workload: Workload, config: Any, forward_logs: bool) -> GPUPool:
    """Pool for a run, on the freest GPUs."""
    own = {"forward_logs": forward_logs, **pool_options(workload, config)}
    options = {**own, "pick": "free", "share": True, "rerun": "keep"}
    if workload.launch is not None:
        options["slots"] = config.world_size or (None if devices().has_gpu else 1)
    return GPUPool(**options)


def _pool_of_cluster(
    workload: Workload, config: Any, cluster: Cluster, forward_logs: bool
) -> tuple[GPUPool, Any]:
    """Pool for a run, on other machines; and the config, which does not choose devices any more."""
    gpu_ids, per_node = getattr(config, "gpu_ids", None), getattr(cluster, "gpus_per_node", 0)
    if gpu_ids is not None and per_node:
        raise UsageError(f"--gpu_ids and --gpus_per_node {per_node} both choose devices: give one of the two")
    options = {"forward_logs": forward_logs, **pool_options(workload, config), "share": True, "rerun": "keep"}
    if workload.launch is not None and config.world_size is not None:
        nodes = getattr(cluster, "nodes", None) or getattr(cluster, "here", 0)
        if not nodes or config.world_size % nodes:
            raise UsageError(
                f"--world_size {config.world_size}: give a multiple of --nodes, which has as many ranks each"
            )
        options["slots"] = config.world_size // nodes
    pool = GPUPool(**options, cluster=cluster)
    return pool, config if gpu_ids is None else dataclasses.replace(config, gpu_ids=None)


def _going_on(arguments: Sequence[str], preset: str | None, folder: Path) -> list[str]:
    """Arguments that go on with a run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output_dir", "--output-dir")
    for name in ("run_all", "resume", "no_resume"):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", action="store_true")
    found, rest = parser.parse_known_args(list(arguments))
    if found.run_all and found.output_dir is not None:  # below it each preset has its folder
        return [*rest, "--run_all", "--output_dir", str(Path(found.output_dir).absolute())]
    chosen = ["--preset", str(preset)] if found.run_all else []
    return [*rest, *chosen, "--output_dir", str(folder)]


def _wait_and_report(workload: Workload, run: Run, again: str) -> int:
    """Wait for a run, print its report and the paths of its files; an interrupt cancels it."""
    kept = "" if workload.temporary else f"To go on: {again}"
    try:
        if workload.launch is not None and not workload.temporary:
            _follow(run)
            run.wait(progress=False)
        else:
            run.wait()
    except KeyboardInterrupt:
        run.cancel()
        with contextlib.suppress(KeyboardInterrupt):  # the end of this process ends what still runs
            run.wait(progress=False)
        _tell_what_is_done(workload, run)
        note(kept)
        return INTERRUPTED
    return _show(workload, run, kept)


def _show(workload: Workload, run: Run, kept: str = "") -> int:
    """Print the report of a run that has ended and the paths of its files; return the exit code."""
    failed = [record for record in run.records if record.failed]
    for record in failed:
        note(f"{record.name}: {record.status}: {record.error}")
    try:
        report = workload.collect(run)
    except ValueError as error:
        note(f"{workload.name}: {spoken(str(error), known_options(workload))}")
        note(kept)
        return 1
    say(report)
    for line in _listed(report.save()):
        say(line)
    missing = sum(not record.ok for record in run.records)
    if missing:
        what = f"{len(failed)} of {len(run.tasks)} tasks failed; logs are in {run.folder / 'logs'}"
        others = f"{missing - len(failed)} of {len(run.tasks)} tasks were cancelled or skipped"
        note(f"{workload.name}: " + ", ".join([what] * bool(failed) + [others] * (missing > len(failed))))
        note(kept)
    return 1 if missing else 0


def _listed(paths: Sequence[Path]) -> list[str]:
    """Paths for display; of many files in one folder that folder, and their number."""
    counts = Counter(path.parent for path in paths)
    lines = [
        str(path) if counts[path.parent] <= MOST_LISTED else f"{path.parent}: {counts[path.parent]:,} files"
        for path in paths
    ]
    return list(dict.fromkeys(lines))


def _tell_what_is_done(workload: Workload, run: Run) -> None:
    """Print what came of a run that was interrupted: its report if it has one without the rest."""
    done, failed = (sum(getattr(record, kind) for record in run.records) for kind in ("ok", "failed"))
    text = f"{done} of {len(run.tasks)} task{'s' * (len(run.tasks) != 1)} done" + f", {failed} failed" * bool(
        failed
    )
    note(f"\n{workload.name}: interrupted, {text}")
    try:
        report = workload.collect(run)
    except (ValueError, OSError) as error:
        if workload.launch is not None and not workload.temporary:  # ranks leave more than their records
            note(f"{workload.name}: {spoken(str(error), known_options(workload))}")
        return
    if done:
        say(report)


def _follow(run: Run) -> None:
    """Print the log of the first task until it has ended; to nowhere once its reader has gone."""
    try:
        run.logs(run.tasks[0], follow=True)
    except BrokenPipeError:
        silence(sys.stdout)


def _join(workload: Workload, config: Any, resume: bool, ranks: RankEnvironment) -> int:
    """Work as a rank of torchrun or srun; rank 0 prints the report."""
    # MKL reads these at its first call: a rank adds up in the order of a pool's workers.
    os.environ.update(with_defaults(os.environ))
    assert workload.join is not None  # noqa: S101 (the caller looked)
    if not resume:
        raise ValueError("--no_resume: ranks cannot agree on a new folder; give another output_dir")
    job = ranks.job or os.environ.get("TORCHELASTIC_RUN_ID", "none")
    default = Path() if workload.temporary else Path("runs") / f"{workload.name}-{job}"
    folder = Path(output_of(workload, config) or default).expanduser().absolute()
    listeners = () if ranks.rank else workload.listeners(config, folder)
    workload.join(config, ranks, folder)
    if ranks.rank or workload.temporary:
        return 0
    write_config(folder, workload, config)
    run = taskless_run(workload.name, folder) if workload.tasks is None else Run.open(folder)
    if listeners:
        run.listen(*listeners)
    return _show(workload, run)


def batch_job(job: BatchJob, workload: Workload, arguments: Sequence[str]) -> tuple[str, Path]:
    """Batch script of a workload, and the folder of its run, which must exist when the job starts.

    The script resumes the run that it finds there: the same script, submitted again, goes on.

    Parameters
    ----------
    job
        What to ask the cluster for. A gang has as many ranks. Tasks have one process on the first machine, with a pool
        of workers on all; those that ranks can share are shared if several machines, several processes on one or
        torchrun are asked for.
    workload
        What to run.
    arguments
        Its options.

    Raises
    ------
    ValueError
        If an option is invalid, or the workload cannot run on what is asked for.
    """
    from ..distributed.slurm import render_commands, render_script

    prog = f"mgpu-nb slurm {' '.join(command_words(workload))}"
    workload, configs, resume, _, _, cluster, words = parse(
        workload, arguments, prog, option_names(type(job))
    )
    if len(configs) != 1:
        raise ValueError("--run_all: write a job for each preset")
    if cluster is not None:
        raise ValueError("--cluster: the job itself runs on the nodes that it is given; leave it out")
    with speaking([*known_options(workload), *option_names(type(job))]):
        (config,) = configs.values()
        output = output_of(workload, config)
        folder = Path(output or f"{workload.name}_results").expanduser().absolute()
        options = words if output else [*words, "--output_dir", str(folder)]
        if getattr(config, "gpu_ids", None) not in (None, "cpu"):
            raise ValueError("gpu_ids: SLURM says which GPUs a job has; leave it out")
        over_nodes = job.nodes > 1 and workload.tasks is not None and workload.join is None
        several = job.nodes > 1 or job.launcher != "srun" or (job.ranks_per_node or 1) > 1
        if workload.tasks is not None and not (several and workload.join is not None):
            if job.launcher != "srun" or (job.ranks_per_node or 1) > 1:
                raise ValueError(f"{workload.name} is one process: give ranks_per_node=1 and launcher='srun'")
            job = dataclasses.replace(job, ranks_per_node=1)  # a pool in it takes all GPUs
        elif workload.tasks is not None and getattr(config, "slots", None) is not None:
            raise ValueError("slots: ranks_per_node says how many ranks share the tasks; leave it out")
        elif not resume:
            raise ValueError("--no_resume: ranks cannot agree on a new folder; give another output_dir")
        if workload.launch is not None:
            config.check_world(job.world, "cuda" if job.gpus_per_node else "cpu")
            if job.world == 1 and config.world_size is None:
                options += ["--world_size", "1"]  # one rank, however many GPUs
        if not job.asks_for_gpus and getattr(config, "gpu_ids", None) != "cpu":
            warn_user("the job asks for no GPU: give gpus_per_node, or gpu_ids='cpu' for a job on CPUs")
        command = command_words(workload) if workload.module == "mgpu_nb" else []
        if over_nodes:
            words = [workload.module, *command, *options, "--cluster", "allocation"]
            return render_commands(job, [f"python -m {shlex.join(words)}"], folder), folder
        return render_script(job, workload.module, [*command, *options], folder), folder
