"""Worker functions for the tests: what a task can do well, and all it can do badly."""

import ctypes
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np

import mgpu_nb
from mgpu_nb.context import cached

if TYPE_CHECKING:
    import numpy as np
    import torch

T = TypeVar("T")


def add(a: int, b: int = 1) -> int:
    return a + b


def raises(text: str = "bad") -> NoReturn:
    raise ValueError(text)


def times_out(text: str) -> NoReturn:
    raise TimeoutError(text)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfaults() -> None:
    ctypes.string_at(0)


def exits(code: int = 0) -> NoReturn:
    os._exit(code)


def hangs(seconds: float = 60.0) -> None:
    time.sleep(seconds)


def unpicklable() -> Iterator[int]:
    return (i for i in range(3))


def out_of_memory() -> NoReturn:
    raise MemoryError("no room")


def touches(path: str, value: T) -> T:
    with pathlib.Path(path).open("a") as file:
        file.write("x")
    return value


def blocks_until(path: str) -> str:
    while not pathlib.Path(path).exists():
        time.sleep(0.005)
    return path


def floods(size: int) -> int:
    sys.stderr.write("y" * size)
    return size


def says(text: str) -> str:
    print(text)
    return text


def random_numbers(n: int) -> "torch.Tensor":
    import torch

    return torch.randn(n) @ torch.randn(n, n)


def fails_until(path: str, attempts: int) -> int:
    with pathlib.Path(path).open("a") as file:
        file.write("x")
    if len(pathlib.Path(path).read_text()) < attempts:
        raise RuntimeError("not yet")
    return mgpu_nb.worker().attempt


class BadToUnpickle(Exception):
    def __init__(self, a: str, b: str) -> None:
        super().__init__(f"{a}-{b}")


def raises_bad() -> NoReturn:
    raise BadToUnpickle("one", "two")


class Bomb:
    """Pickles well and does not unpickle."""

    def __reduce__(self) -> tuple[Callable[[str], NoReturn], tuple[str]]:
        return raises, ("in unpickling",)


def returns_bomb() -> Bomb:
    return Bomb()


def spawns_child(path: str) -> None:
    import subprocess

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path(path).write_text(str(child.pid))
    killed()


_FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
with open(sys.argv[1] + ".part", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""


def leaves_a_family(path: str) -> None:
    """End well with a child that has a child in a session of its own."""
    import subprocess

    subprocess.Popen([sys.executable, "-c", _FAMILY, path])
    while not pathlib.Path(path).exists():
        time.sleep(0.01)


def says_nothing(value: T) -> T:
    return value


def fits_up_to_37(batch_size: int) -> None:
    import torch

    if batch_size > 37:
        raise torch.OutOfMemoryError(f"CUDA out of memory: {batch_size}")


def out_of_memory_for(batch_size: int) -> NoReturn:
    raise MemoryError(batch_size)


def too_large_at_first(path: str) -> None:
    """Run out of memory at the first attempt."""
    if not pathlib.Path(path).exists():
        pathlib.Path(path).touch()
        raise MemoryError("too large")
    time.sleep(0.3)


def keeps(key: str, array: "np.ndarray[Any, Any]") -> None:
    mgpu_nb.worker().state[key] = array


def kept_sums() -> list[float]:
    return [float(array.sum()) for array in mgpu_nb.worker().state.values()]


_loads_so_far = 0


@cached(2)
def _loads(name: str) -> Any:
    global _loads_so_far
    _loads_so_far += 1
    return np.full(40 * 2**20, 1, np.uint8)


def uses(name: str) -> tuple[int, int]:
    _loads(name)
    return _loads_so_far, os.getpid()


_models: list[bytes] = []


def keeps_a_model() -> int:
    """Load a model into a global variable, once."""
    if not _models:
        _models.append(os.urandom(1) * (40 * 2**20))
    return os.getpid()


def leaks(keep: list[Any] = []) -> int:  # noqa: B006 - what it leaks to
    keep.append(np.full(40 * 2**20, 1, np.uint8))
    return os.getpid()


class NotForDisk:
    pass


def not_for_disk() -> NotForDisk:
    return NotForDisk()
