"""What a task refuses, names and import paths that cannot be, and the order of a graph."""

import dataclasses
import functools
import pickle

import jobs
import numpy as np
import pytest

from mgpu_nb import Task
from mgpu_nb.runs.graph import Graph
from mgpu_nb.tasks import check_name, import_path


@pytest.mark.parametrize(
    "wrong",
    [
        {"cost": float("inf")}, {"cost": True}, {"memory": True}, {"memory": -1}, {"devices": 1.0},
        {"timeout": float("nan")}, {"timeout": "3"}, {"timeout": -1}, {"retries": 1.0}, {"retries": True},
        {"seed": 0.0}, {"seed": True}, {"after": 5}, {"after": [5]}, {"after": [b"a"]}, {"name": 5},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_parameter_is_called_by_its_name(wrong):
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        Task(abs, 1, **wrong)


def test_numbers_of_numpy_are_numbers():
    task = Task(
        abs, 1, cost=np.float32(2), memory=np.int64(3), devices=np.int8(1), seed=np.uint64(4), timeout=0.5
    )
    assert (task.cost, task.memory, task.devices, task.seed) == (2, 3, 1, 4)


@pytest.mark.parametrize("name", ["", " ", "\t\n", ".", "..", "a/b", "a\\b", "a\0b"])
def test_a_name_that_cannot_name_a_file_is_refused(name):
    with pytest.raises(ValueError, match="run="):
        check_name(name, "run")


@pytest.mark.parametrize("name", ["a", "grüße 1", "...", "lr=0.1,wd=0", "x" * 300])
def test_a_name_that_can_is_returned(name):
    assert check_name(name) == name


@pytest.mark.parametrize("path", ["no_such.module:f", "os:", "os.path", "os:path.no", ".relative:f"])
def test_a_path_that_does_not_import_is_shown_with_the_reason(path):
    with pytest.raises(ValueError, match="does not import"):
        import_path(path)


def test_a_path_may_name_what_a_class_holds():
    assert import_path("collections:OrderedDict.fromkeys")("ab") == {"a": None, "b": None}


class Callable:
    def __call__(self):
        return 1


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (jobs.add, "jobs:add"),
        ("jobs:add", "jobs:add"),
        (functools.partial(functools.partial(jobs.add, 1), b=2), "jobs:add"),
        (Callable(), f"{__name__}:Callable"),
        (Callable, f"{__name__}:Callable"),
    ],
    ids=["function", "path", "partial", "object", "class"],
)
def test_kind_is_the_import_path(fn, kind):
    assert Task(fn).kind == kind


def test_a_task_survives_pickling_and_stays_frozen():
    task = Task(jobs.add, 1, b=2, name="x", after=["y", "z"], seed=5)
    back = pickle.loads(pickle.dumps(task))
    assert back == task
    with pytest.raises(dataclasses.FrozenInstanceError):
        back.seed = 6


def test_a_circle_reads_in_the_direction_of_waiting():
    with pytest.raises(ValueError, match=r"circle: (a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c);"):
        Graph({"a": ["b"], "b": ["c"], "c": ["a"], "free": []})
    with pytest.raises(ValueError, match="circle: a -> a;"):
        Graph({"a": ["a"]})


def test_an_unknown_name_like_no_other_gets_no_guess():
    with pytest.raises(ValueError, match=r"'a' waits for 'zzz', which is not a task of this run$"):
        Graph({"a": ["zzz"]})


def test_followers_of_a_task_that_failed_are_not_freed_by_the_others():
    graph = Graph({"bad": [], "good": [], "both": ["bad", "good"], "last": ["both"], "one": ["good"]})
    assert graph.ready() == ["bad", "good"]
    assert graph.done("good") == ["one"]
    assert graph.followers("bad") == ["both"]
    assert graph.followers("both") == ["last"]
    assert graph.order().index("both") < graph.order().index("last")
