"""Worker functions for the tests: what a task can do well, and all it can do badly."""

import ctypes
import os
import pathlib
import signal
import sys
import time

import numpy as np

import mgpu_nb
from mgpu_nb.context import cached


def add(a, b=1):
    return a + b


def raises(text="bad"):
    raise ValueError(text)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def segfaults():
    ctypes.string_at(0)


def exits(code=0):
    os._exit(code)


def hangs(seconds=60.0):
    time.sleep(seconds)


def unpicklable():
    return (i for i in range(3))


def out_of_memory():
    raise MemoryError("no room")


def touches(path, value):
    with open(path, "a") as file:
        file.write("x")
    return value


def blocks_until(path):
    while not pathlib.Path(path).exists():
        time.sleep(0.005)
    return path


def floods(size):
    sys.stderr.write("y" * size)
    return size


def says(text):
    print(text)
    return text


def random_numbers(n):
    import torch

    return torch.randn(n) @ torch.randn(n, n)


def fails_until(path, attempts):
    with open(path, "a") as file:
        file.write("x")
    if len(pathlib.Path(path).read_text()) < attempts:
        raise RuntimeError("not yet")
    return mgpu_nb.worker().attempt


class BadToUnpickle(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a}-{b}")


def raises_bad():
    raise BadToUnpickle("one", "two")


class Bomb:
    """Pickles well and does not unpickle."""

    def __reduce__(self):
        return raises, ("in unpickling",)


def returns_bomb():
    return Bomb()


def spawns_child(path):
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


def leaves_a_family(path):
    """End well with a child that has a child in a session of its own."""
    import subprocess

    subprocess.Popen([sys.executable, "-c", _FAMILY, path])
    while not pathlib.Path(path).exists():
        time.sleep(0.01)


def says_nothing(value):
    return value


def fits_up_to_37(batch_size):
    import torch

    if batch_size > 37:
        raise torch.OutOfMemoryError(f"CUDA out of memory: {batch_size}")


def out_of_memory_for(batch_size):
    raise MemoryError(batch_size)


def too_large_at_first(path):
    """Run out of memory at the first attempt."""
    if not pathlib.Path(path).exists():
        pathlib.Path(path).touch()
        raise MemoryError("too large")
    time.sleep(0.3)


def keeps(key, array):
    mgpu_nb.worker().state[key] = array


def kept_sums():
    return [float(array.sum()) for array in mgpu_nb.worker().state.values()]


_loads_so_far = 0


@cached(2)
def _loads(name):
    global _loads_so_far
    _loads_so_far += 1
    return np.full(40 * 2**20, 1, np.uint8)


def uses(name):
    _loads(name)
    return _loads_so_far, os.getpid()


def leaks(keep=[]):  # noqa: B006 - what it leaks to
    keep.append(np.full(40 * 2**20, 1, np.uint8))
    return os.getpid()
