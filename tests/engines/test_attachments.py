"""What a worker is sent once: sources of cells, definitions of the notebook."""

import inspect
import linecache
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from cells import Cells, notebook

from mgpu_nb import GPUPool
from mgpu_nb.engines import attachments, definitions, payload
from mgpu_nb.engines.attachments import Sent, attachment, named


@pytest.fixture
def cells() -> Iterator[Cells]:
    with notebook() as cells:
        yield cells


def test_a_task_finds_the_source_of_cells(cells: Cells, pool: GPUPool) -> None:
    cells.run("""
        import doctest, inspect, sys, traceback
        offset = 1
        def plain(x):
            '''
            >>> plain(1)
            2
            '''
            return x + offset
        def source(): return inspect.getsource(plain)
        def fails():
            try: plain("a")  # the line
            except TypeError: return traceback.format_exc()
        def examples(): return plain and doctest.testmod().attempted
    """)
    cells.run(
        "def later(x): return plain(x)\ndef both(): return inspect.getsource(plain) + inspect.getsource(later)"
    )
    for _ in range(2):
        assert pool.submit(cells.source).result(60) == inspect.getsource(cells.plain)
        text = pool.submit(cells.fails).result(60)
        assert 'try: plain("a")  # the line' in text
        assert "return x + offset" in text
        assert pool.submit(cells.both).result(60).endswith("def later(x): return plain(x)\n")
    assert pool.submit(cells.examples).result(60) == 1
    with pytest.raises(TypeError) as caught:
        pool.submit(cells.plain, "a").result(60)
    assert str(caught.value.__cause__).count("return x + offset") == 1


def test_a_function_without_globals_has_its_source_too(cells: Cells, pool: GPUPool) -> None:
    cells.run("def f(): import inspect; return inspect.getsource(inspect.currentframe())")
    assert pool.submit(cells.f).result(60).startswith("def f(): import inspect")
    assert pool.submit(cells.f).result(60).startswith("def f(): import inspect")


def test_a_source_is_sent_once_and_a_new_one_when_the_cell_has_changed(cells: Cells) -> None:
    cells.run("k = 1\ndef f(): return k")
    sent = Sent()
    first = payload.dumps_call(cells.f, (), {})
    assert sent.missing(first.sources, None)
    again = payload.dumps_call(cells.f, (), {})
    assert again.sources == first.sources
    assert not sent.missing(again.sources, None)
    name = cells.f.__code__.co_filename
    linecache.cache[name] = (5, None, ["def g"], name)
    assert len(sent.missing(payload.dumps_call(cells.f, (), {}).sources, None)) == 1


def test_sources_of_files_and_very_long_ones_are_not_sent(cells: Cells) -> None:
    cells.run("k = 1\ndef f(): return k")
    name = cells.f.__code__.co_filename
    for entry in (
        (5, 1.0, ["def f"], name),
        (attachments.MAX_SOURCE + 1, None, ["def f"], name),
        (lambda: "",),
    ):
        linecache.cache[name] = entry
        assert payload.dumps_call(cells.f, (), {}).sources == ()


def test_a_worker_that_has_much_forgets_it_and_is_sent_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "MAX_SENT", 1000)
    first, second, third = (attachment("source", f"<{n}>", ["x" * 800]) for n in range(3))
    part = attachment("definition", b"")
    known = named({"f": part}, b"")
    sent = Sent()
    kinds = [
        [pickle.loads(body)[0] for _, body in sent.missing((one,), known)] for one in (first, second, third)
    ]
    assert kinds == [
        ["source", "definition", "names"],
        ["source"],
        ["forget", "source", "definition", "names"],
    ]
    assert not sent.missing((third,), known)
    assert sent.missing((first,), known)


def index(found: Any) -> set[str]:
    return set() if found is None else set(pickle.loads(found.names)[1])


def test_definitions_are_the_notebooks_own_and_are_pickled_when_they_change(
    cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells.run("""
        import functools, json, threading
        from json import JSONDecoder, dumps
        scale, big, lock = 2, bytes(10_000_000), threading.Lock()
        def f(): return scale
        def uses_lock(): return lock
        class A:
            def go(self): return big
        class Heavy: data = big
        class Locked: guard = lock
        alias = A
        @functools.cache
        def g(): return f()
        other = lambda: 1
    """)
    made: list[str] = []
    real = definitions._DefinitionPickler.dump

    def counted(self: Any, thing: Any) -> None:
        made.append(thing.__qualname__)
        real(self, thing)

    monkeypatch.setattr(definitions._DefinitionPickler, "dump", counted)
    look = definitions._Notebook()
    first = look()
    assert index(first) == {"f", "uses_lock", "A", "g"}
    assert first is not None
    assert sum(len(part.body) for part in first.parts) < 20_000
    made.clear()
    assert look() is first
    cells.run("unrelated = 5")
    assert look() is first
    cells.run("scale = 3")
    changed = look()
    assert changed is not None
    assert changed.parts == first.parts
    assert not made
    cells.run("A.extra = 1")
    after = look()
    assert after is not None
    assert len(set(after.parts) - set(first.parts)) == 1
    cells.run("del f, g, A, uses_lock, alias")
    assert index(look()) == set()


def test_a_constant_that_changes_in_place_is_seen(cells: Cells) -> None:
    cells.run("options = {'a': [1]}\ndef f(): return options")
    look = definitions._Notebook()
    first = look()
    assert look() is first
    cells.options["a"].append(2)
    changed = look()
    assert changed is not None
    assert changed is not first
    assert pickle.loads(pickle.loads(changed.names)[2]) == {"options": {"a": [1, 2]}}


def test_a_look_that_is_interrupted_is_made_again(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    cells.run("def f(): return 1")
    look = definitions._Notebook()
    look()
    cells.run("def g(): return 1")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(definitions._DefinitionPickler, "dump", interrupt)
        with pytest.raises(KeyboardInterrupt):
            look()
    assert index(look()) == {"f", "g"}
