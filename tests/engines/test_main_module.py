"""Classes, functions and globals of a notebook in its workers and in what these start."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cells import Cells, notebook

from mgpu_nb import GPUPool

CLASSES = """
    import abc, dataclasses, enum, functools, pickle, sys, typing
    class Net:
        threshold, seen = 0.1, 0
        class Part:
            size = 1
        def __init__(self, n=1): self.n, self.part = n, Net.Part()
        def scaled(self): return self.n * self.threshold
    class Colour(enum.Enum):
        RED = 1
        BLUE = 2
        CRIMSON = 1
    @dataclasses.dataclass(frozen=True, slots=True)
    class Point:
        x: int
    class Shape(abc.ABC):
        @abc.abstractmethod
        def area(self): ...
    class Square(Shape):
        def area(self): return 4
    class Pair(typing.NamedTuple):
        a: int
    class Failed(Exception): ...
    def in_function():
        class Local:
            size = 1
        return Local
    Local = in_function()
"""


@pytest.fixture
def cells() -> Iterator[Cells]:
    with notebook() as cells:
        yield cells


def test_a_value_leaves_the_classes_of_the_notebook_alone(cells: Cells, pool: GPUPool) -> None:
    cells.run(CLASSES)
    cells.run("""
        def make(): return Net(1), Net.Part(), Local(), Colour.CRIMSON, Point(1), Square(), Pair(1), Net, Failed()
        def fail(): raise Failed("so")
        def nothing(): return Net
    """)
    future = pool.submit(cells.make)
    failing = pool.submit(cells.fail)
    cells.run("""
        Net.threshold, Net.seen, Net.Part.size, Local.size = 0.9, 5, 2, 2
        Point.extra, Colour.extra, Square.area = 3, 4, 5
        Shape.extra, Failed.extra, Net.scaled = 6, 7, None
    """)
    net, part, local, colour, point, square, pair, kind, _ = future.result(60)
    assert type(net) is kind is cells.Net
    assert type(part) is cells.Net.Part
    assert type(local) is cells.Local
    assert colour is cells.Colour.RED
    assert point == cells.Point(1)
    assert type(square) is cells.Square
    assert type(pair) is cells.Pair
    with pytest.raises(cells.Failed):
        failing.result(60)
    cells.run("""
        values = (Net.threshold, Net.seen, Net.Part.size, Local.size, Point.extra, Colour.extra, Square.area)
        values += (Shape.extra, Failed.extra, Net.scaled)
    """)
    assert cells.values == (0.9, 5, 2, 2, 3, 4, 5, 6, 7, None)


def test_a_class_is_in_the_next_task_as_it_is_in_the_notebook_then(cells: Cells) -> None:
    cells.run(CLASSES)
    cells.run("""
        def look():
            found = Net.threshold, hasattr(Net, "seen"), Net(2).scaled(), getattr(Net, "left", None)
            Net.threshold, Net.left = 7, "behind"
            return found
    """)
    with GPUPool(slots=1) as pool:
        assert pool.submit(cells.look).result(60) == (0.1, True, 0.2, None)
        cells.run("""
            Net.threshold, Net.scaled, Net.left = 0.5, lambda self: "new", "here"
            del Net.seen
        """)
        assert pool.submit(cells.look).result(60) == (0.5, False, "new", "here")
        cells.run(CLASSES)
        assert pool.submit(cells.look).result(60)[:3] == (0.1, True, 0.2)


def test_bases_that_keep_a_list_of_their_subclasses(cells: Cells, pool: GPUPool) -> None:
    cells.run("""
        class Base:
            known = {}
            def __init_subclass__(cls, *, key, **rest):
                super().__init_subclass__(**rest)
                Base.known[key] = cls.name
        class One(Base, key=1):
            name = "one"
        def make():
            below = [kind.__name__ for kind in Base.__subclasses__()]
            return One(), dict(Base.known), below, One.__bases__ == (Base,)
    """)
    for _ in range(2):
        one, known, below, same = pool.submit(cells.make).result(60)
        assert type(one) is cells.One
        assert (known, below, same) == ({1: "one"}, ["One"], True)
    assert cells.Base.known == {1: "one"}
    assert cells.Base.__subclasses__() == [cells.One]


KINDS = """
    import abc, dataclasses, enum, functools, pickle, typing
    T = typing.TypeVar("T")
    UserId, P = typing.NewType("UserId", int), typing.ParamSpec("P")
    class Meta(type):
        made = []
        def __new__(meta, name, bases, space, *, table=False):
            meta.made.append(name)
            return super().__new__(meta, name, bases, space)
        def __init__(cls, *args, table=False): cls.table = table
    class Made(metaclass=Meta, table=True): ...
    class Box(typing.Generic[T]):
        def __init__(self, x): self.x = x
    class Slots:
        __slots__ = ("a", "__weakref__")
        def __init__(self): self.a = 1
    class One(Slots): __slots__ = "b"
    class Level(enum.Enum):
        LOW = (1, "x")
        HIGH = (2, "y")
        TOP = (2, "y")
        def __init__(self, number, text): self.number, self.text = number, text
    class Text(str, enum.Enum):
        A = "a"
    class Flags(enum.IntFlag):
        R = 1
        W = 2
    @functools.total_ordering
    class Ordered:
        def __init__(self, n): self.n = n
        def __eq__(self, other): return self.n == other.n
        def __lt__(self, other): return self.n < other.n
    @dataclasses.dataclass(kw_only=True)
    class Options:
        a: int = 1
        b: list = dataclasses.field(default_factory=lambda: [1])
        c: dataclasses.InitVar[int] = 3
        def __post_init__(self, c): self.a += c
    class Stated:
        def __getstate__(self): return {"x": 5}
    class Missing:
        def __reduce__(self): return "MISSING"
    MISSING = Missing()
    class Base(abc.ABC): ...
    @Base.register
    class Registered: ...
    class Field:
        def __set_name__(self, owner, name): self.name = name
        def __get__(self, instance, owner): return self.name
    class Described: field = Field()
    def objects(missing=MISSING):
        found = [Made(), Box(1), Slots(), One(), Level.TOP, Text.A, Flags.R | Flags.W, Ordered(1), Options(a=2)]
        found += [Stated(), Registered(), Described(), MISSING, UserId, P]
        again = pickle.loads(pickle.dumps(found))
        assert [type(x) for x in found] == [type(x) for x in again]
        assert missing is MISSING is again[-3]
        return found
    def facts():
        return (
            Made.table, Level.TOP.text, Level["TOP"] is Level.HIGH, Level((2, "y")).number, Text("a") is Text.A,
            Ordered(1) < Ordered(2), Options(a=2).a, isinstance(Registered(), Base), Described().field,
            Box[int].__args__[0], hasattr(One(), "__dict__"), UserId(3),
        )
"""


def test_classes_of_every_kind(cells: Cells, pool: GPUPool) -> None:
    cells.run(KINDS)
    for _ in range(2):
        found = pool.submit(cells.objects, cells.MISSING).result(60)
        assert [type(x) for x in found] == [type(x) for x in cells.objects()]
        assert found[4] is cells.Level.HIGH
        assert [x is y for x, y in zip(found[-3:], cells.objects()[-3:], strict=True)] == [True] * 3
        assert pool.submit(cells.facts).result(60) == cells.facts()
    assert cells.Meta.made == ["Made"]
    assert cells.Slots.__subclasses__() == [cells.One]


def test_what_a_function_brings_is_found_by_name(cells: Cells, pool: GPUPool) -> None:
    cells.run(CLASSES)
    cells.run("""
        def square(x): return x * x
        def again():
            return [pickle.loads(pickle.dumps(thing)) for thing in (
                square, Net, Net.Part, Colour.CRIMSON, Point(3), Pair(3), Square, square
            )] == [square, Net, Net.Part, Colour.RED, Point(3), Pair(3), Square, square]
        def names(): return sorted(name for name in vars(sys.modules["__main__"]) if not name.startswith("__"))
    """)
    assert pool.submit(cells.again).result(60)
    assert pool.submit(cells.again).result(60)
    assert pool.submit(cells.names).result(60) == ["names", "sys"]


def test_what_a_pickle_names_is_found_though_the_task_does_not_mention_it(
    cells: Cells, tmp_path: Path
) -> None:
    cells.run("""
        import pickle
        offset, data = 3, bytearray(5)
        def shift(x): return x + offset
        class Model:
            def __init__(self): self.shift = shift
            def __call__(self, x): return self.shift(x)
            def uses(self): return len(data)
        def load(path):
            with open(path, "rb") as file: return pickle.load(file)
        def call(path): return load(path)(1)
        def uses(path): return load(path).uses()
    """)
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps(cells.Model()))
    with GPUPool(slots=1) as pool:
        assert type(pool.submit(cells.load, path).result(60)) is cells.Model
        assert pool.submit(cells.call, path).result(60) == 4
        cells.run("offset = 5")
        assert pool.submit(cells.call, path).result(60) == 6
        cells.run("shift.__code__ = (lambda x: 'new').__code__")
        assert pool.submit(cells.call, path).result(60) == "new"
        with pytest.raises(NameError, match="data"):  # which is no constant
            pool.submit(cells.uses, path).result(60)
        cells.run("del Model")
        with pytest.raises(AttributeError, match="Model"):
            pool.submit(cells.call, path).result(60)


def test_what_a_task_has_stays_when_it_comes_to_find_more(
    cells: Cells, pool: GPUPool, tmp_path: Path
) -> None:
    cells.run("""
        import pickle
        def added(): return "a"
        class Base: level = 1
        class Model(Base):
            def __init__(self): self.needed = added
        def load(path):
            Base.level, mine = 2, added
            with open(path, "rb") as file: model = pickle.load(file)
            return Base.level, type(model).level, isinstance(model, Base), pickle.loads(pickle.dumps(mine)) is mine
    """)
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps(cells.Model()))
    for _ in range(2):
        assert pool.submit(cells.load, path).result(60) == (2, 2, True, True)


def test_tasks_of_two_states_of_a_notebook_do_not_mix(cells: Cells) -> None:
    cells.run("""
        import pickle, sys
        number = 0
        def helper(): return "first"
        def count():
            global number
            number += 1
            return number, helper(), hasattr(sys.modules["__main__"], "second")
    """)
    with GPUPool(slots=1) as pool:
        assert [pool.submit(cells.count).result(60) for _ in range(2)] == [(1, "first", False)] * 2
        first = [pool.submit(cells.count) for _ in range(20)]
        cells.run("""
            def helper(): return "second"
            def second(): return helper()
        """)
        second = [f for _ in range(20) for f in (pool.submit(cells.second), pool.submit(cells.count))]
        assert {future.result(60) for future in first} == {(1, "first", False)}
        assert {future.result(60) for future in second} == {"second", (1, "second", True)}


def test_setup_and_tasks_share_the_classes_of_the_notebook(cells: Cells) -> None:
    cells.run("""
        import pickle
        from mgpu_nb import worker
        rate = 2
        class Model:
            def __call__(self, x): return x * rate
        def setup(): return Model()
        def call(): return worker().state(3), type(pickle.loads(pickle.dumps(worker().state))).__name__
    """)
    with GPUPool(slots=1, setup=cells.setup) as pool:
        assert pool.submit(cells.call).result(60) == (6, "Model")
        assert pool.submit(len, "abc").result(60) == 3
        assert pool.submit(cells.call).result(60) == (6, "Model")


def test_the_main_of_this_process_is_its_own(cells: Cells, pool: GPUPool) -> None:
    cells.run("""
        number = 1
        def f():
            global number
            number = 2
            return f
    """)
    back = pool.submit(cells.f).result(60)
    assert back is not cells.f
    assert cells.number == 1
    assert sys.modules["__main__"] is cells.main


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_that_a_task_starts(cells: Cells, method: str) -> None:
    cells.run("""
        import inspect, multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        factor = 3
        class Result:
            class Part: ...
            def __init__(self, x): self.x, self.part = x * factor, Result.Part()
        def make(x): return Result(x)
        def source(x): return inspect.getsource(make)
        def deeper(method):
            with multiprocessing.get_context(method).Pool(1) as pool: return pool.map(source, [0])[0]
        def start(method):
            context = multiprocessing.get_context(method)
            with context.Pool(1) as pool: results = pool.map(make, range(3))
            with ProcessPoolExecutor(1, mp_context=context) as executor:
                text = executor.submit(deeper, method).result()
            return [r.x for r in results], {type(r) is Result for r in results}, {type(r.part) for r in results}, text
    """)
    with GPUPool(slots=1) as pool:
        numbers, same, parts, text = pool.submit(cells.start, method).result(120)
    assert (numbers, same, parts) == ([0, 3, 6], {True}, {cells.Result.Part})
    assert text == "def make(x): return Result(x)\n"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_torch_with_classes_of_the_notebook(cells: Cells, method: str, tmp_path: Path) -> None:
    cells.run("""
        import torch
        class Net(torch.nn.Module):
            def __init__(self): super().__init__(); self.layer = torch.nn.Linear(2, 2)
            def forward(self, x): return torch.relu(self.layer(x))
        class Data(torch.utils.data.Dataset):
            def __len__(self): return 4
            def __getitem__(self, i): return torch.tensor(float(i))
        def save(path):
            torch.save(Net(), path)
            return type(torch.load(path, weights_only=False)) is Net
        def load(path): return type(torch.load(path, weights_only=False))
        def loaded(method):
            loader = torch.utils.data.DataLoader(Data(), 2, num_workers=1, multiprocessing_context=method)
            return [batch.tolist() for batch in loader]
        def scripted(): return torch.jit.script(Net())(torch.ones(2)).shape
    """)
    path = tmp_path / "net.pt"
    with GPUPool(slots=1) as pool:
        assert pool.submit(cells.save, path).result(60)
        assert pool.submit(cells.load, path).result(60) is cells.Net
        assert pool.submit(cells.loaded, method).result(120) == [[0.0, 1.0], [2.0, 3.0]]
        assert pool.submit(cells.scripted).result(60) == (2,)
