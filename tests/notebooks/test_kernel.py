"""From a real Jupyter kernel: functions of its cells, its environment, its interrupts, its end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from kernel import Notebook, wait_until


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path)
    yield notebook
    notebook.close()


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path_factory.mktemp("notebook"))
    notebook.run("""
        import os, sys, time, gc, signal, importlib, threading, dataclasses, functools, pathlib
        from mgpu_nb import GPUPool, Task, worker
        pool = GPUPool(slots=2)
    """)
    yield notebook
    notebook.close()


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    return  # the shared kernel and its workers live on; what a fresh one leaves behind, its tests look at


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_functions_of_cells(notebook: Notebook) -> None:
    assert (
        notebook.run("""
        offset = 100
        def plain(x): return x + offset
        def outer(k):
            def inner(x): return x * k
            return inner
        class Adder:
            def __init__(self, n): self.n = n
            def add(self, x): return self.n + x
        @dataclasses.dataclass
        class Point:
            x: int
        def mirrored(p): return Point(-p.x)
        calls = [plain, outer(3), lambda x: x - 1, functools.partial(pow, 2), Adder(5).add]
        print([pool.submit(f, 4).result(60) for f in calls], pool.submit(mirrored, Point(7)).result(60) == Point(-7))
    """)
        == "[104, 12, 3, 16, 9] True"
    )


def test_a_module_beside_the_notebook_and_its_edits(notebook: Notebook) -> None:
    module = notebook.folder / "beside.py"
    module.write_text("def answer():\n    return 'old'\n")
    assert notebook.run("import beside; print(pool.submit(beside.answer).result(60))") == "old"
    module.write_text("def answer():\n    return 'edited, and longer'\n")
    assert notebook.run("print(pool.submit(beside.answer).result(60))") == "edited, and longer"
    module.write_text("def answer():\n    return 'edited and reloaded'\n")
    cell = "importlib.reload(beside); print({pool.submit(beside.answer).result(60) for _ in range(6)})"
    assert notebook.run(cell) == "{'edited and reloaded'}"
    assert (
        notebook.run("""
        with GPUPool(slots=1) as another:
            print(another.submit(beside.answer).result(60))
    """)
        == "edited and reloaded"
    )


def test_the_environment_and_the_folder_of_the_kernel(notebook: Notebook) -> None:
    ask = "print(pool.submit(os.getenv, 'COLOUR').result(60))"
    assert notebook.run(f"_ = get_ipython().run_line_magic('env', 'COLOUR=red')\n{ask}").endswith("red")
    assert notebook.run(f"os.environ['COLOUR'] = 'blue'\n{ask}") == "blue"
    assert notebook.run(f"del os.environ['COLOUR']\n{ask}") == "None"
    (notebook.folder / "below").mkdir()
    assert notebook.run(
        "os.chdir('below'); print(pool.submit(os.getcwd).result(60)); os.chdir('..')"
    ).endswith("below")


def test_what_tasks_print_is_in_their_log(notebook: Notebook) -> None:
    assert (
        notebook.run("""
        run = pool.run([Task(print, "grüße ✓", name="says")], folder="printed").wait(60)
        print(run.logs("says").strip())
    """)
        == "grüße ✓"
    )


def interrupted(notebook: Notebook) -> str:
    """Interrupt a cell that waits for the run; return what it says."""
    flag = notebook.folder / "waits"
    flag.unlink(missing_ok=True)
    cell = notebook.start("""
        def tell():
            while not run._ledger._watchers: time.sleep(0.005)
            pathlib.Path("waits").touch()
        threading.Thread(target=tell).start()
        run.wait(50)
    """)
    wait_until(flag.exists)
    notebook.manager.interrupt_kernel()
    return notebook.finish(cell)


def test_an_interrupted_wait_leaves_the_run_and_the_second_cancels(notebook: Notebook) -> None:
    notebook.run("""
        def blocks(path):
            pathlib.Path(path + ".began").touch()
            while not pathlib.Path(path).exists(): time.sleep(0.01)
        run = pool.run([Task(blocks, os.path.abspath("go"))], folder="interrupted")
    """)
    wait_until((notebook.folder / "go.began").exists)
    said = "KeyboardInterrupt: stopped waiting; run 'run' continues (0 of 1 done, 1 running)"
    assert said in interrupted(notebook)
    (line,) = notebook.traceback  # and not the frames of this package
    assert line.startswith(said)
    (notebook.folder / "go").touch()
    assert notebook.run("print(run.wait(30).records[0].status)") == "ok"
    notebook.run("run = pool.run([Task(blocks, os.path.abspath('never'))], folder='cancelled')")
    wait_until((notebook.folder / "never.began").exists)
    assert said in interrupted(notebook)
    assert "is being cancelled" in interrupted(notebook)
    assert notebook.run("print(run.wait(30).records[0].status)") == "cancelled"


def test_an_interrupted_map_is_one_line_and_begins_no_more_calls(notebook: Notebook) -> None:
    notebook.run("""
        def notes(n):
            pathlib.Path(f"call-{n}").touch()
            time.sleep(0.1)  # behind a call of no time the next are sent ahead, and begin
            while n and not pathlib.Path("go-on").exists(): time.sleep(0.01)
            return n
        fresh = GPUPool(slots=2, share=True)  # that has had no such calls
    """)
    cell = notebook.start("""
        for value in fresh.map(notes, range(5)):
            pathlib.Path("taken").touch()
            print(value)
    """)
    for mark in ("call-2", "taken"):
        wait_until((notebook.folder / mark).exists)
    time.sleep(0.5)  # until the loop waits for the next value
    notebook.manager.interrupt_kernel()
    assert "stopped waiting for notes: 1 values were taken" in notebook.finish(cell)
    assert len(notebook.traceback) == 1  # and not the frames of this package
    (notebook.folder / "go-on").touch()
    assert notebook.run("print(fresh.submit(abs, -1).result(60))") == "1"
    assert not (notebook.folder / "call-4").exists()
    notebook.run("fresh.shutdown()")


def test_the_traceback_of_a_failed_task_shows_the_users_code(notebook: Notebook) -> None:
    said = notebook.run("""
        def inner():
            return 1 / 0
        def divides():
            return inner()
        pool.run([Task(divides, name="bad")], name="tb", folder="traceback").results(60)
    """)
    assert said.endswith("ZeroDivisionError: division by zero")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(notebook.traceback))
    assert "return inner()" in shown  # in the worker
    assert "results(60)" in shown  # in the cell
    assert "task 'bad' of run 'tb' on cpu:" in shown
    ours = re.findall(r"mgpu_nb/(\S+?\.py)", shown)
    assert set(ours) <= {"runs/values.py"}, shown  # one frame of one line raises
    assert "wait_for" not in shown


def test_an_interrupt_of_other_code_leaves_the_workers(notebook: Notebook) -> None:
    pids = "print(sorted({pool.submit(os.getpid).result(60) for _ in range(20)}))"
    before = notebook.run(pids)
    cell = notebook.start("open('loops', 'w').close()\nwhile True: pass")
    wait_until((notebook.folder / "loops").exists)
    notebook.manager.interrupt_kernel()
    assert "KeyboardInterrupt" in notebook.finish(cell)
    after = notebook.run(pids)
    assert set(eval(after)) & set(eval(before))


def test_a_cell_run_again_ends_the_pool_it_replaces(notebook: Notebook) -> None:
    notebook.run("again = GPUPool(slots=2); print(again.submit(abs, 1).result(60))")
    count = "gc.collect(); print(sum(t.name == 'mgpu_nb-dispatcher' for t in __import__('threading').enumerate()))"
    for _ in range(4):
        notebook.run("again = GPUPool(slots=2); again.submit(abs, 1).result(60)")
    wait_until(lambda: notebook.run(count) == "2")  # the shared pool's, and the last one's
    wait_until(lambda: len(notebook.descendants()) == 1 + 2 + 2)  # a server, two pools of two
    notebook.run("again.shutdown()")


def test_a_fork_of_the_kernel_does_not_disturb_the_pool(notebook: Notebook) -> None:
    assert notebook.run("""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                pool.submit(abs, 1)
                said = "it took a task"
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(write, said.encode())
            os._exit(0)
        os.waitpid(child, 0)
        print(os.read(read, 999).decode(), pool.submit(abs, -3).result(60))
    """) == ("RuntimeError: this pool belongs to the process that made it; make a new one after a fork 3")


LONG = """
    import os, pathlib, time
    from mgpu_nb import GPUPool
    def runs_on(path):
        pathlib.Path(path).touch()
        time.sleep(600)
    pool = GPUPool(slots=2, isolation="worker")
    futures = [pool.submit(runs_on, os.path.abspath(f"began-{i}")) for i in range(4)]
    while not (os.path.exists("began-0") and os.path.exists("began-1")): time.sleep(0.01)
"""


@pytest.mark.parametrize("isolation", ["worker", "task"])
def test_a_killed_kernel_leaves_no_process(fresh: Notebook, isolation: str) -> None:
    fresh.run(LONG.replace("worker", isolation))
    left = fresh.descendants()
    assert len(left) == 3  # server and two workers
    os.kill(fresh.pid, signal.SIGKILL)
    assert gone(left, 60.0)


def test_workers_end_with_the_kernel_though_a_fork_of_it_lives(fresh: Notebook) -> None:
    fresh.run(LONG + "\n    child = os.fork()\n    if child == 0:\n        time.sleep(600)\n")
    forked = [p for p in psutil.Process(fresh.pid).children() if p.pid == int(fresh.run("print(child)"))]
    left = [p for p in fresh.descendants() if p not in forked]
    os.kill(fresh.pid, signal.SIGKILL)
    try:
        assert gone(left, 60.0)
        assert forked[0].is_running()
    finally:
        forked[0].kill()


@pytest.mark.parametrize("isolation", ["worker", "task"])
@pytest.mark.parametrize("end", ["shutdown", "restart"])
def test_a_kernel_that_is_shut_down_or_restarted_does_not_wait_for_its_tasks(
    fresh: Notebook, end: str, isolation: str
) -> None:
    fresh.run(LONG.replace("worker", isolation))
    left = fresh.descendants()
    began = time.monotonic()
    if end == "shutdown":
        fresh.manager.shutdown_kernel(now=False)
    else:
        fresh.manager.restart_kernel(now=False)
    assert time.monotonic() - began < 60  # its tasks take longer
    assert gone(left, 60.0)


@pytest.mark.parametrize(("last", "code"), [("", 0), ("raise ValueError('bad')", 1)])
def test_a_script_that_ends_waits_for_its_tasks(tmp_path: Path, last: str, code: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"""
from mgpu_nb import GPUPool
def double(x): return 2 * x
if __name__ == "__main__":
    pool = GPUPool(slots=1)
    for i in range(3):
        pool.submit(double, i).add_done_callback(lambda f: print(f.result(), flush=True))
    {last}
""")
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == code, ended.stderr
    assert ended.stdout.split() == ["0", "2", "4"]


STARTING = """
    from mgpu_nb import GPUPool, Task
    import time
    pool = GPUPool(slots=2)
    run = pool.run([Task(time.sleep, 600, name=f"t{i}") for i in range(6)], name="long", folder=FOLDER)
"""
RUNNING = (
    STARTING
    + """
    while any(slot.state != "busy" for slot in pool._dispatcher.activity().slots): time.sleep(0.01)
"""
)


def records(folder: Path) -> list[dict[str, str]]:
    """Records of a run, as its journal has them."""
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "record"]


def assert_no_false_record(folder: Path) -> None:
    for record in records(folder):
        assert (record["status"], record["error"]) == ("cancelled", "the notebook kernel ended"), record
        if record["started"] is None:
            assert record["traceback"] == ""


def test_a_restart_leaves_no_false_record(fresh: Notebook) -> None:
    for number in range(4):
        folder = fresh.folder / f"run-{number}"
        fresh.run((STARTING if number % 2 else RUNNING).replace("FOLDER", repr(str(folder))))
        left = fresh.descendants()
        fresh.manager.restart_kernel(now=False)
        fresh.client.wait_for_ready(timeout=60)
        assert gone(left, 60.0)
        assert_no_false_record(folder)
        assert fresh.run(f"from mgpu_nb import Run; print(Run.open({str(folder)!r}).done)") == "True"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("group", [False, True])
def test_a_kernel_that_is_ended_by_a_signal_leaves_no_false_record(
    fresh: Notebook, signum: signal.Signals, group: bool
) -> None:
    folder = fresh.folder / "run"
    fresh.run(RUNNING.replace("FOLDER", repr(str(folder))))
    left = fresh.descendants()
    (os.killpg if group else os.kill)(os.getpgid(fresh.pid) if group else fresh.pid, signum)
    assert gone(left, 60.0)
    assert_no_false_record(folder)


@pytest.mark.parametrize("group", [False, True])
def test_a_script_that_is_ended_by_a_signal_leaves_no_false_record(tmp_path: Path, group: bool) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "run"
    script.write_text(
        "if __name__ == '__main__':\n"
        + RUNNING.replace("FOLDER", repr(str(folder)))
        + "    print('runs', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"runs\n"
    left = psutil.Process(process.pid).children(recursive=True)
    (os.killpg if group else os.kill)(process.pid, signal.SIGTERM)
    process.wait(30)
    process.stdout.close()
    assert gone(left, 60.0)
    assert records(folder) == []
