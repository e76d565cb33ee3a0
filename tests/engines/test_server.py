"""The traps of a server that is forked from, each with real processes."""

import gc
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import psutil
import pytest

import mgpu_nb
from mgpu_nb import GPUPool, SetupError, Task, WorkerDied
from mgpu_nb.engines.servers import runtime


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Writes a module into a folder that only this kernel's sys.path knows."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.fixture
def server() -> Iterator[Callable[..., Any]]:
    """A server of this test's own, so that what is done to it disturbs no other test; those of others stay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "_servers", {})
        yield lambda: next(iter(runtime.servers))
        runtime.stop_servers()


def wait_until(what: Callable[..., Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def value_of(name: str) -> Callable[..., Any]:
    def ask() -> Any:
        import importlib
        import os

        module = importlib.import_module(name)
        return module.value, os.getpid(), os.getppid()

    return ask


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("ModuleNotFoundError", "import no_such_module_at_all"),
        ("ValueError", "raise ValueError('bad preload')"),
        ("SystemExit", "raise SystemExit(3)"),
    ],
)
def test_a_preload_that_fails_is_told_and_the_pool_works(
    module: Callable[..., Any],
    server: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    error: str,
    code: str,
) -> None:
    name = module(f"fails_with_{error.lower()}", code)
    with caplog.at_level(logging.WARNING), GPUPool(slots=1, preload=[name]) as pool:
        assert pool.submit(jobs.add, 1).result(60) == 2
    assert f"preloading {name} failed" in caplog.text
    assert error in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_libraries_of_a_server_find_our_defaults_or_what_the_user_chose(
    server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, own: dict[str, str], spins: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "MKL_CBWR", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    with GPUPool(slots=1) as pool:
        assert pool.submit(os.getenv, "GOMP_SPINCOUNT").result(60) == spins
    found = psutil.Process(server().process.pid).environ()  # torch is loaded there
    assert (found.get("GOMP_SPINCOUNT"), found["MKL_CBWR"]) == (spins, "AUTO,STRICT")


@pytest.mark.slow
def test_a_preload_of_the_kernels_path_is_shared(
    module: Callable[..., Any], server: Callable[..., Any]
) -> None:
    name = module("shared_by_workers", "import os\nvalue = os.getpid()\n")
    with GPUPool(slots=2, isolation="task", preload=[name]) as pool:
        seen = [pool.submit(value_of(name)) for _ in range(3)]
        values, pids, parents = zip(*[future.result(60) for future in seen], strict=True)
    assert {*values} == {*parents} == {server().process.pid}
    assert len({*pids}) == 3


@pytest.mark.slow
def test_an_edited_preload_makes_a_new_server(module: Callable[..., Any], server: Callable[..., Any]) -> None:
    name = module("edited_preload", "value = 'old'\n")
    with GPUPool(slots=1, isolation="task", preload=[name]) as pool:
        assert pool.submit(value_of(name)).result(60)[0] == "old"
        module("edited_preload", "value = 'edited'\n")
        assert pool.submit(value_of(name)).result(60)[0] == "edited"
        assert pool.submit(value_of(name)).result(60)[2] == server().process.pid


def threads_and_product() -> Any:
    import numpy as np
    import torch

    a = torch.ones(600, 600)
    return torch.get_num_threads(), float((a @ a)[0, 0]), float((np.ones((600, 600)) @ np.ones(600))[0])


@pytest.mark.slow
def test_workers_collect_garbage_but_not_among_what_they_share() -> None:
    with GPUPool(slots=1) as pool:
        assert pool.submit(gc.isenabled).result(60)
        assert pool.submit(gc.get_freeze_count).result(60) > 10_000


@pytest.mark.slow
def test_products_of_many_threads_do_not_hang_in_workers() -> None:
    import torch

    torch.ones(600, 600) @ torch.ones(600, 600)  # the kernel has run threads of its own
    with GPUPool(slots=1, threads=2) as pool:
        assert pool.submit(threads_and_product).result(60) == (2, 600.0, 600.0)
    with GPUPool(slots=1, threads=1, isolation="task") as pool:
        assert pool.submit(threads_and_product).result(60) == (1, 600.0, 600.0)


@pytest.mark.slow
def test_a_preload_that_wakes_cuda_is_named_and_workers_are_spawned(
    module: Callable[..., Any], server: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    name = module(
        "wakes_cuda", "import os, torch\ntorch.cuda.is_initialized = lambda: True\nvalue = os.getpid()\n"
    )
    with caplog.at_level(logging.WARNING), GPUPool(slots=1, preload=[name]) as pool:
        value, pid, _ = pool.submit(value_of(name)).result(100)
    assert value == pid  # imported by the worker itself
    assert f"preloading {name} initialised CUDA" in caplog.text


@pytest.mark.slow
def test_a_bad_fork_is_spawned_again(
    module: Callable[..., Any], server: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    code = """
        import os, torch
        server = os.getpid()
        torch.cuda._is_in_bad_fork = lambda: os.getpid() != server
        value = server
    """
    name = module("bad_for_forks", "\n".join(line.strip() for line in code.splitlines()))
    with caplog.at_level(logging.WARNING), GPUPool(slots=1, preload=[name]) as pool:
        value, pid, _ = pool.submit(value_of(name)).result(100)
    assert value == pid
    assert name in caplog.text
    assert "spawned, not forked" in caplog.text
    escape_formula = module("harmless_preload", "import os\nvalue = os.getpid()\n")
    with GPUPool(slots=1, preload=[escape_formula]) as pool:  # others go on forking
        value, pid, parent = pool.submit(value_of(escape_formula)).result(60)
    assert value == parent != pid


def cuda_asked() -> Any:
    import torch

    return torch.cuda.is_available(), torch.cuda.is_initialized(), torch.cuda._is_in_bad_fork()


@pytest.mark.slow
def test_asking_for_cuda_does_not_wake_it() -> None:
    with GPUPool(slots=1) as pool:
        assert pool.submit(cuda_asked).result(60)[1:] == (False, False)


@pytest.mark.slow
def test_a_variable_that_torch_reads_at_import_makes_a_new_server(
    server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with GPUPool(slots=1, isolation="task") as pool:
        before = pool.submit(os.getppid).result(60)
        monkeypatch.setenv("TORCH_SHOW_CPP_STACKTRACES", "1")
        assert pool.submit(os.getenv, "TORCH_SHOW_CPP_STACKTRACES").result(60) == "1"
        assert pool.submit(os.getppid).result(60) != before


def test_the_pools_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOUR", "kernel's")
    with GPUPool(slots=1, env={"COLOUR": "pool's"}) as pool:
        assert pool.submit(os.getenv, "COLOUR").result(60) == "pool's"
        monkeypatch.setenv("COLOUR", "kernel's again")
        assert pool.submit(os.getenv, "COLOUR").result(60) == "pool's"


@pytest.mark.slow
def test_spawned_workers_do_all_that_forked_ones_do() -> None:
    with GPUPool(slots=1, start_method="spawn") as pool:
        assert pool.submit(jobs.add, 1).result(100) == 2
        with pytest.raises(WorkerDied, match="SIGKILL"):
            pool.submit(jobs.killed).result(100)
        assert pool.submit(jobs.add, 2).result(100) == 3


@pytest.mark.slow
def test_a_killed_server_costs_what_ran_and_the_queue_goes_on(
    server: Callable[..., Any], tmp_path: Path
) -> None:
    with GPUPool(slots=1) as pool:
        tasks = [
            Task(jobs.blocks_until, str(tmp_path / "never"), name="first"),
            Task(jobs.add, 1, name="second"),
        ]
        run = pool.run(tasks, folder=tmp_path / "run")
        wait_until(lambda: run.progress.running)
        wait_until(
            lambda: (
                pool._dispatcher.workers.processes
                and next(iter(pool._dispatcher.workers.processes.values())).state == "busy"
            )
        )
        os.kill(server().process.pid, signal.SIGKILL)
        records = run.wait(60).records
    assert [record.status for record in records] == ["killed", "ok"]
    assert "server" in records[0].error


@pytest.mark.slow
def test_a_server_that_hangs_is_told_not_waited_for(server: Callable[..., Any]) -> None:
    with GPUPool(slots=1) as pool:
        pool.submit(jobs.add, 1).result(60)
        stopped = server().process.pid
        os.kill(stopped, signal.SIGSTOP)
        try:
            with (
                GPUPool(slots=1, start_timeout=0.3, grace=0.3) as hangs,
                pytest.raises(SetupError, match="not ready within"),
            ):
                hangs.submit(jobs.add, 1).result(30)
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert pool.submit(jobs.add, 2).result(60) == 3


@pytest.mark.slow
def test_pools_share_a_server_and_not_their_workers(server: Callable[..., Any]) -> None:
    with GPUPool(slots=1) as one:
        pid, parent = one.submit(os.getpid).result(60), one.submit(os.getppid).result(60)
        with GPUPool(slots=1) as two:
            assert two.submit(os.getppid).result(60) == parent
        assert one.submit(os.getpid).result(60) == pid


@pytest.mark.slow
def test_what_a_task_leaves_running_ends_with_it(tmp_path: Path) -> None:
    with GPUPool(slots=1, isolation="task") as pool:
        with pytest.raises(WorkerDied):
            pool.submit(jobs.spawns_child, str(tmp_path / "pid")).result(60)
        child = int((tmp_path / "pid").read_text())
        wait_until(lambda: not psutil.pid_exists(child))


def leaves_running(path: str) -> int:
    import subprocess
    import sys

    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid


def test_what_a_good_task_leaves_running_ends_with_its_process(tmp_path: Path) -> None:
    with GPUPool(slots=1, isolation="task") as pool:
        child = pool.submit(leaves_running, str(tmp_path)).result(60)
        wait_until(lambda: not psutil.pid_exists(child))


@pytest.mark.slow
def test_the_pools_environment_counts_at_the_import_of_preloads(
    module: Callable[..., Any], server: Callable[..., Any]
) -> None:
    name = module("reads_environment", "import os\nvalue = os.environ.get('TORCH_OF_THE_POOL')\n")
    with GPUPool(slots=1, preload=[name], env={"TORCH_OF_THE_POOL": "1"}) as pool:
        assert pool.submit(value_of(name)).result(60)[0] == "1"
    with GPUPool(slots=1, preload=[name]) as pool:
        assert pool.submit(value_of(name)).result(60)[0] is None


@pytest.mark.slow
def test_no_descriptor_is_left_open(server: Callable[..., Any]) -> None:
    with GPUPool(slots=2, isolation="task") as pool:
        # A function of this module would have each process import it, which takes .4 s.
        pool.submit(np.zeros, 2 * 2**20, np.uint8).result(60)
        pids = [os.getpid(), server().process.pid]
        before = [psutil.Process(pid).num_fds() for pid in pids]
        for _ in range(15):
            for future in [pool.submit(np.zeros, 2 * 2**20, np.uint8) for _ in range(2)]:
                assert len(future.result(60)) == 2 * 2**20
        wait_until(
            lambda: all(psutil.Process(pid).num_fds() <= n for pid, n in zip(pids, before, strict=True))
        )


PARENT = """
import sys, time
sys.path.insert(0, {folder!r})
from mgpu_nb import GPUPool
pool = GPUPool(slots=1, preload=["holds_the_gil"])
pool.submit(abs, 1)
time.sleep(600)
"""
HOLDS_THE_GIL = """
import os, re
open({place!r} + ".part", "w").write(str(os.getpid()))
os.rename({place!r} + ".part", {place!r})
re.match("(a*)*b", "a" * 60)
"""


@pytest.mark.slow
def test_a_server_that_imports_ends_with_its_parent(tmp_path: Path) -> None:
    place = tmp_path / "pid"
    (tmp_path / "holds_the_gil.py").write_text(HOLDS_THE_GIL.format(place=str(place)))
    code = PARENT.format(folder=str(tmp_path))
    package = str(Path(mgpu_nb.__file__).parents[1])
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=package)
    wait_until(place.exists, 60)
    imports = psutil.Process(int(place.read_text()))
    parent.kill()
    parent.wait()
    imports.wait(30)


def leaves_children() -> list[int]:
    sleep = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    return [
        subprocess.Popen(sleep).pid,
        subprocess.Popen(sleep, env={}).pid,
        subprocess.Popen(sleep, start_new_session=True).pid,
    ]


@pytest.mark.slow
def test_a_killed_server_leaves_nothing_that_its_tasks_started(server: Callable[..., Any]) -> None:
    with GPUPool(slots=1) as pool:
        children = pool.submit(leaves_children).result(60)
        os.kill(server().process.pid, signal.SIGKILL)
        assert pool.submit(jobs.add, 1).result(60) == 2
        wait_until(lambda: not any(psutil.pid_exists(child) for child in children))


@pytest.mark.slow
def test_a_server_that_is_killed_while_workers_start_costs_no_task_and_no_slot(
    server: Callable[..., Any],
) -> None:
    with GPUPool(slots=2) as pool:
        futures = [pool.submit(jobs.add, n) for n in range(20)]
        killed: set[int] = set()
        while len(killed) < 2:
            wait_until(lambda: any(s.process.pid not in killed for s in runtime.servers), 60)
            pid = next(s.process.pid for s in runtime.servers if s.process.pid not in killed)
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        assert [future.result(100) for future in futures] == [n + 1 for n in range(20)]
        assert not any(slot.retired for slot in pool._dispatcher.slots)


@pytest.mark.slow
def test_a_server_that_cannot_start_is_told(server: Callable[..., Any], tmp_path: Path) -> None:
    with GPUPool(slots=2, env={"PYTHONHOME": str(tmp_path)}) as pool:
        with pytest.raises(SetupError, match="exit code 1") as told:
            pool.submit(jobs.add, 1).result(100)
        assert "Python" in str(told.value)  # the end of what it wrote


REMOVED = """
import os, shutil, sys
os.chdir(sys.argv[1])
from mgpu_nb import GPUPool
shutil.rmtree(sys.argv[1])
with GPUPool(slots=1) as pool:
    print(pool.submit(pow, 2, 3).result(60))
"""


@pytest.mark.slow
def test_a_pool_starts_in_a_folder_that_was_removed_and_without_any_for_temporary_files(
    tmp_path: Path,
) -> None:
    (tmp_path / "gone").mkdir()
    script = tmp_path / "script.py"
    package = str(Path(mgpu_nb.__file__).parents[1])
    none = "import sys, tempfile\ntempfile._candidate_tempdir_list = lambda: []\n"
    script.write_text(f"{none}sys.path.insert(0, {package!r})\n{REMOVED}")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "gone")],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.stdout.strip() == "8", done.stderr


@pytest.mark.slow
def test_a_module_from_the_future_can_be_preloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "from_the_future.py"
    module.write_text("def f():\n    return 4\n")
    os.utime(module, (time.time() + 86_400,) * 2)
    monkeypatch.syspath_prepend(str(tmp_path))
    with GPUPool(slots=1, preload=["from_the_future"]) as pool:
        assert pool.submit(pow, 2, 2).result(60) == 4
