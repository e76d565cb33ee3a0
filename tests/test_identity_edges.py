"""Tasks that look alike but are not, and arguments that must not break a fingerprint."""

import functools
import re

import numpy as np
import pytest
import torch

from mgpu_nb import Task
from mgpu_nb.runs.fingerprint import durations, fingerprint


def of(source, *args, **kwargs):
    """Return the fingerprint of a call of the `f` that a notebook's cell defines."""
    space = {"__name__": "__main__"}
    exec(source, space)
    return fingerprint(Task(space["f"], *args, **kwargs), 0)


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
def test_functions_that_give_other_results_are_other_tasks(one, other, args, kwargs):
    assert of(one, *args, **kwargs) == of(one, *args, **kwargs)
    assert of(one, *args, **kwargs) != of(other, *args, **kwargs)


@pytest.mark.parametrize(
    "value",
    [torch.zeros(1, 2)[:, 0], torch.tensor([1 + 2j]).conj().imag, len, "\udc80"],
    ids=["one of a row", "negative", "builtin", "surrogate"],
)
def test_every_argument_that_can_be_sent_has_a_fingerprint(value):
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
def test_what_has_the_same_bytes_is_not_the_same(one, other):
    assert fingerprint(Task(abs, one), 0) != fingerprint(Task(abs, other), 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
        (np.arange(6)[::2], np.array([0, 2, 4])),
        (torch.arange(6)[::2], torch.tensor([0, 2, 4])),
    ],
)
def test_layout_in_memory_does_not_count(one, other):
    assert fingerprint(Task(abs, one), 0) == fingerprint(Task(abs, other), 0)


class Model:
    def __init__(self, rate):
        self.rate = rate

    def train(self, steps):
        return self.rate * steps


def test_a_method_counts_with_its_object_and_a_partial_with_its_keywords():
    assert fingerprint(Task(Model(1).train, 2), 0) == fingerprint(Task(Model(1).train, 2), 0)
    assert fingerprint(Task(Model(1).train, 2), 0) != fingerprint(Task(Model(2).train, 2), 0)
    one, two = (functools.partial(pow, 2, mod=mod) for mod in (5, 7))
    assert fingerprint(Task(one, 2), 0) != fingerprint(Task(two, 2), 0)


def test_what_was_not_learnt_is_not_known():
    task = fingerprint(Task(abs, object), 0)
    assert durations(task) is None
    durations.learn(task, 2.5)
    assert durations(task) == 2.5
