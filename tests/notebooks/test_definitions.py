"""From a real kernel: what its cells define, in workers and in what these start; modules beside the notebook."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel import Notebook


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path_factory.mktemp("notebook"))
    notebook.run("""
        import functools, inspect, multiprocessing, pickle, traceback
        from mgpu_nb import GPUPool, Task
        pool = GPUPool(slots=1)
    """)
    yield notebook
    notebook.close()


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    return  # the kernel and its workers live on


def write(path: Path, text: str) -> None:
    path.write_text(text)


def test_classes_of_cells(notebook: Notebook) -> None:
    notebook.run("""
        class Net:
            threshold = 0.1
            def __init__(self, n): self.n = n
        @functools.cache
        def table(n): return list(range(n))
        def make(n): return Net(table(n)[-1])
        def again(): return type(pickle.loads(pickle.dumps(Net(1)))) is Net
        def square(x): return x * x
        def pooled(method):
            with multiprocessing.get_context(method).Pool(1) as processes: return processes.map(square, range(3))
        def load(path):
            with open(path, "rb") as file: return pickle.load(file).n
    """)
    assert (
        notebook.run("""
            future = pool.submit(make, 5)
            Net.threshold = 0.9
            net = future.result(60)
            print(type(net) is Net, net.n, Net.threshold, pool.submit(again).result(60))
        """)
        == "True 4 0.9 True"
    )
    assert (
        notebook.run("print([pool.submit(pooled, m).result(60) for m in ('fork', 'spawn')])")
        == "[[0, 1, 4], [0, 1, 4]]"
    )
    cell = """
        with open("net.pickle", "wb") as file: pickle.dump(Net(7), file)
        print(pool.submit(load, "net.pickle").result(60))
    """
    assert notebook.run(cell) == "7"
    notebook.run("class Net:\n    n = 'new'\n    def __init__(self, n): pass")
    assert notebook.run(cell) == "new"


def test_sources_of_cells(notebook: Notebook) -> None:
    notebook.run("""
        def fails(x):
            return 1 / x  # this line
        def source(): return inspect.getsource(fails)
        def trace():
            try: fails(0)
            except ZeroDivisionError: return traceback.format_exc()
    """)
    assert notebook.run("print(pool.submit(source).result(60))").endswith("return 1 / x  # this line")
    assert "return 1 / x  # this line" in notebook.run("print(pool.submit(trace).result(60))")
    assert notebook.run("pool.submit(fails, 0).result(60)").startswith("ZeroDivisionError")
    assert "return 1 / x  # this line" in "".join(notebook.traceback)


def test_what_a_cell_cannot_send_is_named(notebook: Notebook) -> None:
    notebook.run("""
        numbers = (n for n in range(3))
        def shell():
            !ls
        def generated(): return [n for n in numbers]
        def said(fn):
            try: pool.submit(fn)
            except Exception as error: print(*error.__notes__)
    """)
    assert "global get_ipython is the notebook's own" in notebook.run("said(shell)")
    assert "the function generated: global numbers is a generator" in notebook.run("said(generated)")


def test_autoreload_and_names_imported_from_a_module(notebook: Notebook) -> None:
    module = notebook.folder / "steps.py"
    text = "SCALE = 1\ndef answer(): return {0!r}, SCALE\nclass Model:\n    def name(self): return {0!r}\n"
    write(module, text.format("old"))
    notebook.run("%load_ext autoreload\n%autoreload 2")
    notebook.run("""
        import steps
        from steps import answer, Model
        def both(): return answer(), Model().name(), steps.answer()
        def of_object(model): return model.name()
        model = Model()
    """)
    ask = """
        calls = pool.submit(answer), pool.submit(both), pool.submit(of_object, model)
        print(calls[0].result(60)[0], *calls[1].result(60), calls[2].result(60))
    """
    assert notebook.run(ask) == "old ('old', 1) old ('old', 1) old"
    for new in ("new, and longer", "new once more"):
        write(module, text.format(new))
        assert notebook.run(ask) == f"{new} ({new!r}, 1) {new} ({new!r}, 1) {new}"
        assert notebook.run("print(isinstance(pool.submit(Model).result(60), steps.Model))") == "True"


def test_names_imported_from_a_module_that_is_edited_and_not_reloaded(notebook: Notebook) -> None:
    notebook.run("%load_ext autoreload\n%autoreload 0")
    module = notebook.folder / "plain.py"
    write(module, "def answer():\n    return 'old'\n")
    notebook.run("from plain import answer as plain_answer")
    assert notebook.run("print(pool.submit(plain_answer).result(60))") == "old"
    write(module, "def answer():\n    return 'new, and longer'\n")
    assert notebook.run("print(pool.submit(plain_answer).result(60))") == "new, and longer"
    notebook.run("import importlib, plain; importlib.reload(plain)")
    assert (
        notebook.run("print(plain_answer(), pool.submit(plain_answer).result(60))") == "old old"
    )  # as it is here
    assert notebook.run("print(pool.submit(plain.answer).result(60))") == "new, and longer"
