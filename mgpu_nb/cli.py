"""``mgpu-nb WORKLOAD [VERB] [options]``: what the notebooks do, without a notebook."""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .distributed.slurm import BatchJob, SubmitError, submit, write_script
from .hardware.slots import devices
from .options import Above, Finite, PositiveInt, check_choice
from .runs.past import find_runs
from .version import __version__
from .workloads.arguments import positional_first, positional_of, read_groups, read_options, spoken, told
from .workloads.base import WORKLOADS, Workload, command_words, load_run
from .workloads.command import INTERRUPTED, batch_job, execute, logging_at
from .workloads.outputs import note, say, silence

__all__ = ["main"]

OF_DEVICES = ("pick", "gpu_ids", "slots")  # options that warnings may name


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        Exit code: 0, also if nobody reads the output any more; 1 if something failed; 2 if the input is invalid;
        130 after an interrupt.
    """
    words = sys.argv[1:] if arguments is None else arguments
    with _outputs(), _modules_here():
        try:
            code = _dispatch(words)
        except BrokenPipeError:  # the reader has seen enough, as `head` has
            code = 0
        except KeyboardInterrupt as interrupt:
            note(f"\nmgpu-nb {words[0]}: interrupted. {interrupt}".rstrip())
            code = INTERRUPTED
        except SubmitError as error:
            note(f"mgpu-nb {words[0]}: {error}")
            code = 1
        except (ValueError, TypeError, OSError, ImportError) as error:
            note(f"mgpu-nb {words[0]}: {told(error)}")
            code = 2
    return code


@contextlib.contextmanager
def _modules_here() -> Iterator[None]:
    """Have the modules of the working directory importable, after all others, as options may name what is in them."""
    before = list(sys.path)
    with contextlib.suppress(OSError):  # it is gone
        here = str(Path.cwd())
        if here not in before and "" not in before:
            sys.path.append(here)
    try:
        yield
    finally:
        sys.path[:] = before


@contextlib.contextmanager
def _outputs() -> Iterator[None]:
    """Outputs of a command: what they cannot show is shown as an escape, and a reader who leaves is no error."""
    with contextlib.suppress(AttributeError, ValueError):  # of a stand-in for a file
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    shown_before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"mgpu-nb: {spoken(str(message), OF_DEVICES)}\n"
    try:
        yield
    finally:
        warnings.formatwarning = shown_before
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except BrokenPipeError:
                silence(stream)


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
    verbs = ["run", *workload.verbs]
    if not workload.verbs or not rest or rest[0].startswith("-") or _is_positional(workload, rest[0], verbs):
        return workload, rest[1:] if rest[:1] == ["run"] else rest
    verb = check_choice(rest[0], verbs, f"verb of {workload.name}")
    return workload.verbs.get(verb, workload), rest[1:]


def _is_positional(workload: Workload, word: str, verbs: Sequence[str]) -> bool:
    """Whether a word is no verb, nor meant as one, of a workload that takes words without a name."""
    meant = difflib.get_close_matches(word, verbs, n=1)
    return word not in verbs and not ("=" not in word and meant) and bool(positional_of(workload.config))


def _usage() -> str:
    lines = ["usage: mgpu-nb COMMAND [options]", "       mgpu-nb WORKLOAD [VERB] [options]", "", "workloads:"]
    every = [each for workload in WORKLOADS.usable() for each in (workload, *workload.verbs.values())]
    lines += [f"  {' '.join(command_words(each)):18}{each.summary}" for each in every]
    lines += ["", "commands:"]
    lines += [f"  {name:18}{command.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "--help after a command shows its options; --version shows the version."])


def _devices(words: Sequence[str]) -> int:
    """Show the devices of this machine."""
    read_options(_Nothing, words, "mgpu-nb devices", _devices.__doc__)
    table = devices()
    say(table.fitted(shutil.get_terminal_size().columns) if sys.stdout.isatty() else table)
    return 0


@dataclass(frozen=True)
class _Nothing:
    pass


@dataclass(frozen=True)
class _Watch:
    interval: Annotated[float, Above(0), Finite()] = 2.0
    """Seconds between two looks."""
    times: PositiveInt | None = None
    """Number of looks; by default until Ctrl-C."""
    once: bool = False
    """Look once, as --times 1."""


def _watch(words: Sequence[str]) -> int:
    """Show who holds the memory of the devices, again and again, until Ctrl-C."""
    options = read_options(_Watch, words, "mgpu-nb watch", _watch.__doc__)
    if options.once and options.times is not None:
        raise ValueError("--once and --times: give one of the two")
    with contextlib.suppress(KeyboardInterrupt):  # that is how it ends
        from .views.screen import watch_devices  # with rich, which no other command needs

        watch_devices(options.interval, 1 if options.once else options.times)
    return 0


@dataclass(frozen=True)
class _Report:
    folder: tyro.conf.Positional[Path]
    """Folder of a run."""
    save: bool = False
    """Write the files of the report again, too."""


def _report(words: Sequence[str]) -> int:
    """Show the report of a run's folder."""
    options = read_options(_Report, words, "mgpu-nb report", _report.__doc__)
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
    options = read_options(_Runs, words, "mgpu-nb runs", _runs.__doc__)
    say(find_runs(options.folder))
    return 0


@dataclass(frozen=True)
class _Batch:
    script: str | None = None
    """File for the script; by default named after the workload."""
    submit: bool = False
    """Submit it."""
    wait: bool = False
    """Submit it, and wait until the job has ended."""


def _slurm(words: Sequence[str]) -> int:
    """Write, and submit, a SLURM batch script that runs a workload: slurm WORKLOAD [VERB] [options]."""
    if not words or words[0] in ("-h", "--help"):
        say(
            f"usage: mgpu-nb slurm WORKLOAD [VERB] [options]\n\n{_slurm.__doc__}\nWorkloads: {', '.join(WORKLOADS)}"
        )
        return 0
    workload, rest = _workload(words)
    prog = f"mgpu-nb slurm {' '.join(command_words(workload))}"
    text = (
        f"{_slurm.__doc__} All options of mgpu-nb {' '.join(command_words(workload))} can stand beside these."
    )
    shown = [word for word in rest if word in ("-h", "--help")]
    groups = {"batch": (_Batch, _Batch()), "job": (BatchJob, BatchJob(job_name=workload.name))}
    ordered = positional_first((_Batch, BatchJob, workload.config), rest)
    (batch, job), options = read_groups(groups, shown or ordered, prog, text, others=True)
    script, folder = batch_job(job, workload, options)
    folder.mkdir(parents=True, exist_ok=True)
    path = write_script(script, batch.script or f"{workload.name}.sbatch")
    say(path)
    if batch.submit or batch.wait:
        say(f"job {submit(path, wait=batch.wait)}")
    else:
        say(f"submit it with: sbatch {path}")
    return 0


@dataclass(frozen=True)
class _Agent:
    connect: Path
    """File with the invitation of a pool, which says it."""
    name: str | None = None
    """Name of this node in the pool; by default that of the host."""


def _agent(words: Sequence[str]) -> int:
    """Have this machine work for a pool that is elsewhere, until that pool ends: agent --connect FILE."""
    options = read_options(_Agent, words, "mgpu-nb agent", _agent.__doc__)
    from .cluster.agent import serve

    # SLURM sends this to all processes of a job a minute before it ends, see `cluster.slurm`: workers ignore it.
    signal.signal(signal.SIGURG, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    return serve(options.connect, options.name or "")


@dataclass(frozen=True)
class _Detached:
    folder: tyro.conf.Positional[Path]
    """Folder of the run."""
    sha256: str
    """SHA-256 of the file with its tasks."""


def _detached(words: Sequence[str]) -> int:
    """Run what a detached pool has submitted, on the nodes of this SLURM job: its batch script says so."""
    options = read_options(_Detached, words, "mgpu-nb detached", _detached.__doc__)
    from .cluster.orders import carry_out

    with logging_at("INFO"):
        return carry_out(options.folder, options.sha256)


def _chaos(words: Sequence[str]) -> int:
    """Try the pool on this machine: tasks that crash, hang and lie, while workers and servers are killed."""
    from .chaos.report import Chaos, run_storms

    options = read_options(Chaos, words, "mgpu-nb chaos", _chaos.__doc__)
    report = run_storms(options, lambda outcome: say(f"{outcome}"))
    say(f"\n{report}")
    return 1 if report.findings else 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "devices": _devices,
    "watch": _watch,
    "report": _report,
    "runs": _runs,
    "slurm": _slurm,
    "agent": _agent,
    "detached": _detached,
    "chaos": _chaos,
}
