"""``mgpu-nb WORKLOAD [VERB] [options]``: what the notebooks do, without a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .distributed.slurm import BatchJob, SubmitError, submit, write_script
from .hardware.slots import devices
from .options import check_choice
from .version import __version__
from .workloads.base import WORKLOADS, Workload, command_words, load_run
from .workloads.command import INTERRUPTED, batch_job, execute, say, silence_stdout

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        Exit code: 0; 1 if something failed; 2 if the input is invalid; 130 after an interrupt.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = _dispatch(words)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as `head` has
        silence_stdout()
        code = 0
    except KeyboardInterrupt as interrupt:
        print(f"\nmgpu-nb {words[0]}: interrupted. {interrupt}", file=sys.stderr)
        code = INTERRUPTED
    except SubmitError as error:
        print(f"mgpu-nb {words[0]}: {error}", file=sys.stderr)
        code = 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"mgpu-nb {words[0]}: {error}", file=sys.stderr)
        code = 2
    return code


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        say(_usage())
        return 0
    if words[0] == "--version":
        say(f"mgpu-nb {__version__}")
        return 0
    if words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:])
    workload, options = _workload(words)
    return execute(workload, options, f"mgpu-nb {' '.join(command_words(workload))}")


def _workload(words: Sequence[str]) -> tuple[Workload, list[str]]:
    """Workload or verb that the first words name, and the words after them."""
    name, *rest = words
    if name in WORKLOADS:
        workload = WORKLOADS[name]
    else:
        found = {other: w for w in WORKLOADS.usable() for other in (w.name, *w.aliases)}
        found |= {verb.name: verb for w in WORKLOADS.usable() for verb in w.verbs.values()}
        check_choice(name, [*COMMANDS, *found], "command")
        workload = found[name]
    if not workload.verbs or not rest or rest[0].startswith("-"):
        return workload, rest[1:] if rest[:1] == ["run"] else rest
    verb = check_choice(rest[0], ["run", *workload.verbs], f"verb of {workload.name}")
    return workload.verbs.get(verb, workload), rest[1:]


def _usage() -> str:
    lines = ["usage: mgpu-nb COMMAND [options]", "       mgpu-nb WORKLOAD [VERB] [options]", "", "workloads:"]
    every = [each for workload in WORKLOADS.usable() for each in (workload, *workload.verbs.values())]
    lines += [f"  {' '.join(command_words(each)):18}{each.summary}" for each in every]
    lines += ["", "commands:"]
    lines += [f"  {name:18}{command.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "--help after a command shows its options; --version shows the version."])


def _devices(words: Sequence[str]) -> int:
    """Show the devices of this machine."""
    tyro.cli(_Nothing, args=words, prog="mgpu-nb devices", description=_devices.__doc__)
    say(devices())
    return 0


@dataclass(frozen=True)
class _Nothing:
    pass


@dataclass(frozen=True)
class _Watch:
    interval: float = 2.0
    """Seconds between two looks."""
    times: int | None = None
    """Number of looks; by default until it is interrupted."""


def _watch(words: Sequence[str]) -> int:
    """Show the devices of this machine again and again, until interrupted."""
    options = tyro.cli(
        _Watch, args=words, prog="mgpu-nb watch", description=_watch.__doc__, use_underscores=True
    )
    if not options.interval > 0:
        raise ValueError(f"interval={options.interval!r}: give seconds, more than zero")
    looks = 0
    try:
        while options.times is None or looks < options.times:
            time.sleep(options.interval if looks else 0)
            say(f"\x1b[H\x1b[2J{devices()}" if sys.stdout.isatty() else devices())
            looks += 1
    except KeyboardInterrupt:  # that is how it ends
        pass
    return 0


@dataclass(frozen=True)
class _Report:
    folder: tyro.conf.Positional[Path]
    """Folder of a run."""
    save: bool = False
    """Write the files of the report again, too."""


def _report(words: Sequence[str]) -> int:
    """Show the report of a run's folder."""
    options = tyro.cli(
        _Report, args=words, prog="mgpu-nb report", description=_report.__doc__, use_underscores=True
    )
    workload, run = load_run(options.folder)
    if workload is None:
        say(run.frame().to_string())
        return 0 if all(record.ok for record in run.records) else 1
    report = workload.collect(run)
    say(report)
    for path in report.save() if options.save else ():
        say(path)
    return 0


@dataclass(frozen=True)
class _Runs:
    folder: tyro.conf.Positional[Path] = Path("runs")
    """Folder with the folders of runs."""


def _runs(words: Sequence[str]) -> int:
    """List the runs in a folder, by default runs."""
    options = tyro.cli(
        _Runs, args=words, prog="mgpu-nb runs", description=_runs.__doc__, use_underscores=True
    )
    if not options.folder.is_dir():
        raise FileNotFoundError(f"{options.folder} is not a folder")
    for level in (".", "*", "*/*"):
        for file in sorted(options.folder.glob(f"{level}/journal.jsonl")):
            try:
                _, run = load_run(file.parent)
                say(f"{run.name:16} {run.progress!s:32} {file.parent}")
            except (ValueError, OSError) as error:
                say(f"{'damaged':16} {error!s:32} {file.parent}")
    return 0


@dataclass(frozen=True)
class _Batch:
    script: str | None = None
    """File for the script; by default named after the workload."""
    submit: bool = False
    """Submit it."""
    wait: bool = False
    """Submit it, and wait until the job has ended."""


@dataclass(frozen=True)
class _Slurm:
    batch: tyro.conf.OmitArgPrefixes[_Batch]
    job: Annotated[tyro.conf.OmitArgPrefixes[BatchJob], tyro.conf.arg(name="job")]


def _slurm(words: Sequence[str]) -> int:
    """Write, and submit, a SLURM batch script that runs a workload: slurm WORKLOAD [VERB] [options]."""
    if not words or words[0] in ("-h", "--help"):
        say(
            f"usage: mgpu-nb slurm WORKLOAD [VERB] [options]\n\n{_slurm.__doc__}\nWorkloads: {', '.join(WORKLOADS)}"
        )
        return 0
    workload, rest = _workload(words)
    default = _Slurm(_Batch(), BatchJob(job_name=workload.name))
    prog = f"mgpu-nb slurm {' '.join(command_words(workload))}"
    text = (
        f"{_slurm.__doc__} All options of mgpu-nb {' '.join(command_words(workload))} can stand beside these."
    )
    shown = [word for word in rest if word in ("-h", "--help")]
    asked, options = tyro.cli(
        _Slurm,
        args=shown or rest,
        default=default,
        prog=prog,
        description=text,
        use_underscores=True,
        return_unknown_args=True,
    )
    script, folder = batch_job(asked.job, workload, options)
    folder.mkdir(parents=True, exist_ok=True)
    path = write_script(script, asked.batch.script or f"{workload.name}.sbatch")
    say(path)
    if asked.batch.submit or asked.batch.wait:
        say(f"job {submit(path, wait=asked.batch.wait)}")
    else:
        say(f"submit it with: sbatch {path}")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "devices": _devices,
    "watch": _watch,
    "report": _report,
    "runs": _runs,
    "slurm": _slurm,
}
