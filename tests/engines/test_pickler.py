"""Functions of functools and other objects of a notebook, as they are sent."""

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jobs
import pytest
from cells import Cells, notebook

from mgpu_nb import GPUPool
from mgpu_nb.engines import payload

DECORATED = """
    import functools, pickle
    calls = 0
    @functools.lru_cache(maxsize=50, typed=True)
    def table(n): return [n]
    @functools.cache
    def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
    fib.note = "kept"
    @functools.singledispatch
    def kind(x): return "other"
    @kind.register
    def _(x: int): return "int"
    @kind.register(list)
    def _(x): return [kind(y) for y in x]
    def timed(fn):
        @functools.wraps(fn)
        def inner(*args): return "timed", fn(*args)
        return inner
    @timed
    def add(a, b): return a + b
    class Model:
        scale = 2
        @functools.lru_cache
        def cached(self, n): return n * self.scale
        @functools.cached_property
        def once(self): return [self.scale]
        @functools.singledispatchmethod
        def kind(self, x): return "other"
        @kind.register
        def _(self, x: int): return "int"
        def power(self, base, exponent): return base ** exponent
        square = functools.partialmethod(power, exponent=2)
        @classmethod
        @functools.cache
        def made(cls): return cls().scale
    class Holder:
        def __init__(self): self.fn, self.kind = fib, kind
    def tables(): return table(3), table.cache_parameters(), table.cache_info().currsize
    def numbers(): return fib(30), fib.note, fib.__name__, fib.cache_info().misses
    def kinds(): return kind(1), kind("a"), kind([1, "a"]), kind.__name__
    def adds(): return add(1, 2), add.__wrapped__(1, 2)
    def methods():
        model = Model()
        return (model.cached(2), model.cached.cache_info().misses, model.once, model.once is model.once, model.kind(1),
            model.kind("a"), model.square(3), Model.made())
    def holds(holder): return holder.fn(10), holder.kind(1)
    def again(): return [pickle.loads(pickle.dumps(f)) is f for f in (table, fib, kind, add)]
"""


@pytest.fixture
def cells() -> Iterator[Cells]:
    with notebook() as cells:
        cells.run(DECORATED)
        yield cells


def test_decorated_functions_of_the_notebook_work_in_a_worker(cells: Cells, pool: GPUPool) -> None:
    cells.fib(20)
    expected = {
        "tables": ([3], {"maxsize": 50, "typed": True}, 1),
        "numbers": (832040, "kept", "fib", 31),  # nothing was cached there
        "kinds": ("int", "other", ["int", "other"], "kind"),
        "adds": (("timed", 3), 3),
        "methods": (4, 1, [2], True, "int", "other", 9, 2),
        "again": [True] * 4,
    }
    futures = {name: pool.submit(getattr(cells, name)) for name in expected}
    assert {name: future.result(60) for name, future in futures.items()} == expected
    assert pool.submit(cells.holds, cells.Holder()).result(60) == (55, "int")
    assert pool.submit(cells.fib, 30).result(60) == 832040
    assert pool.submit(cells.kind, [1]).result(60) == ["int"]
    assert pool.submit(cells.Model().cached, 5).result(60) == 10
    assert cells.fib.cache_info().misses == 21


def through(value: Any) -> Any:
    packed = payload.dumps(value)
    return payload.loads(packed.body)


@functools.cache
def importable(x: int) -> int:
    return x


@functools.singledispatch
def dispatched(x: object) -> str:
    return "other"


def test_what_a_worker_can_import_is_sent_by_name() -> None:
    assert through(importable) is importable
    assert through(dispatched) is dispatched


def test_a_cache_of_an_importable_function() -> None:
    cached = functools.lru_cache(maxsize=3)(jobs.add)
    back = through(cached)
    assert back(1, 2) == 3
    assert back.__wrapped__ is jobs.add
    assert back.cache_info().maxsize == 3


def test_caches_in_closures_and_recursion() -> None:
    def make() -> Callable[[int], int]:
        @functools.cache
        def factorial(n: int) -> int:
            return 1 if n < 2 else n * factorial(n - 1)

        return factorial

    back = through(make())
    assert back(10) == 3628800
    assert back.cache_info().misses == 10


def test_a_cache_of_what_has_no_name(pool: GPUPool) -> None:
    with notebook() as cells:
        cells.run("""
            import functools
            nameless = functools.cache(functools.partial(pow, 2))
            dispatched = functools.singledispatch(functools.partial(pow, 3))
            def both(): return nameless(5), dispatched(2)
        """)
        assert pool.submit(cells.both).result(60) == (32, 9)
        assert pool.submit(cells.nameless, 3).result(60) == 8


class Key: ...


def test_references_that_keep_nothing_alive() -> None:
    key = Key()
    back_key, back, values = through(
        (key, weakref.WeakKeyDictionary({key: 1}), weakref.WeakValueDictionary({"a": key}))
    )
    assert back[back_key] == 1
    assert values["a"] is back_key
    del back_key
    assert not through(weakref.WeakKeyDictionary({Key(): 1}))
