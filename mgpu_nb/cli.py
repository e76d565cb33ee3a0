"""``mgpu-nb <workload> ...``: what the notebooks do, without a notebook."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from .pool import GPUPool
from .run import Run
from .workloads import protein

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = {"devices": _devices, "protein": _protein, "protein-train": _train}
    if not arguments or arguments[0] not in commands:
        print(f"usage: mgpu-nb {{{','.join(commands)}}} ... (--help after a command tells its options)")
        return 0 if arguments[:1] in ([], ["-h"], ["--help"]) else 2
    try:
        return commands[arguments[0]](arguments[1:])
    except (ValueError, TypeError, OSError) as error:
        print(f"mgpu-nb {arguments[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\nmgpu-nb {arguments[0]}: interrupted. {interrupt}", file=sys.stderr)
        return 130


def _devices(arguments: list[str]) -> int:
    from .device import devices

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
        codes.append(_run_protein(config, name or "protein"))
    return max(codes)


def _run_protein(config: Any, name: str) -> int:
    tasks = protein.tasks(config)
    folder = (
        Path(config.output_dir) / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}" if config.output_dir else None
    )
    with GPUPool(config.gpu_ids, config.slots, isolation="task") as pool:
        print(f"{name}: {len(tasks)} experiments on {pool!r}")
        run: Run = pool.run(tasks, name=name, folder=folder, seed=config.seed)
        try:
            run.wait()
        except KeyboardInterrupt:
            run.cancel()
            run.wait()
    report = protein.collect(run)
    print(report)
    for path in report.save():
        print(path)
    return 0 if all(record.ok for record in run.records) else 1


def _train(arguments: list[str]) -> int:
    config = tyro.cli(protein.TrainConfig, args=arguments, prog="mgpu-nb protein-train", use_underscores=True)
    print(protein.train(config))
    return 0
