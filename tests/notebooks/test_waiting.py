"""Cells that wait: what they show, what they print, and that an event loop goes on meanwhile."""

from collections.abc import Iterator
from typing import Any

import pytest
from kernel import Notebook, wait_until

SETUP = """
    import asyncio, itertools, os, pathlib, threading, time
    from mgpu_nb import GPUPool, Task
    from mgpu_nb.views import waiting
    count = itertools.count()
    def until(path, text=""):
        if text: print(text, flush=True)
        while not os.path.exists(path): time.sleep(0.01)
        return text
    def fresh(): return os.path.abspath(f"go-{next(count)}")
    def two(go):
        tasks = [Task(until, go, f"from {i}", name=f"t{i}") for i in range(2)]
        return pool.run(tasks, name="two", folder=go + "-run")
    choose, waited = waiting._choose, threading.Event()
    def chosen(run, wanted):
        shown = choose(run, wanted)
        waited.set()
        return shown
    waiting._choose = chosen
    def soon(run, go):  # once it runs and is waited for: what is over before is not shown
        waited.clear()
        def touch():
            while len(run.running) < 2: time.sleep(0.01)
            waited.wait(60)
            pathlib.Path(go).touch()
        threading.Thread(target=touch).start()
    pool = GPUPool(slots=2)
    waiting.PATIENCE = 0.0  # at the first update: no test waits for half a second
"""
START = "go = fresh(); run = two(go); soon(run, go)\n"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path_factory.mktemp("waiting"))
    notebook.run(SETUP)
    yield notebook
    notebook.close()


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    return  # the kernel and its workers live on


def shown(notebook: Notebook, code: str) -> list[Any]:
    """Run a cell; return what it displayed, as text or HTML."""
    return displays(notebook.outputs(notebook.start(code)))


def displays(messages: list[dict[str, Any]]) -> list[Any]:
    kinds = ("display_data", "execute_result")
    data = [m["content"]["data"] for m in messages if m["msg_type"] in kinds]
    return [each.get("text/html", each["text/plain"]) for each in data]


@pytest.mark.parametrize(
    "wait", ["_ = run.wait(60)", "run.wait(60)", "values = run.results(60)", "_ = await run"]
)
def test_a_cell_that_waits_shows_the_run_once(notebook: Notebook, wait: str) -> None:
    (html,) = shown(notebook, START + wait)
    assert "2 of 2 done" in html
    assert "<b>two</b>" in html


def test_what_a_cell_shows_already_is_not_shown_again(notebook: Notebook) -> None:
    (html,) = shown(notebook, START + "display(run); run.wait(60)")
    assert "<b>two</b>" in html


def test_what_an_earlier_cell_shows_is_not_shown_again_where_nothing_changes(notebook: Notebook) -> None:
    (html,) = shown(notebook, "go = fresh(); run = two(go); run")
    assert "2 of 2" not in html
    messages = notebook.outputs(notebook.start("soon(run, go); _ = run.wait(60)"))
    assert displays(messages) == []
    updates = [m["content"]["data"]["text/html"] for m in messages if m["msg_type"] == "update_display_data"]
    assert "2 of 2 done" in updates[-1]


@pytest.mark.parametrize(
    "wait",
    [
        "_ = run.wait(60, progress=False)",
        "waiting.PATIENCE = 1e9; _ = run.wait(60); waiting.PATIENCE = 0.0",  # it was over before
        "other = threading.Thread(target=run.wait); other.start(); other.join()",
    ],
)
def test_nothing_is_shown(notebook: Notebook, wait: str) -> None:
    assert shown(notebook, START + wait) == []


def test_a_wait_that_was_asked_to_show_does(notebook: Notebook) -> None:
    code = START + "waiting.PATIENCE = 1e9; _ = run.wait(60, progress=True); waiting.PATIENCE = 0.0"
    assert len(shown(notebook, code)) == 1


def test_an_interrupted_or_limited_wait_leaves_the_panel_and_the_run(notebook: Notebook) -> None:
    notebook.run("go = fresh(); run = two(go)\nwhile len(run.running) < 2: time.sleep(0.01)")
    messages = notebook.outputs(notebook.start("run.wait(0.05)"))
    assert any(m["msg_type"] == "error" and m["content"]["ename"] == "TimeoutError" for m in messages)
    assert "2 running" in displays(messages)[0]
    cell = notebook.start("""
        def ready():
            while not run._ledger._watchers: time.sleep(0.005)
            pathlib.Path("waits").touch()
        threading.Thread(target=ready).start()
        run.wait(60, stream=True)
    """)
    wait_until((notebook.folder / "waits").exists, 60)
    notebook.manager.interrupt_kernel()
    assert "stopped waiting; run 'two' continues" in notebook.finish(cell)
    said = notebook.run("pathlib.Path(go).touch(); print(run.results(60, stream=True))")
    assert said.splitlines()[-1] == "['from 0', 'from 1']"  # after what the interrupt left unprinted


def test_the_end_of_a_block_shows_the_run_that_its_pool_waits_for(notebook: Notebook) -> None:
    code = """
        with GPUPool(slots=2, share=True) as another:
            go = fresh()
            run = another.run([Task(until, go)] * 2, name="in a block", folder=go + "-run")
            soon(run, go)
    """
    (html,) = shown(notebook, code)
    assert "<b>in a block</b>" in html
    assert "2 of 2 done" in html


def test_a_second_run_in_a_cell_is_a_line(notebook: Notebook) -> None:
    _, second = shown(notebook, START + "_ = run.wait(60)\n" + START + "_ = run.wait(60)")
    assert "<table" not in second
    assert "2 of 2 done, 2 ok" in second


def test_prints_come_with_the_name_of_their_task(notebook: Notebook) -> None:
    printed = notebook.run(START + "_ = run.wait(60, stream=True)")
    assert sorted(printed.splitlines()) == ["t0 | from 0", "t1 | from 1"]
    assert notebook.run("run.logs('t1', follow=True)") == "from 1"


def test_a_flood_is_cut_and_says_so(notebook: Notebook) -> None:
    notebook.run("""
        def flood(go):
            for i in range(200_000): print("line", i)
            until(go)
        go = fresh(); run = pool.run([Task(flood, go, name="flood")], folder=go + "-run")
        while "line 199999" not in run.logs("flood"): time.sleep(0.02)
        pathlib.Path(go).touch()
    """)
    printed = notebook.run("_ = run.wait(60, stream=True)")
    lines = printed.splitlines()
    assert len(printed) < 2**18
    assert lines[-1] == "flood | line 199999"
    first = int(lines[1].removeprefix("flood | line "))
    assert lines[0] == f"... {first:,} lines left out, see run.logs('flood')"


def test_an_event_loop_goes_on(notebook: Notebook) -> None:
    code = """
        go = fresh(); run = two(go); seen = []
        async def other():
            while len(run.running) < 2: await asyncio.sleep(0.01)
            pathlib.Path(go).touch()
            return "went on"
        async def records():
            return [record.name async for record in run]
        print(await asyncio.gather(run, other(), records(), run))
    """
    values = "['from 0', 'from 1']"
    said = notebook.run(code)
    assert said.startswith(f"[{values}, 'went on', [")
    assert said.endswith(f", {values}]")
    assert notebook.run("print(await run, [r.name async for r in run])").startswith(values)


def test_who_stops_awaiting_leaves_the_run(notebook: Notebook) -> None:
    assert (
        notebook.run("""
        go = fresh(); run = two(go)
        async def first(run):
            async for record in run: return record
        tasks = [asyncio.ensure_future(each) for each in (run._awaited(), first(run))]
        while len(run.running) < 2: await asyncio.sleep(0.01)
        for task in tasks: task.cancel()
        stopped = await asyncio.gather(*tasks, return_exceptions=True)
        print([type(error).__name__ for error in stopped], run.progress, run._ledger._watchers)
        pathlib.Path(go).touch()
        print(len(await run))
    """)
        == "['CancelledError', 'CancelledError'] 0 of 2 done, 2 running []\n2"
    )


def test_an_interrupt_of_an_awaiting_cell_leaves_the_run(notebook: Notebook) -> None:
    cell = notebook.start("""
        go = fresh(); run = two(go)
        async def tell():
            while not run._ledger._watchers: await asyncio.sleep(0.01)
            pathlib.Path("awaits").touch()
        told = asyncio.ensure_future(tell())
        await run
    """)
    wait_until((notebook.folder / "awaits").exists, 60)
    notebook.manager.interrupt_kernel()
    assert "CancelledError: stopped waiting; run 'two' continues" in notebook.finish(cell)
    assert notebook.run("pathlib.Path(go).touch(); print(len(await run))") == "2"


def test_a_future_is_awaited(notebook: Notebook) -> None:
    assert notebook.run("print(await asyncio.wrap_future(pool.submit(pow, 2, 3)))") == "8"


@pytest.fixture
def page(notebook: Notebook) -> Iterator[None]:
    """Let the kernel believe that a page with widgets is connected to it."""
    notebook.run("os.environ['JPY_SESSION_NAME'] = 'a page'")
    yield
    notebook.run("del os.environ['JPY_SESSION_NAME']")


@pytest.mark.usefixtures("page")
def test_a_map_shows_a_line_that_is_drawn_anew(notebook: Notebook) -> None:
    code = """
        waiting.PATIENCE_WITH_CALLS = 0.0
        def square(x): time.sleep(0.3); return x * x
        print(sum(pool.map(square, range(8), stream=True)))
    """
    messages = notebook.outputs(notebook.start(code))
    (html,) = displays(messages)
    assert "<b>square</b>" in html
    assert "of 8 done" in html
    updates = [m["content"]["data"]["text/html"] for m in messages if m["msg_type"] == "update_display_data"]
    assert "8 of 8 done" in updates[-1]
    assert "140" in str(messages)


def test_a_map_shows_nothing_where_no_page_is(notebook: Notebook) -> None:
    assert shown(notebook, "print(sum(pool.map(abs, range(8))))") == []
    assert len(shown(notebook, "print(sum(pool.map(abs, range(8), progress=True)))")) == 1


@pytest.mark.usefixtures("page")
def test_with_widgets_the_panel_is_live_and_ends_static(notebook: Notebook) -> None:
    code = """
        from mgpu_nb.views import panel
        def live():  # once the panel is there
            while panel.displayed(run._ledger) != "here": time.sleep(0.01)
            pathlib.Path(go).touch()
        go = fresh(); run = two(go)
        threading.Thread(target=live).start()
        run.results(60)
    """
    messages = notebook.outputs(notebook.start(code))
    first, left, _ = [
        m["content"]["data"] for m in messages if m["msg_type"] in ("display_data", "execute_result")
    ]
    assert "application/vnd.jupyter.widget-view+json" in first
    assert "Run.open(" in left["text/html"]
    updates = [m["content"]["data"]["text/html"] for m in messages if m["msg_type"] == "update_display_data"]
    assert any("2 of 2 done" in html for html in updates)
