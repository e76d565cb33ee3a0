"""The part of a value that does not pickle is named."""

import collections
import dataclasses
import functools
import pickle
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgpu_nb import GPUPool
from mgpu_nb.engines import payload
from mgpu_nb.engines.unpicklable import unpicklable_part


class Holder:
    def __init__(self, hook: Any = None) -> None:
        self.size = 3
        self.hook = hook

    def method(self) -> None: ...


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner


@dataclasses.dataclass
class Config:
    lr: float
    callback: Any


class Refuses:
    def __reduce__(self) -> Any:
        raise ValueError("not me")


def generator() -> Any:
    return (n for n in range(3))


def closure(lock: Any) -> Any:
    return lambda: lock


def test_the_path_leads_to_the_innermost_part() -> None:
    lock, circle = threading.Lock(), [1, generator()]
    circle.append(circle)
    cases: list[tuple[Any, str]] = [
        (generator(), "x is a generator"),
        ({"model": Holder(generator())}, "x['model'].hook is a generator"),
        ([1, (2, {"a": lock})], "x[1][1]['a'] is a _thread.lock"),
        (Config(0.1, lock), "x.callback is a _thread.lock"),
        (Slotted([lock]), "x.inner[0] is a _thread.lock"),
        (functools.partial(print, lock), "x.args[0] is a _thread.lock"),
        (Holder(lock).method, "x.__self__.hook is a _thread.lock"),
        (closure(lock), "x: variable lock is a _thread.lock"),
        (circle, "x[1] is a generator"),
        (Holder(Refuses()), f"x.hook is a {__name__}.Refuses"),
        ({lock: 1}, "x: key <unlocked _thread.lock object at"),
        ([1, "a", None], ""),
    ]
    for value, expected in cases:
        assert unpicklable_part({"x": value}, payload._fails).startswith(expected)


def test_a_call_names_argument_or_function() -> None:
    lock = threading.Lock()
    for args, kwargs, expected in (
        ((1, [lock]), {}, "args[1][0]"),
        ((), {"model": Holder(lock)}, "kwargs['model'].hook"),
    ):
        with pytest.raises(TypeError) as caught:
            payload.dumps_call(print, args, kwargs)
        (note,) = caught.value.__notes__
        assert f"in this call {expected} is a _thread.lock" in note
    with pytest.raises(TypeError) as caught:
        payload.dumps_call(closure(lock), (), {})
    assert "the function closure" not in str(caught.value.__notes__)
    assert "variable lock is a _thread.lock" in caught.value.__notes__[0]


def test_a_function_that_uses_the_pool_is_told_so(pool: GPUPool) -> None:
    with pytest.raises(Exception) as caught:
        pool.submit(lambda: pool)
    assert "args[" not in caught.value.__notes__[0]
    assert "variable pool is a mgpu_nb.pool.GPUPool" in caught.value.__notes__[0]


def test_the_search_is_bounded() -> None:
    trials = 0

    def fails(_: Any) -> bool:
        nonlocal trials
        trials += 1
        return False

    assert unpicklable_part({f"x{n}": object() for n in range(10_000)}, fails) == ""
    assert trials == 2000
    deep: Any = threading.Lock()
    for _ in range(100):
        deep = [deep]
    assert unpicklable_part({"x": deep}, payload._fails).startswith("x[0][0]")


def cell(source: str) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "__main__", "lock": threading.Lock(), "generator": (n for n in [1])}
    exec(source, space)
    return space


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "def f(): return helper()\ndef helper(): return lock",
            "f: global helper: global lock is a _thread.lock",
        ),
        ("def f(): return [lock for _ in range(2)]", "f: global lock is a _thread.lock"),
        ("def f(): return lambda: (lambda: lock)", "f: global lock is a _thread.lock"),
        ("def f(*, a=[lock]): return a", "f: default a[0] is a _thread.lock"),
        ("def f(): return g() or lock\ndef g(): return f()", "f: global lock is a _thread.lock"),
        ("class A:\n guard = lock\ndef f(): return A()", "f: global A.guard is a _thread.lock"),
        ("class A:\n def go(self): return lock\ndef f(): return A", "f: global A.go: global lock is a"),
        (
            "class A:\n @property\n def p(self): return lock\nclass B(A): ...\ndef f(): return B",
            "f: global B: base A.p.fget: global lock is a _thread.lock",
        ),
        ("import functools\n@functools.cache\ndef f(): return lock", "f.__wrapped__: global lock is a"),
        (
            "def f(): return generator",
            "f: global generator is a generator, which does not pickle: make it within",
        ),
        (
            "def f(x): return x.lock\nlock = generator\nbad = 1\nf.note = [generator]",
            "f.note[0] is a generator",
        ),
    ],
)
def test_a_function_of_the_notebook_is_followed_to_what_it_uses(source: str, expected: str) -> None:
    with pytest.raises(TypeError) as caught:
        payload.dumps_call(cell(source)["f"], (), {})
    assert f"in this call the function {expected}" in caught.value.__notes__[0]


class OwnState:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rest = generator()

    def __getstate__(self) -> Any:
        return {"rest": [self.rest]}


def test_objects_that_say_themselves_how_they_are_pickled() -> None:
    lock = threading.Lock()
    cases: list[tuple[Any, str]] = [
        (OwnState(), "x: state ['rest'][0] is a generator"),
        (collections.deque([1, lock]), "x[1] is a _thread.lock"),
        (collections.defaultdict(closure(lock)), "x: arguments [0]: variable lock is a _thread.lock"),
        (map(abs, generator()), "x: arguments [1] is a generator"),
        (lock.acquire, "x.__self__ is a _thread.lock"),
        (types.SimpleNamespace(a=lock), "x.a is a _thread.lock"),
        (np.array([1, lock], object), "x[1] is a _thread.lock"),
    ]
    for value, expected in cases:
        assert unpicklable_part({"x": value}, payload._fails).startswith(expected)


def test_open_files_and_the_shell_are_told_what_to_do(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file, pytest.raises(pickle.PicklingError) as caught:
        payload.dumps_call(print, ({"log": file},), {})
    assert "args[0]['log'] is a _io.TextIOWrapper" in caught.value.__notes__[0]
    assert "open it within the function" in caught.value.__notes__[0]
    space = cell("def f(): get_ipython().system('ls')")
    shell = type(
        "InteractiveShell", (), {"__module__": "IPython.core.interactiveshell", "lock": space["lock"]}
    )()
    space["get_ipython"] = types.MethodType(lambda self: self, shell)
    with pytest.raises(Exception) as refused:
        payload.dumps_call(space["f"], (), {})
    assert "get_ipython is the notebook's own (lines with ! and % use it)" in refused.value.__notes__[0]
    assert "subprocess.run" in refused.value.__notes__[0]


def returns_nested() -> Any:
    return {"ok": 1, "model": Holder(n for n in range(3))}


def returns_refusal() -> Any:
    return Refuses()


def test_a_value_that_does_not_pickle_is_named(pool: GPUPool) -> None:
    with pytest.raises(
        TypeError, match=r"returned cannot be sent back: value\['model'\]\.hook is a generator"
    ) as caught:
        pool.submit(returns_nested).result(60)
    assert any("the call of returns_nested on cpu:" in note for note in caught.value.__notes__)
    with pytest.raises(ValueError, match="not me"):
        pool.submit(returns_refusal).result(60)
