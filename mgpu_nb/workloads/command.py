"""A workload from the command line: options, run, report; as a rank of torchrun or srun, or as a batch job."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TextIO

from ..distributed.environment import RankEnvironment
from ..hardware.slots import devices
from ..options import check_choice
from ..pool import GPUPool
from ..runs.ledger import Ledger
from ..runs.run import Run
from .arguments import UsageError, option_names, read_groups, speaking, spoken
from .base import Workload, command_words, pool_options, start, write_config

if TYPE_CHECKING:
    from ..distributed.slurm import BatchJob

__all__ = ["batch_job", "execute", "parse", "say", "silence"]


class Request(NamedTuple):
    """What a command line asks for.

    Attributes
    ----------
    workload
        Workload or verb.
    configs
        By preset; one of no preset has the key None.
    resume, pick
        See `base.start` and `GPUPool`.
    words
        The arguments, those of former scripts replaced by what they mean now.
    """

    workload: Workload
    configs: dict[str | None, Any]
    resume: bool
    pick: Literal["first", "free"]
    words: list[str]


def parse(workload: Workload, arguments: Sequence[str], prog: str) -> Request:
    """Read the options of a workload.

    Raises
    ------
    ValueError, TypeError
        If an option is invalid; the message names it and the accepted values.
    SystemExit
        After ``--help``, and for what is no option; the message names the nearest.
    """
    workload, words = _without_former(workload, arguments)
    common, rest = (
        _common_options(words)
        if workload.presets
        else (argparse.Namespace(preset=None, run_all=False), words)
    )
    names = list(workload.presets) if common.run_all else [common.preset or workload.default_preset]
    configs: dict[str | None, Any] = {}
    resume = True
    pick: Literal["first", "free"] = "first"
    with speaking(known_options(workload)):
        for name in names:
            default = None if name is None and _required(workload.config) else workload.preset(name)
            kind = _run_options(workload)
            given = {"preset": name, "run_all": common.run_all} if workload.presets else {}
            groups = {"run": (kind, kind(**given)), "config": (workload.config, default)}
            (asked, config), _ = read_groups(groups, rest, prog, _description(workload))
            configs[name], resume = _adapted(config, default, name, common.run_all), asked.resume
            pick = getattr(asked, "pick", pick)
            if pick == "free" and config.gpu_ids is not None:
                raise UsageError("--gpu_ids and --pick free both choose devices: give one of the two")
    return Request(workload, configs, resume, pick, words)


def _without_former(workload: Workload, arguments: Sequence[str]) -> tuple[Workload, list[str]]:
    """Arguments with options of former scripts replaced; a note about each that needs one is printed."""
    words: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        name = f"--{option[2:].replace('-', '_')}" if option.startswith("--") else option
        former = workload.former.get(name)
        if former is None and (equals or rest):
            former = workload.former.get(f"{name} {value if equals else rest[0]}")
            if former is not None and not equals:
                rest.pop(0)
            equals = ""
        if former is None:
            _check_former_value(workload, name, value if equals else "".join(rest[:1]))
            words.append(word)
            continue
        if former.note:
            _note(former.note)
        words += shlex.split(former.now)
        if former.now and equals:
            words[-1] += f"={value}"
        workload = workload.verbs[former.verb] if former.verb else workload
    return workload, words


def _check_former_value(workload: Workload, name: str, value: str) -> None:
    """Raise for a value that an option of a former script never had."""
    known = [former.partition(" ")[2] for former in workload.former if former.startswith(f"{name} ")]
    if known:
        check_choice(value, known, name)


def _common_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options that decide the defaults of the others, and the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="mgpu-nb")
    parser.add_argument("--preset", "--config")
    parser.add_argument("--run_all", "--run-all", action="store_true")
    return parser.parse_known_args(list(arguments))


def known_options(workload: Workload) -> list[str]:
    """Names of the options of a workload's command."""
    return option_names(_run_options(workload), workload.config)


def _run_options(workload: Workload) -> Any:
    """Dataclass of the options that all workloads have: where to start from and what to keep."""
    import tyro

    fields: list[Any] = []
    if workload.presets:
        words = "Preset to start from (--config means the same); every other option overrides what it sets."
        names = tyro.conf.arg(help=words, metavar=f"{{{','.join(workload.presets)}}}")
        words = "Run all presets, one after the other."
        fields += [
            ("preset", Annotated[str | None, names], workload.default_preset),
            ("run_all", Annotated[bool, tyro.conf.arg(help=words)], False),
        ]
    words = (
        "Resume the run that output_dir holds: what is done is kept. With --no_resume a new run starts in a new "
        "folder below output_dir, run-<date>-<time>, and what is there stays as it is."
    )
    fields.append(("resume", Annotated[bool, tyro.conf.arg(help=words)], True))
    if "gpu_ids" in option_names(workload.config):
        words = (
            "Which GPUs where no ids are given: the first ones by number, or those with the most free memory. "
            "mgpu-nb devices shows who holds them."
        )
        fields.append(("pick", Annotated[Literal["first", "free"], tyro.conf.arg(help=words)], "first"))
    return dataclasses.make_dataclass("RunOptions", fields, frozen=True, kw_only=True)


def _description(workload: Workload) -> str:
    names = ", ".join(workload.former)
    return workload.summary + (
        f"\n\nOptions of the scripts that it replaces are accepted, too: {names}." if names else ""
    )


def _required(config: type[Any]) -> bool:
    """Whether a config has options without a default."""
    missing = dataclasses.MISSING
    return any(
        f.init and f.default is missing and f.default_factory is missing for f in dataclasses.fields(config)
    )


def _adapted(config: Any, default: Any, preset: str | None, several: bool) -> Any:
    changes: dict[str, Any] = {}
    named = preset is not None and getattr(config, "gpu_ids", None) is not None
    if named and hasattr(config, "slots") and config.slots == default.slots:
        changes["slots"] = None  # the GPUs that are named replace the preset's number of slots
    if several and getattr(config, "output_dir", None) is not None:
        changes["output_dir"] = str(Path(config.output_dir) / str(preset))
    return dataclasses.replace(config, **changes) if changes else config


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
    workload, configs, resume, pick, _ = parse(workload, arguments, prog)
    ranks = RankEnvironment.from_env() if workload.join is not None else None
    codes = []
    for preset, config in configs.items():
        if ranks is not None:
            if pick == "free":
                raise UsageError("--pick free: torchrun and srun say which GPUs a rank has; leave it out")
            with speaking(known_options(workload)):
                codes.append(_join(workload, config, resume, ranks))
            continue
        with speaking(known_options(workload)), contextlib.ExitStack() as stack:
            pool = None
            if pick == "free":
                pool = _freest_pool(workload, config)
                stack.callback(pool.shutdown, wait=False)
            run = start(workload, config, pool, resume=resume)
        tasks = f"{len(run.tasks)} task{'s' * (len(run.tasks) != 1)}"
        _note(f"{workload.name}: {tasks}; the run's folder is {run.folder}")
        again = shlex.join([*prog.split(), *_going_on(arguments, preset, run.folder)])
        codes.append(_wait_and_report(workload, run, again))
        if codes[-1] == INTERRUPTED:
            break
    return max(codes)


def _freest_pool(workload: Workload, config: Any) -> GPUPool:
    """Pool for a run, on the freest GPUs."""
    options = {**pool_options(workload, config), "pick": "free", "share": True, "rerun": "keep"}
    if workload.launch is not None:
        options["slots"] = config.world_size or (None if devices().has_gpu else 1)
    return GPUPool(**options)


INTERRUPTED = 130


def _going_on(arguments: Sequence[str], preset: str | None, folder: Path) -> list[str]:
    """Arguments that go on with a run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output_dir", "--output-dir")
    for name in ("run_all", "resume", "no_resume"):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", action="store_true")
    found, rest = parser.parse_known_args(list(arguments))
    chosen = ["--preset", str(preset)] if found.run_all else []
    return [*rest, *chosen, "--output_dir", str(folder)]


def _wait_and_report(workload: Workload, run: Run, again: str) -> int:
    """Wait for a run, print its report and the paths of its files; an interrupt cancels it."""
    kept = "" if workload.temporary else f"To go on: {again}"
    try:
        if workload.launch is not None and not workload.temporary:
            _follow(run)
        run.wait()
    except KeyboardInterrupt:
        run.cancel()
        run.wait(progress=False)
        _tell_what_is_done(workload, run)
        _note(kept)
        return INTERRUPTED
    failed = [record for record in run.records if record.failed]
    for record in failed:
        _note(f"{record.name}: {record.status}: {record.error}")
    try:
        report = workload.collect(run)
    except ValueError as error:
        _note(f"{workload.name}: {spoken(str(error), known_options(workload))}")
        _note(kept)
        return 1
    say(report)
    for path in report.save():
        say(path)
    missing = sum(not record.ok for record in run.records)
    if missing:
        what = f"{len(failed)} of {len(run.tasks)} tasks failed; logs are in {run.folder / 'logs'}"
        others = f"{missing - len(failed)} of {len(run.tasks)} tasks were cancelled or skipped"
        _note(f"{workload.name}: " + ", ".join([what] * bool(failed) + [others] * (missing > len(failed))))
        _note(kept)
    return 1 if missing else 0


def _tell_what_is_done(workload: Workload, run: Run) -> None:
    """Print what came of a run that was interrupted: its report if it has one without the rest."""
    done, failed = (sum(getattr(record, kind) for record in run.records) for kind in ("ok", "failed"))
    text = f"{done} of {len(run.tasks)} task{'s' * (len(run.tasks) != 1)} done" + f", {failed} failed" * bool(
        failed
    )
    _note(f"\n{workload.name}: interrupted, {text}")
    try:
        report = workload.collect(run)
    except ValueError as error:
        if workload.launch is not None and not workload.temporary:  # ranks leave more than their records
            _note(f"{workload.name}: {spoken(str(error), known_options(workload))}")
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
    assert workload.join is not None  # noqa: S101 (the caller looked)
    if not resume:
        raise ValueError("--no_resume: ranks cannot agree on a new folder; give another output_dir")
    job = ranks.job or os.environ.get("TORCHELASTIC_RUN_ID", "none")
    default = Path() if workload.temporary else Path("runs") / f"{workload.name}-{job}"
    folder = Path(config.output_dir or default).absolute()
    workload.join(config, ranks, folder)
    if ranks.rank == 0 and not workload.temporary:
        write_config(folder, workload, config)
        report = workload.collect(Run(Ledger(workload.name, folder, ())), config)
        say(report)
        for path in report.save():
            say(path)
    return 0


def batch_job(job: BatchJob, workload: Workload, arguments: Sequence[str]) -> tuple[str, Path]:
    """Batch script of a workload, and the folder of its run, which must exist when the job starts.

    The script resumes the run that it finds there: the same script, submitted again, goes on.

    Parameters
    ----------
    job
        What to ask the cluster for. A gang has as many ranks; any other workload is one process on one machine.
    workload
        What to run.
    arguments
        Its options.

    Raises
    ------
    ValueError
        If an option is invalid, or the workload cannot run on what is asked for.
    """
    from ..distributed.slurm import render_script

    workload, configs, resume, _, words = parse(
        workload, arguments, f"mgpu-nb slurm {' '.join(command_words(workload))}"
    )
    if len(configs) != 1:
        raise ValueError("--run_all: write a job for each preset")
    with speaking([*known_options(workload), *option_names(type(job))]):
        (config,) = configs.values()
        folder = Path(getattr(config, "output_dir", None) or f"{workload.name}_results").absolute()
        options = words if getattr(config, "output_dir", None) else [*words, "--output_dir", str(folder)]
        if getattr(config, "gpu_ids", None) not in (None, "cpu"):
            raise ValueError("gpu_ids: SLURM says which GPUs a job has; leave it out")
        if workload.join is None:
            if job.nodes > 1 or job.launcher != "srun" or (job.ranks_per_node or 1) > 1:
                raise ValueError(
                    f"{workload.name} is one process: give nodes=1, ranks_per_node=1 and launcher='srun'"
                )
            job = dataclasses.replace(job, ranks_per_node=1)
        else:
            config.check_world(job.world, "cuda" if job.gpus_per_node else "cpu")
            if not resume:
                raise ValueError("--no_resume: ranks cannot agree on a new folder; give another output_dir")
            if job.world == 1 and config.world_size is None:
                options += ["--world_size", "1"]  # one rank, however many GPUs
        command = command_words(workload) if workload.module == "mgpu_nb" else []
        return render_script(job, workload.module, [*command, *options], folder), folder


def say(text: object, end: str = "\n") -> None:
    """Print to the standard output; to nowhere once its reader has gone."""
    _print(text, end, sys.stdout)


def silence(stream: TextIO) -> None:
    """Have an output go nowhere: whoever read it has gone, and the run goes on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _note(text: str) -> None:
    """Print a line that is no result, if there is one."""
    if text:
        _print(text, "\n", sys.stderr)


def _print(text: object, end: str, stream: TextIO) -> None:
    try:
        print(text, end=end, file=stream, flush=True)
    except BrokenPipeError:
        silence(stream)
