"""When two tasks are the same task."""

import functools
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest
import torch

from mgpu_nb import Task
from mgpu_nb.runs.fingerprint import Digests, Durations, durations, fingerprint


@dataclass
class Options:
    rate: float = 0.1
    names: tuple[str, ...] = ("a",)


def make(constant: int) -> Callable[..., Any]:
    return lambda x: x + constant


def cell(body: str) -> Callable[..., Any]:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(body, space)
    f: Callable[..., Any] = space["f"]
    return f


def of(source: str, *args: Any, **kwargs: Any) -> str:
    """Return the fingerprint of a call of the `f` that a notebook's cell defines."""
    return fingerprint(Task(cell(source), *args, **kwargs), 0)


VALUES = [
    0, 0.0, False, None, "0", b"0", (0,), [0], {0}, {"a": 0}, {"a": 1}, {"b": 0}, Options(), Options(0.2), Path("a"),
    np.zeros(2), np.zeros(2, np.float32), np.zeros((2, 1)), np.ones(2), torch.zeros(2), torch.ones(2),
    partial(pow, 2), partial(pow, 3), make(1), make(2), jobs.add, jobs.raises, [[0]], [0, 0],
]  # fmt: skip


def test_all_different_values_make_different_tasks() -> None:
    prints = [fingerprint(Task(jobs.add, value), 0) for value in VALUES]
    assert len({*prints}) == len(VALUES)
    assert prints == [fingerprint(Task(jobs.add, value), 0) for value in VALUES]


def test_order_of_sets_and_dicts_does_not_count() -> None:
    assert fingerprint(Task(jobs.add, {"a": 1, "b": 2}), 0) == fingerprint(
        Task(jobs.add, {"b": 2, "a": 1}), 0
    )
    assert fingerprint(Task(jobs.add, {"x", "y", "z"}), 0) == fingerprint(Task(jobs.add, {"z", "y", "x"}), 0)


def test_seed_counts_and_what_does_not_change_the_result_does_not() -> None:
    plain = fingerprint(Task(jobs.add, 1), 0)
    assert fingerprint(Task(jobs.add, 1), 1) != plain
    assert fingerprint(Task(jobs.add, a=1), 0) != plain
    assert fingerprint(Task(jobs.add, 1, name="n", cost=3, memory=5, timeout=7, retries=2), 0) == plain


def test_a_changed_body_or_default_is_another_task() -> None:
    first = of("def f(x, y=1):\n    return x + y", 1)
    assert of("\n\n# moved\ndef f(x, y=1):\n    return x + y", 1) == first
    assert of("def f(x, y=2):\n    return x + y", 1) != first
    assert of("def f(x, y=1):\n    return x - y", 1) != first


def test_the_same_in_another_kernel() -> None:
    code = f"""
import sys; sys.path[:0] = {[str(Path(jobs.__file__).parent)]!r}
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


def test_what_holds_itself_ends() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert fingerprint(Task(jobs.add, loop), 0)

    def calls_itself(n: int) -> int:
        return n and calls_itself(n - 1)

    assert fingerprint(Task(calls_itself, 1), 0)


def test_durations_forget_the_oldest() -> None:
    durations = Durations(size=2)
    for n, task in enumerate("abac"):
        durations.learn(task, float(n))
    assert [durations(task) for task in "abc"] == [2.0, None, 3.0]
    with pytest.raises(TypeError):
        durations()  # type: ignore[call-arg]


HUGE = 10**5000
CONJ = torch.complex(torch.ones(2), torch.ones(2)).conj()
META = torch.empty(2, device="meta")


@pytest.mark.parametrize(
    ("first", "second", "args", "kwargs"),
    [
        ("def f(a): return a", "def f(*a): return a", (1,), {}),
        ("def f(a, b): return a - b", "def f(b, a): return b - a", (), {"a": 1, "b": 2}),
    ],
)
def test_a_changed_signature_is_another_task(
    first: str, second: str, args: tuple[int, ...], kwargs: dict[str, Any]
) -> None:
    one, two = cell(first), cell(second)
    assert one(*args, **kwargs) != two(*args, **kwargs)
    assert fingerprint(Task(one, *args, **kwargs), 0) != fingerprint(Task(two, *args, **kwargs), 0)


def test_a_closure_over_a_name_without_a_value_has_an_identity() -> None:
    def task() -> Any:
        return later

    assert fingerprint(Task(task), 0)
    later = 1


@pytest.mark.parametrize("value", [HUGE, CONJ, META], ids=["huge", "conjugate", "meta"])
def test_every_argument_has_an_identity(value: int | torch.Tensor) -> None:
    assert fingerprint(Task(abs, value), 0) == fingerprint(Task(abs, value), 0)


@pytest.mark.parametrize(
    ("one", "other", "args", "kwargs"),
    [
        ("def f(*x): return x", "def f(**x): return x", (), {}),
        ("def f(x): return x.real", "def f(x): return x.imag", (1,), {}),
        ("def f(x): return 1", "def f(x): return True", (1,), {}),
        ("def f(x): return 0.0", "def f(x): return -0.0", (1,), {}),
        ("def f(x): return [x for x in (1, 2)]", "def f(x): return [x for x in (1, 3)]", (1,), {}),
        ("def f(x): return x in {1, 2}", "def f(x): return x in {1, 3}", (1,), {}),
        (
            "def f(x):\n try:\n  x()\n  return 1\n except ValueError: return 2",
            "def f(x):\n x()\n try:\n  return 1\n except ValueError: return 2",
            (1,),
            {},
        ),
    ],
    ids=["star", "attribute", "type", "sign", "nested", "set", "try"],
)
def test_functions_that_give_other_results_are_other_tasks(
    one: str, other: str, args: tuple[int, ...], kwargs: dict[Any, Any]
) -> None:
    assert of(one, *args, **kwargs) == of(one, *args, **kwargs)
    assert of(one, *args, **kwargs) != of(other, *args, **kwargs)


@pytest.mark.parametrize(
    "value",
    [torch.zeros(1, 2)[:, 0], torch.tensor([1 + 2j]).conj().imag, len, "\udc80"],
    ids=["one of a row", "negative", "builtin", "surrogate"],
)
def test_every_argument_that_can_be_sent_has_a_fingerprint(value: Any) -> None:
    print_ = fingerprint(Task(abs, value), 0)
    assert re.fullmatch("[0-9a-f]{32}", print_)
    assert print_ != fingerprint(Task(abs, 0), 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros((0, 4)), np.zeros((4, 0))),
        (np.arange(4), np.arange(4)[::-1]),
        (np.zeros(2, "<f4"), np.zeros(1, "<f8")),
        (np.zeros(1, "datetime64[s]"), np.zeros(1, "datetime64[ns]")),
        (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16)),
        (["ab", "c"], ["a", "bc"]),
        (np.zeros(1, np.float32), torch.zeros(1)),
    ],
    ids=["empty shapes", "strides", "widths", "units", "halves", "cuts", "library"],
)
def test_what_has_the_same_bytes_is_not_the_same(one: Any, other: Any) -> None:
    assert fingerprint(Task(abs, one), 0) != fingerprint(Task(abs, other), 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
        (np.arange(6)[::2], np.array([0, 2, 4])),
        (torch.arange(6)[::2], torch.tensor([0, 2, 4])),
    ],
)
def test_layout_in_memory_does_not_count(
    one: np.ndarray[Any, Any] | torch.Tensor, other: np.ndarray[Any, Any] | torch.Tensor
) -> None:
    assert fingerprint(Task(abs, one), 0) == fingerprint(Task(abs, other), 0)


class Model:
    def __init__(self, rate: int) -> None:
        self.rate = rate

    def train(self, steps: int) -> float:
        return self.rate * steps


def test_a_method_counts_with_its_object_and_a_partial_with_its_keywords() -> None:
    assert fingerprint(Task(Model(1).train, 2), 0) == fingerprint(Task(Model(1).train, 2), 0)
    assert fingerprint(Task(Model(1).train, 2), 0) != fingerprint(Task(Model(2).train, 2), 0)
    one, two = (functools.partial(pow, 2, mod=mod) for mod in (5, 7))
    assert fingerprint(Task(one, 2), 0) != fingerprint(Task(two, 2), 0)


def test_what_was_not_learnt_is_not_known() -> None:
    task = fingerprint(Task(abs, object), 0)
    assert durations(task) is None
    durations.learn(task, 2.5)
    assert durations(task) == 2.5


def test_a_function_that_is_changed_in_place_is_another_task() -> None:
    def first(x: int, y: int = 1) -> int:
        return x + y

    def second(x: int, y: int = 1) -> int:
        return x - y

    before = fingerprint(Task(first, 1), 0)
    assert fingerprint(Task(first, 1), 0) == before
    first.__defaults__ = (True,)
    assert fingerprint(Task(first, 1), 0) != before
    first.__defaults__ = (1,)
    assert fingerprint(Task(first, 1), 0) == before
    first.__code__ = second.__code__
    assert fingerprint(Task(first, 1), 0) != before


def test_identities_are_those_of_earlier_versions() -> None:
    assert (
        fingerprint(Task("jobs:add", 1), 7) == "98faf0c52e99174c226c1220571f468c"
    )  # or earlier runs could not be resumed


class Counted:
    pickled = 0

    def __reduce__(self) -> Any:
        Counted.pickled += 1
        return bytes, (2**18,)


def test_a_large_object_of_several_tasks_is_hashed_once_and_the_tasks_are_the_same() -> None:
    array, tensor, counted = np.ones(2**16), torch.ones(2**16), Counted()
    large = [
        array,
        tensor,
        b"x" * 2**17,
        "y" * 2**17,
        list(range(1000)),
        {n: n for n in range(1000)},
        counted,
    ]
    tasks = [Task(jobs.add, n, large, {"a": large[n]}) for n in range(len(large))]
    alone = [fingerprint(task, 0) for task in tasks]
    assert len({*alone}) == len(tasks)
    Counted.pickled = 0
    digests = Digests()
    assert [fingerprint(task, 0, (), digests) for task in tasks] == alone
    assert Counted.pickled == 1
    array[7] = 3
    assert fingerprint(tasks[0], 0) != alone[0]


def test_a_large_list_that_contains_itself_is_the_same_wherever_it_is() -> None:
    inner: list[Any] = [0] * 1000
    outer = [inner, *range(1000)]
    inner[0] = outer
    digests = Digests()
    tasks = [Task(jobs.add, outer), Task(jobs.add, inner), Task(jobs.add, outer)]
    found = [fingerprint(task, 0, (), digests) for task in tasks]
    assert found == [fingerprint(task, 0) for task in tasks]


def test_a_function_with_a_cache_is_known_by_its_body() -> None:
    first, same, other = (functools.cache(cell(f"def f(x): return x + {k}")) for k in (1, 1, 2))
    first(5)
    assert fingerprint(Task(first, 1), 0) == fingerprint(Task(same, 1), 0) != fingerprint(Task(other, 1), 0)
