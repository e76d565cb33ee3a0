"""What cells of a real kernel do beside a pool: they are interrupted, fail, fork, log, and make a second pool."""

import time
from collections.abc import Iterator

import pytest
from kernel import Notebook, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path_factory.mktemp("notebook"))
    notebook.run("""
        import logging, os, pathlib, threading, time, warnings
        from mgpu_nb import GPUPool, Task
        pool = GPUPool(slots=2)
        def blocks(name):
            pathlib.Path(name + ".began").touch()
            while not pathlib.Path(name).exists(): time.sleep(0.01)
            return name
    """)
    yield notebook
    notebook.close()


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    return  # the kernel and its workers live on


@pytest.mark.parametrize("size", [1, 200_000], ids=["small", "large"])
def test_an_interrupt_of_a_loop_of_submits_leaves_what_it_has_submitted(
    notebook: Notebook, size: int
) -> None:
    (notebook.folder / "many").unlink(missing_ok=True)
    cell = notebook.start(f"""
        futures = []
        for n in range(10**7):
            futures.append(pool.submit(len, bytes(n % 7 + {size})))
            if n == 200: pathlib.Path("many").touch()
    """)
    wait_until((notebook.folder / "many").exists, 60)
    notebook.manager.interrupt_kernel()
    assert notebook.finish(cell).startswith("KeyboardInterrupt")
    check = f"[f.result(60) for f in futures] == [n % 7 + {size} for n in range(len(futures))]"
    assert (
        notebook.run(f"print(len(futures) > 200, {check}, pool.submit(abs, -1).result(60))") == "True True 1"
    )
    notebook.run("del futures")


@pytest.mark.parametrize("isolation", ["worker", "task"])
def test_an_interrupt_while_workers_set_up_leaves_them(notebook: Notebook, isolation: str) -> None:
    notebook.run(f"""
        def prepares():
            with open("setups-{isolation}", "a") as file: file.write(".")
            blocks("ready-{isolation}")
        slow = GPUPool(slots=1, setup=prepares, isolation={isolation!r}, share=True)
    """)
    cell = notebook.start("pathlib.Path('submits').touch(); slow.submit(abs, -5).result(60)")
    wait_until((notebook.folder / f"ready-{isolation}.began").exists, 60)
    wait_until(
        (notebook.folder / "submits").exists, 60
    )  # a kernel that is idle hears nothing of an interrupt
    (notebook.folder / "submits").unlink()
    notebook.manager.interrupt_kernel()
    assert notebook.finish(cell).startswith("KeyboardInterrupt")
    (notebook.folder / f"ready-{isolation}").touch()
    assert notebook.run("print(slow.submit(abs, -6).result(60)); slow.shutdown()") == "6"
    # The worker of the interrupted call was not started again; with a process per task each has its own.
    assert (notebook.folder / f"setups-{isolation}").read_text() == {"worker": ".", "task": ".."}[isolation]


def test_two_interrupts_at_once_end_a_wait_and_harm_nothing(notebook: Notebook) -> None:
    for number in range(3):
        notebook.run(f"run = pool.run([Task(blocks, 'twice-{number}')] * 3, folder='twice-run-{number}')")
        wait_until((notebook.folder / f"twice-{number}.began").exists, 60)
        cell = notebook.start("pathlib.Path('waits').touch(); run.wait(50)")
        wait_until((notebook.folder / "waits").exists, 60)
        (notebook.folder / "waits").unlink()
        notebook.manager.interrupt_kernel()
        time.sleep(0.005 * number)
        notebook.manager.interrupt_kernel()
        said = notebook.finish(cell)
        assert (
            "KeyboardInterrupt" in said or not said
        )  # the second may strike the kernel as it tells of the first
        # The second may have come when the cell had ended: a kernel that is idle hears nothing of it.
        assert (
            notebook.run(
                "run.cancel(); print({record.status for record in run.wait(60).records}, len(run.records))"
            )
            == "{'cancelled'} 3"
        )
        assert notebook.run("print(pool.submit(abs, -7).result(60))") == "7"


def test_a_cell_that_fails_leaves_the_run(notebook: Notebook) -> None:
    notebook.run("run = pool.run([Task(blocks, 'goes-on', name=f't{n}') for n in range(3)], folder='fails')")
    wait_until((notebook.folder / "goes-on.began").exists, 60)
    assert notebook.run("run.frame()\n1 / 0").startswith("ZeroDivisionError")
    assert notebook.run("run.results(0.1)").startswith("TimeoutError")
    assert notebook.run("run.records[0]").startswith("IndexError")
    (notebook.folder / "goes-on").touch()
    assert notebook.run("print(run.results(60))") == "['goes-on', 'goes-on', 'goes-on']"


def test_a_pool_in_a_block_that_fails_ends_and_the_first_goes_on(notebook: Notebook) -> None:
    said = notebook.run("""
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with GPUPool(slots=2) as second:
                assert pool.submit(abs, -1).result(60) == second.submit(abs, -1).result(60) == 1
                late = [second.submit(blocks, "never") for _ in range(4)]
                while not pathlib.Path("never.began").exists(): time.sleep(0.01)
                pathlib.Path("never").touch()
                raise ValueError("in the middle")
    """)
    assert said == "ValueError: in the middle"
    assert notebook.run("print(len(told), 'a second pool takes' in str(told[0].message))") == "1 True"
    assert notebook.run("print([f.result(0) for f in late if not f.cancelled()] == ['never'] * 4)") == "True"
    assert notebook.run("print(pool.submit(abs, -2).result(60))") == "2"


def test_libraries_that_fork_the_kernel_disturb_neither_it_nor_the_pool(notebook: Notebook) -> None:
    notebook.run(
        "run = pool.run([Task(blocks, 'forked', name=f't{n}') for n in range(2)], folder='forked-run')"
    )
    wait_until((notebook.folder / "forked.began").exists, 60)
    assert notebook.run("""
        import multiprocessing, subprocess, torch
        from torch.utils.data import DataLoader
        with multiprocessing.get_context("fork").Pool(2) as forks:
            print(forks.map(abs, [-1, -2]))
        batches = DataLoader(torch.arange(6), batch_size=3, num_workers=2, multiprocessing_context="fork")
        print([batch.sum().item() for batch in batches])
        print(subprocess.run(["echo", "said"], capture_output=True, text=True).stdout.strip())
    """).splitlines() == ["[1, 2]", "[3, 12]", "said"]
    (notebook.folder / "forked").touch()
    assert notebook.run("print(run.results(60), [record.attempt for record in run.records])") == (
        "['forked', 'forked'] [1, 1]"
    )


def test_what_tasks_log_reaches_the_handlers_of_the_notebook(notebook: Notebook) -> None:
    assert (
        notebook.run("""
        import sys
        class Kept(logging.Handler):
            def __init__(self): super().__init__(); self.kept = []
            def emit(self, record): self.kept.append((record.name, record.levelname, record.getMessage()))
        kept = Kept()
        ours = logging.getLogger("ours")
        ours.addHandler(kept)
        ours.setLevel(logging.INFO)
        def says(n):
            logging.getLogger("ours.tasks").debug("not %s", n)
            logging.getLogger("ours.tasks").info("says %s", n)
        with GPUPool(slots=1, forward_logs=True, share=True) as telling:
            telling.run([Task(says, 1, name="one")], folder="logged").wait(60)
            telling.submit(says, 2).result(60)
        with GPUPool(slots=1, share=True) as quiet:
            quiet.submit(says, 3).result(60)
        print(kept.kept)
        ours.removeHandler(kept)
    """)
        == "[('ours.tasks', 'INFO', '[one] says 1'), ('ours.tasks', 'INFO', '[slot 0] says 2')]"
    )
