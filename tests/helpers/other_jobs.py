"""Tasks for workers of another interpreter, which may have neither numpy nor torch."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import mgpu_nb


def where() -> tuple[tuple[int, int], str, str, dict[str, str], list[str]]:
    return (
        (sys.version_info.major, sys.version_info.minor),
        sys.executable,
        mgpu_nb.__file__ or "",
        dict(os.environ),
        list(sys.path),
    )


def double(x: Any) -> Any:
    return 2 * x


def pid() -> int:
    return os.getpid()


def device() -> str:
    return mgpu_nb.worker().device


def draw() -> float:
    import random

    return random.random()


def uses_torch() -> Any:
    import torch

    return torch.ones(2)


def leave() -> None:
    os._exit(7)


def wait(file: str) -> None:
    Path(file).write_text("begun")
    time.sleep(600)


class Trouble(Exception):
    """An error with more than its message."""

    def __init__(self, code: int) -> None:
        super().__init__(f"trouble {code}")
        self.code = code

    def __reduce__(self) -> Any:
        return Trouble, (self.code,)


def trouble() -> None:
    raise Trouble(3)


def makes_function() -> Any:
    return lambda: 1


def _child(connection: Any) -> None:
    connection.send(Path(mgpu_nb.__file__ or "").is_file())


def spawns() -> bool:
    """Whether a process that multiprocessing spawns here finds the package."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs,))
    process.start()
    found = bool(ours.recv())
    process.join()
    return found


def matmul(a: Any) -> Any:
    return a @ a, a.sum().item()


def seeded() -> tuple[float, float]:
    import numpy as np
    import torch

    return float(np.random.rand()), torch.rand(1).item()
