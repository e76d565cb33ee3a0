"""What a workload is, the table of all of them, how one is started and read back.

A run folder of a workload holds, beside what every run has (``journal.jsonl``, ``logs``, its own
``detailed_results.json`` and ``summary_results.csv``, a row per task)::

    config.json     workload and options: `Workload.collect` of the folder needs nothing else
    results/        what `Report.save` writes, under the names and with the columns that its users know

Workers write further files into the folder itself: structures, checkpoints, weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from ..hardware.slots import resolve_slots
from ..options import check_choice, check_value
from ..pool import GPUPool
from ..runs.ledger import Ledger
from ..runs.plan import run_folder
from ..runs.rerun import Rerun, rerun_as
from ..runs.run import Run
from ..runs.start import prepared_by
from ..store.files import atomic_write, make_private
from ..tasks import import_path, path_of
from .inputs import absolute_path, absolute_python, with_preset

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ..distributed.environment import RankEnvironment
    from ..tasks import Record, Task

__all__ = [
    "WORKLOADS",
    "Finished",
    "FormerOption",
    "Report",
    "Workload",
    "command_words",
    "find_workload",
    "lazily",
    "load_run",
    "mark_folder",
    "output_of",
    "own_config",
    "pool_options",
    "read_config",
    "results_folder",
    "start",
    "taskless_run",
    "workload_of",
    "write_config",
]

C = TypeVar("C")

CONFIG = "config.json"
JOURNAL = "journal.jsonl"
SLURM_LOG = "slurm-*.out"
RESULTS = "results"
GROUP = "mgpu_nb.workloads"
RESERVED = (
    "devices",
    "watch",
    "report",
    "runs",
    "slurm",
    "agent",
    "detached",
    "chaos",
)  # other commands of mgpu-nb


class Finished(Protocol):
    """What `Workload.collect` reads of a run that has ended."""

    @property
    def tasks(self) -> Sequence[str]:
        """Names of its tasks."""

    @property
    def records(self) -> Sequence[Record]:
        """Records of the tasks that have ended."""

    @property
    def folder(self) -> Path | None:
        """Folder of the run."""


@runtime_checkable
class Report(Protocol):
    """What `Workload.collect` makes of a run."""

    @property
    def folder(self) -> Path | None:
        """Folder of the run; None for one that was not kept."""

    def frame(self) -> pd.DataFrame:
        """Table of the results."""

    def plot(self, ax: Axes | None = None) -> Axes:
        """Axes with a picture of the results; on new axes by default."""

    def save(self, folder: str | Path | None = None) -> list[Path]:
        """Paths of the files with the results, written to `folder`, by default to that of the run."""

    def _repr_html_(self) -> str: ...


class FormerOption(NamedTuple):
    """What became of an option of a script that a workload replaces.

    Attributes
    ----------
    now
        Arguments that stand for it; empty if it is always so.
    note
        Line to print where it is given; empty for none.
    verb
        Verb that took its place; empty for an option.
    value
        Whether it has a value, which is dropped with it.
    """

    now: str = ""
    note: str = ""
    verb: str = ""
    value: bool = False


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A workload, or one verb of it: how to get from a config to tasks, and from their run to a report.

    Attributes
    ----------
    name
        Name in the table, in run folders and on the command line; that of a verb is ``workload-verb``.
    summary
        One line of help.
    config
        Dataclass of the options. ``gpu_ids``, ``slots``, ``python``, ``seed`` and ``output_dir`` are read where it has
        them.
    collect
        ``collect(run, config=None)``: the report of a run that has ended or was read back; without a config that of
        the run folder.
    tasks
        ``tasks(config, slots)``: tasks for so many slots. None for a gang.
    launch
        ``launch(config, pool, folder)``: the run of a gang, in slots of `pool`, by default in a pool of its own. The
        config of a gang has ``world_size`` and ``check_world(world, kind)``, with kind ``cuda`` or ``cpu``.
    join
        ``join(config, rank, folder)``: work as a rank that torchrun or srun started. For tasks that is
        `ranks.join_tasks`, if they write no files of their own. None for what ranks cannot do.
    module
        Module that torchrun and srun start for a rank, by ``python -m``, which takes the arguments of the command line.
    pool
        Options of `GPUPool` that it needs: isolation, preload, ...; or ``pool(config)``, which gives them.
    rounds
        ``rounds(config, tasks)``: the rounds of `GPUPool.run`, each of which begins when all of the one before has
        ended: False for none, True, or the number of the round by name of the task.
    presets
        Named changes of the default config.
    default_preset
        Preset of a command line that names none; None for the defaults of the config.
    paths
        Options that are paths.
    files
        Patterns of files that earlier runs of it leave in an output folder that has no journal.
    temporary
        Whether its folder is removed when the run has ended, unless ``output_dir`` names one.
    output
        ``output(config)``: folder of a run whose ``output_dir`` is None; None for a new one below ``runs``.
    listeners
        ``listeners(config, folder)``: who hears of a run, as `Run.listen` takes them. It is asked before the run
        starts, in the process that starts it or as rank 0.
    write
        ``write(config, folder)``: writes what the folder of a run has beside ``config.json`` to say what was asked for.
    verbs
        What else it can do, by verb.
    aliases
        Former names on the command line.
    former
        Options of scripts that it replaces, ``--name`` or ``--name value``.
    published
        Speed-ups that its guide states, by number of slots.
    """

    name: str
    summary: str
    config: type[Any]
    collect: Callable[..., Report]
    tasks: Callable[..., list[Task]] | None = None
    launch: Callable[[Any, GPUPool | None, Path], Run] | None = None
    join: Callable[[Any, RankEnvironment, Path], None] | None = None
    module: str = "mgpu_nb"
    pool: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]] = field(default_factory=dict)
    rounds: Callable[[Any, Sequence[Task]], bool | Mapping[str, int]] = lambda config, tasks: False
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    default_preset: str | None = None
    paths: tuple[str, ...] = ("output_dir",)
    files: tuple[str, ...] = ()
    temporary: bool = False
    output: Callable[[Any], str | None] = lambda config: None
    listeners: Callable[[Any, Path], Sequence[Any]] = lambda config, folder: ()
    write: Callable[[Any, Path], None] = lambda config, folder: None
    verbs: Mapping[str, Workload] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    former: Mapping[str, FormerOption] = field(default_factory=dict)
    published: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that it can be started."""
        if (self.tasks is None) == (self.launch is None):
            raise ValueError(f"workload {self.name!r} needs either tasks or, for a gang, launch")

    def preset(self, name: str | None = None, **changes: Any) -> Any:
        """Config of a preset, by default that of no preset, with `changes` on top.

        Raises
        ------
        ValueError
            If there is no such preset; the message names the nearest.
        """
        return (
            self.config(**changes) if name is None else with_preset(self.config, self.presets, name, changes)
        )

    def absolute(self, config: Any) -> dict[str, Any]:
        """Options of a config with absolute paths."""
        options = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init}
        for name in self.paths:
            if isinstance(value := options.get(name), (str, Path)):
                options[name] = absolute_path(value)
            elif value:
                options[name] = [absolute_path(path) for path in value]
        if isinstance(python := options.get("python"), (str, Path)):
            options["python"] = absolute_python(python)
        return options


def lazily(path: str) -> Callable[..., Any]:
    """Function ``"package.module:name"`` that is imported when it is first called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return import_path(path)(*args, **kwargs)

    return call


class _Table(Mapping[str, Workload]):
    """Workloads by name: those of this package, then those of entry points. A value is imported when it is asked for.

    A name that is taken is left out with a warning that names the distribution.
    """

    def __init__(self, own: Mapping[str, str], group: str) -> None:
        self._own, self._group = own, group

    @cached_property
    def _points(self) -> dict[str, tuple[str, str]]:
        """Import path and distribution by name."""
        found = {name: (path, "mgpu-nb") for name, path in self._own.items()}
        for point in entry_points(group=self._group):
            where = _distribution(point)
            if point.name in RESERVED:
                problem = "it is the name of a command of mgpu-nb"
            elif point.name in found:
                problem = f"{found[point.name][1]} has that name already"
            else:
                found[point.name] = (point.value, where)
                continue
            warnings.warn(f"workload {point.name!r} of {where} is left out: {problem}", stacklevel=4)
        return found

    def __getitem__(self, name: str) -> Workload:
        path, where = self._points[name]
        try:
            workload = import_path(path)
        except Exception as error:  # whatever a module of somebody else's raises while it is imported
            raise ImportError(f"workload {name!r} of {where} cannot be imported: {error}") from error
        if not isinstance(workload, Workload) or workload.name != name:
            raise ImportError(f"workload {name!r} of {where}: {path} is not a Workload of that name")
        return workload

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)

    def usable(self) -> list[Workload]:
        """Workloads that can be imported; the others with a warning that names their distribution."""
        found = []
        for name in self:
            try:
                found.append(self[name])
            except ImportError as error:
                warnings.warn(str(error), stacklevel=2)
        return found


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


WORKLOADS = _Table(
    {
        "protein": "mgpu_nb.workloads.protein.workload:WORKLOAD",
        "tracin": "mgpu_nb.workloads.tracin.workload:WORKLOAD",
        "training": "mgpu_nb.workloads.training.workload:WORKLOAD",
        "molecules": "mgpu_nb.workloads.molecules.workload:WORKLOAD",
        "alignment": "mgpu_nb.workloads.alignment.workload:WORKLOAD",
    },
    GROUP,
)
"""All workloads by name. Another package adds one by an entry point of the group ``mgpu_nb.workloads``."""


def find_workload(name: str) -> Workload:
    """Workload, or verb of one, by its name or a former one.

    Raises
    ------
    ValueError
        If there is none; the message names the nearest.
    ImportError
        If it cannot be imported.
    """
    if name in WORKLOADS:
        return WORKLOADS[name]
    names: dict[str, Workload] = {}
    for workload in WORKLOADS.usable():
        names |= dict.fromkeys((workload.name, *workload.aliases), workload)
        names |= {verb.name: verb for verb in workload.verbs.values()}
    return names[check_choice(name, names, "workload")]


def command_words(workload: Workload) -> list[str]:
    """Words that name a workload or verb on the command line."""
    for name in WORKLOADS:
        if workload.name == name:
            return [name]
        if workload.name.startswith(f"{name}-"):
            for verb, each in WORKLOADS[name].verbs.items():
                if each.name == workload.name:
                    return [name, verb]
    return [workload.name]


def workload_of(config: Any) -> Workload:
    """Workload, or verb of one, that a config belongs to.

    Raises
    ------
    TypeError
        If it is the config of none.
    """
    known = {each.config: each for w in WORKLOADS.usable() for each in (*w.verbs.values(), w)}
    for kind in type(config).__mro__:
        if kind in known:
            return known[kind]
    raise TypeError(
        f"{type(config).__qualname__} is not the config of a workload; there are {', '.join(WORKLOADS)}"
    )


def start(
    workload: Workload,
    config: Any,
    pool: GPUPool | None = None,
    *,
    resume: bool = True,
    rerun: Rerun = "ask",
    forward_logs: bool = False,
) -> Run:
    """Start a workload; return at once.

    Its folder is ``config.output_dir``, by default a new one below ``runs``. A run that the folder holds already is
    resumed: what is done is kept.

    Parameters
    ----------
    workload
        What to start.
    config
        Its options.
    pool
        Where to take slots; by default a pool of its own, which ends with the run.
    resume
        Whether to resume the run that ``output_dir`` holds. Otherwise a new run starts in a new folder below it,
        ``run-<date>-<time>``, and what is there stays as it is.
    rerun
        What becomes of a run that an earlier execution of this notebook cell left under way, see `GPUPool.run`.
    forward_logs
        Whether what tasks log also reaches this process's handlers, see `GPUPool`; of a pool of its own.

    Raises
    ------
    ValueError, TypeError
        If an option is invalid, before any process starts.
    OSError
        If files are missing, or the folder cannot be used.
    """
    if not isinstance(config, workload.config):
        wanted = f"{workload.config.__module__}.{workload.config.__qualname__}"
        raise TypeError(f"{workload.name} takes a {wanted}, not a {type(config).__qualname__}")
    if pool is not None:
        _check_pool(config, pool)
    runs, given = Path("runs").absolute(), config
    first = not runs.exists()
    folder = _folder(workload, config, resume)
    temporary = workload.temporary and getattr(config, "output_dir", None) is None
    if hasattr(config, "output_dir") and not temporary:
        config = dataclasses.replace(config, output_dir=str(folder))
    listeners: Sequence[Any] = ()

    def prepare() -> None:  # whoever kills us from here on leaves a folder that says what it is
        if not temporary:
            write_config(folder, workload, config)

    try:
        listeners = workload.listeners(config, folder)
        _check_stays(workload, pool, temporary or bool(listeners))
        with rerun_as(check_value("rerun", rerun, Rerun)), prepared_by(prepare):
            run = _start(workload, config, pool, folder, forward_logs)
    except BaseException:
        with contextlib.suppress(OSError):  # it is not empty
            if output_of(workload, given) is None:  # else somebody else may have made it
                folder.rmdir()
                if first and folder.parent == runs:
                    runs.rmdir()
        raise
    if listeners:
        run.listen(*listeners)
    if temporary:
        run.add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))
    return run


def _check_pool(config: Any, pool: GPUPool) -> None:
    """Refuse a config that chooses what the pool has chosen."""
    if getattr(config, "gpu_ids", None) is not None:
        raise ValueError("gpu_ids and pool both choose devices: give one of the two")
    python = getattr(config, "python", None)
    if python is not None and pool.python != absolute_python(python):
        raise ValueError(
            f"python={python!r}, but the pool's workers are of {pool.python or 'this interpreter'}"
        )


def _check_stays(workload: Workload, pool: GPUPool | None, needed: bool) -> None:
    """Refuse a pool whose runs outlive this process, if the workload needs this process until its end."""
    if needed and pool is not None and pool._detached:
        raise ValueError(
            f"{workload.name} needs this process until its end, and the runs of this pool outlive it: take a pool "
            f"without detach=True, or mgpu-nb slurm {' '.join(command_words(workload))} --submit"
        )


def _start(workload: Workload, config: Any, pool: GPUPool | None, folder: Path, forward_logs: bool) -> Run:
    if workload.launch is not None:
        return workload.launch(config, pool, folder)
    assert workload.tasks is not None  # noqa: S101 (checked when it was made)
    if pool is not None:
        return _run(
            workload,
            config,
            workload.tasks(config, pool.expected_slots or len(pool.slots) or 1),
            pool,
            folder,
        )
    options = pool_options(workload, config)
    devices = {name: options.get(name) for name in ("gpu_ids", "slots", "threads")}
    tasks = workload.tasks(config, len(resolve_slots(**devices)))  # what it refuses starts no process
    own = GPUPool(**{"forward_logs": forward_logs, **options}, rerun="keep", share=True)
    try:
        return _run(workload, config, tasks, own, folder)
    finally:
        own.shutdown(wait=False)


def _run(workload: Workload, config: Any, tasks: list[Task], pool: GPUPool, folder: Path) -> Run:
    seed = getattr(config, "seed", 0)
    by_round = workload.rounds(config, tasks)
    return pool.run(tasks, name=workload.name, folder=folder, seed=seed, by_round=by_round, whole=True)


def pool_options(workload: Workload, config: Any) -> dict[str, Any]:
    """Options of the `GPUPool` that a config asks for and its workload needs."""
    devices = {name: getattr(config, name, None) for name in ("gpu_ids", "slots")}
    if (python := getattr(config, "python", None)) is not None:
        devices["python"] = python
    return devices | dict(workload.pool(config) if callable(workload.pool) else workload.pool)


def _folder(workload: Workload, config: Any, resume: bool) -> Path:
    """Folder of a run that starts now."""
    output = output_of(workload, config)
    if output is None and workload.temporary:
        return Path(tempfile.mkdtemp(prefix=f"mgpu_nb-{workload.name}-"))
    folder = run_folder(None if output is None else Path(output).expanduser(), workload.name)
    there = list(folder.iterdir()) if folder.is_dir() else []
    if not resume and any(not path.match(SLURM_LOG) for path in there):
        return run_folder(None, "run", below=folder)
    if there:
        mark_folder(workload, folder)
    return folder


def output_of(workload: Workload, config: Any) -> str | None:
    """Folder that the options of a run name; None if they name none."""
    output: str | None = getattr(config, "output_dir", None)
    return workload.output(config) if output is None else output


def mark_folder(workload: Workload, folder: Path) -> None:
    """Mark a folder as a run's if it is new, or holds files of ours but no journal."""
    make_private(folder)
    ours = (SLURM_LOG, JOURNAL, CONFIG, *workload.files)
    if all(any(path.match(pattern) for pattern in ours) for path in folder.iterdir()):
        (folder / JOURNAL).touch()


def write_config(folder: Path, workload: Workload, config: Any) -> None:
    """Write workload and options into a run folder."""
    content = {"workload": workload.name, "config": workload.absolute(config)}
    with atomic_write(folder / CONFIG) as part:
        part.write_text(json.dumps(content, indent=2, default=_plain) + "\n", encoding="utf-8")
    workload.write(config, folder)


def _plain(value: Any) -> Any:
    """JSON value of an option: a number of numpy as Python's, a function by its name, anything else as text."""
    if callable(value):
        return path_of(value)
    return value.item() if hasattr(value, "item") else os.fspath(value)


def read_config(folder: Path | None) -> tuple[Workload, Any]:
    """Workload and config of a run folder.

    Raises
    ------
    FileNotFoundError
        If the folder has no config.json.
    ValueError
        If it is damaged, or of a workload or with options that this installation does not know.
    """
    file = None if folder is None else folder / CONFIG
    if file is None or not file.is_file():
        raise FileNotFoundError(
            f"{folder} has no {CONFIG}: give the config as well, or start the run by `start`"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        workload = find_workload(content["workload"])
        options = {name: _tuples(value) for name, value in content["config"].items()}
        if "output_dir" in options:  # the folder may have been moved
            options["output_dir"] = str(folder)
        return workload, workload.config(**options)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{file} is not the config of a workload ({type(error).__name__}: {error}): copy it anew, or start the run "
            "again with the options that it had"
        ) from error


def own_config(folder: Path | None, kind: type[C]) -> C:
    """Config of a run folder, which must be of this kind.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_config`, and if it is of another kind.
    """
    workload, config = read_config(folder)
    if type(config) is not kind:
        raise ValueError(
            f"{folder} holds a run of {workload.name}, whose config is not a {kind.__qualname__}: its own collect "
            "reads it, and so does mgpu-nb report"
        )
    return config


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def load_run(folder: str | Path) -> tuple[Workload | None, Run]:
    """Run of a folder, and its workload; None for a run of other tasks.

    A training that torchrun or srun started has no journal, and so no tasks.

    Raises
    ------
    FileNotFoundError
        If the folder is not a run's.
    ValueError
        If its journal or config is damaged.
    """
    path = Path(folder).expanduser().absolute()
    workload = read_config(path)[0] if (path / CONFIG).is_file() else None
    journal = path / JOURNAL
    if workload is not None and (not journal.exists() or not journal.stat().st_size):
        return workload, taskless_run(workload.name, path)
    return workload, Run.open(path)


def taskless_run(name: str, folder: Path) -> Run:
    """Run of a folder without a journal: that of ranks which torchrun or srun started."""
    ledger = Ledger(name, folder, ())
    ledger.close()
    return Run(ledger)


def results_folder(run_folder: Path | None, folder: str | Path | None) -> Path:
    """Folder for the files of a report: the one given, or ``results`` below that of the run.

    Raises
    ------
    ValueError
        If there is neither.
    """
    if folder is not None:
        return Path(folder).expanduser()
    if run_folder is None:
        raise ValueError("nowhere to save: the run has no folder, so give save(folder)")
    return run_folder / RESULTS
