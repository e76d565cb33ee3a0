"""What a command line asks of a workload: presets, options, and those of the scripts that it replaces."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from ..engines.base import Cluster
from ..options import check_choice, check_value
from .arguments import UsageError, option_names, read_groups, speaking
from .base import Workload, command_words
from .clusters import ClusterName, cluster_of, cluster_options
from .inputs import LogLevel
from .outputs import note

__all__ = ["Request", "known_options", "parse"]


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
    log_level
        Lowest level of log records to show.
    cluster
        Other machines to run on; None for this one.
    words
        The arguments, those of former scripts replaced by what they mean now.
    """

    workload: Workload
    configs: dict[str | None, Any]
    resume: bool
    pick: Literal["first", "free"]
    log_level: LogLevel
    cluster: Cluster | None
    words: list[str]


def parse(workload: Workload, arguments: Sequence[str], prog: str, also: Sequence[str] = ()) -> Request:
    """Read the options of a workload; `also` names options that were read before.

    Raises
    ------
    ValueError, TypeError
        If an option is invalid; the message names it and the accepted values.
    SystemExit
        After ``--help``, and for what is no option; the message names the nearest.
    """
    workload, words = _without_former(workload, arguments)
    common, rest = _common_options(words, workload)
    if common.cluster is None:
        _check_no_cluster(rest, known_options(workload))
    names = list(workload.presets) if common.run_all else [common.preset or workload.default_preset]
    configs: dict[str | None, Any] = {}
    resume = True
    pick: Literal["first", "free"] = "first"
    log_level: LogLevel = "WARNING"
    cluster: Cluster | None = None
    with speaking(known_options(workload)):
        for name in names:
            default = None if name is None and _required(workload.config) else workload.preset(name)
            kind = _run_options(workload)
            given = {"preset": name, "run_all": common.run_all} if workload.presets else {}
            groups = {
                "run": (kind, kind(cluster=common.cluster, **given)),
                "config": (workload.config, default),
            }
            if common.cluster is not None:
                of_cluster = cluster_options(common.cluster, known_options(workload))
                groups[common.cluster] = (of_cluster, of_cluster())
            (asked, config, *other), _ = read_groups(groups, rest, prog, _description(workload), also=also)
            cluster = cluster_of(common.cluster, *other) if other else None
            if getattr(cluster, "detach", False):
                raise UsageError(
                    f"--detach: mgpu-nb slurm {' '.join(command_words(workload))} --submit has a job run all of this "
                    "command, on several nodes as well; detach=True is for pools of a notebook"
                )
            configs[name], resume = _adapted(config, default, name, common.run_all), asked.resume
            pick = getattr(asked, "pick", pick)
            log_level = (config if hasattr(config, "log_level") else asked).log_level
            if pick == "free" and config.gpu_ids is not None:
                raise UsageError("--gpu_ids and --pick free both choose devices: give one of the two")
            if pick == "free" and cluster is not None:
                raise UsageError(
                    "--pick free: of a node all devices are taken that the cluster gives; leave it out"
                )
    return Request(workload, configs, resume, pick, log_level, cluster, words)


def _check_no_cluster(words: Sequence[str], known: Sequence[str]) -> None:
    """Raise for an option that only clusters have."""
    for name in ("nodes", "gpus_per_node"):
        if name not in known and any(word.partition("=")[0] == f"--{name}" for word in words):
            raise UsageError(f"there is no option --{name}; it goes with --cluster")


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
        if former.value and not equals and rest and not rest[0].startswith("--"):
            rest.pop(0)
        if former.note:
            note(former.note)
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


def _common_options(arguments: Sequence[str], workload: Workload) -> tuple[argparse.Namespace, list[str]]:
    """Options that decide which others there are, and their defaults; and the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="mgpu-nb")
    parser.add_argument("--cluster")
    if workload.presets:
        parser.add_argument("--preset", "--config")
        parser.add_argument("--run_all", "--run-all", action="store_true")
    parser.set_defaults(preset=None, run_all=False)
    found, rest = parser.parse_known_args(list(arguments))
    if found.cluster is not None:
        with speaking(["cluster"]):
            check_value("cluster", found.cluster, ClusterName)
    return found, rest


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
        "Run on other machines: nodes that SLURM or Ray gives, the allocation of the SLURM job that this is in, agents "
        "that you start by mgpu-nb agent, or agents here to try that out. --cluster NAME --help shows its options, "
        "as --nodes; --gpu_ids and --slots are for each node then."
    )
    fields.append(("cluster", Annotated[ClusterName | None, tyro.conf.arg(help=words)], None))
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
    if "log_level" not in option_names(workload.config):
        words = (
            "Lowest level of log records that are shown, and written to the logs of tasks. DEBUG tells where and when "
            "each attempt at a task begins, and how it and each worker ends."
        )
        fields.append(("log_level", Annotated[LogLevel, tyro.conf.arg(help=words)], "WARNING"))
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
