"""Tasks are checked when they are made."""

import functools

import pytest

from mgpu_nb import Task
from mgpu_nb.tasks import check_name, derive_seed, import_path


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cost": -1}, "finite number"), ({"cost": float("nan")}, "finite number"), ({"cost": "1"}, "finite number"),
        ({"memory": 0}, "bytes"), ({"memory": 1.5}, "bytes"), ({"devices": 0}, "one slot"),
        ({"devices": True}, "one slot"), ({"timeout": 0}, "seconds"), ({"retries": -1}, "zero or more"),
        ({"seed": -1}, "2\\*\\*63"), ({"seed": 2**63}, "2\\*\\*63"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        Task(abs, 1, **wrong)


def test_functions_and_names_that_cannot_be():
    with pytest.raises(TypeError, match="function or an import path"):
        Task(3)
    with pytest.raises(ValueError, match=r"package\.module:function"):
        Task("math.sqrt", 4)
    with pytest.raises(TypeError, match="give its name"):
        Task(abs, 1, after=[Task(abs, 1)])
    for name, error in (
        ("", ValueError),
        ("..", ValueError),
        ("a/b", ValueError),
        ("a\\b", ValueError),
        (3, TypeError),
    ):
        with pytest.raises(error, match="name="):
            check_name(name)


def test_a_task_is_frozen_and_knows_its_kind():
    task = Task(abs, -1, name="x", after="y")
    assert (task.kind, task.after, task.args) == ("builtins:abs", ("y",), (-1,))
    with pytest.raises(AttributeError):
        task.name = "z"


def test_import_paths():
    assert import_path("os.path:join")("a", "b") == "a/b"
    for path in ("no_such_module:f", "os:no_such_name", "os.path:join.x"):
        with pytest.raises(ValueError, match="does not import"):
            import_path(path)


def test_seeds_follow_the_item_alone():
    seeds = [derive_seed(run, item) for run in range(20) for item in range(20)]
    assert len({*seeds}) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, 0) == 7689419447139100721  # for ever, or old runs could not be resumed


def test_a_partial_is_looked_through_and_nothing_else():
    class Proxy:
        depth = 0

        def __call__(self):
            pass

        @property
        def func(self):
            assert self.depth < 1, "looked through what is no partial"
            proxy = Proxy()
            proxy.depth = self.depth + 1
            return proxy

    assert Task(functools.partial(abs, 1)).kind == "builtins:abs"
    assert Task(Proxy()).kind.endswith("Proxy")
