"""When two tasks are the same task."""

import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jobs
import numpy as np
import pytest
import torch

from mgpu_nb import Task
from mgpu_nb.runs.fingerprint import Durations, fingerprint


@dataclass
class Options:
    rate: float = 0.1
    names: tuple = ("a",)


def make(constant):
    return lambda x: x + constant


VALUES = [
    0, 0.0, False, None, "0", b"0", (0,), [0], {0}, {"a": 0}, {"a": 1}, {"b": 0}, Options(), Options(0.2), Path("a"),
    np.zeros(2), np.zeros(2, np.float32), np.zeros((2, 1)), np.ones(2), torch.zeros(2), torch.ones(2),
    partial(pow, 2), partial(pow, 3), make(1), make(2), jobs.add, jobs.raises, [[0]], [0, 0],
]  # fmt: skip


def test_all_different_values_make_different_tasks():
    prints = [fingerprint(Task(jobs.add, value), 0) for value in VALUES]
    assert len({*prints}) == len(VALUES)
    assert prints == [fingerprint(Task(jobs.add, value), 0) for value in VALUES]


def test_order_of_sets_and_dicts_does_not_count():
    assert fingerprint(Task(jobs.add, {"a": 1, "b": 2}), 0) == fingerprint(
        Task(jobs.add, {"b": 2, "a": 1}), 0
    )
    assert fingerprint(Task(jobs.add, {"x", "y", "z"}), 0) == fingerprint(Task(jobs.add, {"z", "y", "x"}), 0)


def test_seed_counts_and_what_does_not_change_the_result_does_not():
    plain = fingerprint(Task(jobs.add, 1), 0)
    assert fingerprint(Task(jobs.add, 1), 1) != plain
    assert fingerprint(Task(jobs.add, a=1), 0) != plain
    assert fingerprint(Task(jobs.add, 1, name="n", cost=3, memory=5, timeout=7, retries=2), 0) == plain


def test_a_changed_body_or_default_is_another_task():
    def version(body):
        space = {"__name__": "__main__"}
        exec(body, space)
        return fingerprint(Task(space["f"], 1), 0)

    first = version("def f(x, y=1):\n    return x + y")
    assert version("\n\n# moved\ndef f(x, y=1):\n    return x + y") == first
    assert version("def f(x, y=2):\n    return x + y") != first
    assert version("def f(x, y=1):\n    return x - y") != first


def test_the_same_in_another_kernel():
    code = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}
from mgpu_nb import Task
from mgpu_nb.runs.fingerprint import fingerprint
import jobs
print(fingerprint(Task(jobs.add, {{"x", "y", 1.5}}, b={{"k": ("v", None)}}), 3))
"""
    prints = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert prints == {fingerprint(Task(jobs.add, {"x", "y", 1.5}, b={"k": ("v", None)}), 3) + "\n"}


def test_what_holds_itself_ends():
    loop = []
    loop.append(loop)
    assert fingerprint(Task(jobs.add, loop), 0)

    def calls_itself(n):
        return n and calls_itself(n - 1)

    assert fingerprint(Task(calls_itself, 1), 0)


def test_durations_forget_the_oldest():
    durations = Durations(size=2)
    for n, task in enumerate("abac"):
        durations.learn(task, float(n))
    assert [durations(task) for task in "abc"] == [2.0, None, 3.0]
    with pytest.raises(TypeError):
        durations()


HUGE = 10**5000
CONJ = torch.complex(torch.ones(2), torch.ones(2)).conj()
META = torch.empty(2, device="meta")


def cell(body):
    space = {"__name__": "__main__"}
    exec(body, space)
    return space["f"]


@pytest.mark.parametrize(
    ("first", "second", "args", "kwargs"),
    [
        ("def f(a): return a", "def f(*a): return a", (1,), {}),
        ("def f(a, b): return a - b", "def f(b, a): return b - a", (), {"a": 1, "b": 2}),
    ],
)
def test_a_changed_signature_is_another_task(first, second, args, kwargs):
    one, two = cell(first), cell(second)
    assert one(*args, **kwargs) != two(*args, **kwargs)
    assert fingerprint(Task(one, *args, **kwargs), 0) != fingerprint(Task(two, *args, **kwargs), 0)


def test_a_closure_over_a_name_without_a_value_has_an_identity():
    def task():
        return later

    assert fingerprint(Task(task), 0)
    later = 1


@pytest.mark.parametrize("value", [HUGE, CONJ, META], ids=["huge", "conjugate", "meta"])
def test_every_argument_has_an_identity(value):
    assert fingerprint(Task(abs, value), 0) == fingerprint(Task(abs, value), 0)
