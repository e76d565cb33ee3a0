"""A warm worker gives each task a clean ground: what setup left, and nothing of an earlier task."""

import asyncio
import contextvars
import decimal
import faulthandler
import gc
import io
import locale
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgpu_nb import GPUPool, Task, worker

OWN: contextvars.ContextVar[int] = contextvars.ContextVar("own", default=0)


@pytest.fixture(scope="module")
def one(share: Callable[[GPUPool], Any]) -> Iterator[GPUPool]:
    """A pool of one slot for the tests of this module."""
    with share(GPUPool(slots=1)) as pool:
        yield pool


def look() -> dict[str, Any]:
    mask = os.umask(0)
    os.umask(mask)
    return {
        "folder": str(Path.cwd()),
        "variables": dict(os.environ),
        "zone": time.strftime("%z", time.localtime(0)),
        "path": list(sys.path),
        "argv": list(sys.argv),
        "umask": mask,
        "streams": [sys.stdin.fileno(), sys.stdout.fileno(), sys.stderr.fileno(), sys.stdout.closed],
        "handlers": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "timers": [signal.getitimer(which) for which in (signal.ITIMER_REAL, signal.ITIMER_PROF)],
        "faults": faulthandler.is_enabled(),
        "filters": [str(entry) for entry in warnings.filters],
        "shows warnings": str(warnings.showwarning),
        "collects": gc.isenabled(),
        "recursion": sys.getrecursionlimit(),
        "trace": (sys.gettrace(), sys.getprofile()),
        "hooks": (str(sys.excepthook), str(threading.excepthook)),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "locale": locale.setlocale(locale.LC_ALL),
        "decimal": decimal.getcontext().prec,
        "own variable": OWN.get(),
        "numpy": np.geterr(),
        "dtype": torch.get_default_dtype(),
        "device": torch.ones(1).device,
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "product": (torch.ones(2, 2) @ torch.ones(2, 2)).dtype,
        "threads": torch.get_num_threads(),
        "anomaly": torch.is_anomaly_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
    }


def replace_environment() -> None:
    os.chdir("/")
    os.environ["CUDA_VISIBLE_DEVICES"] = "3"
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    del os.environ["PATH"]
    sys.path.insert(0, "/nowhere")
    sys.argv = ["other"]
    os.umask(0o077)


def work_in_a_folder_that_goes(path: str) -> None:
    Path(path).mkdir()
    os.chdir(path)
    Path(path).rmdir()


def close_streams() -> None:
    sys.stdout.close()
    sys.stderr = io.StringIO()
    sys.stdin = io.StringIO()


def set_handlers() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGPROF, signal.SIGUSR1):
        signal.signal(number, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
    signal.setitimer(signal.ITIMER_PROF, 0.5, 0.5)
    faulthandler.disable()
    faulthandler.dump_traceback_later(0.5, exit=True)


def leave_an_alarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.5)  # without a handler it ends the process


def set_interpreter() -> None:
    warnings.simplefilter("error")
    warnings.showwarning = lambda *_, **__: None
    gc.disable()
    sys.setrecursionlimit(300)
    sys.settrace(lambda *_: None)
    sys.setprofile(lambda *_: None)
    sys.excepthook = threading.excepthook = lambda *_: None  # type: ignore[assignment]
    multiprocessing.set_start_method("spawn")
    for name in ("C", "C.UTF-8", "POSIX"):
        locale.setlocale(locale.LC_ALL, name)
    asyncio.set_event_loop(loop := asyncio.new_event_loop())
    loop.close()


def leave_little_depth() -> None:
    sys.setrecursionlimit(40)


def set_context() -> None:
    decimal.getcontext().prec = 5
    OWN.set(7)
    np.seterr(all="raise")


def set_torch() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_deterministic_debug_mode("warn")
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.autograd.set_detect_anomaly(True)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = True


def leave_contexts_open() -> None:
    kept: list[Any] = [torch.autocast("cpu", torch.bfloat16), torch.device("meta")]
    for context in kept:
        context.__enter__()
    vars(torch)["kept"] = kept


def leave_modes() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    FlopCounterMode(display=False).__enter__()
    torch.device("meta").__enter__()


SPOILERS: list[Callable[[], None]] = [
    replace_environment, close_streams, set_handlers, leave_an_alarm, set_interpreter, leave_little_depth, set_context,
    set_torch,
    leave_contexts_open, leave_modes,
]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILERS)
def test_what_a_task_leaves_does_not_reach_the_next(
    one: GPUPool, spoil: Callable[[], None], tmp_path: Path
) -> None:
    warnings.simplefilter("ignore")
    before, pid = one.submit(look).result(60), one.submit(os.getpid).result(60)
    one.submit(spoil).result(60)
    assert one.submit(look).result(60) == before

    def spoil_and_raise() -> None:
        spoil()
        raise ValueError("after it")

    with pytest.raises(ValueError, match="after it"):
        one.submit(spoil_and_raise).result(60)
    one.submit(time.sleep, 0.1).result(60)  # time for what would strike
    assert one.submit(look).result(60) == before
    assert one.submit(os.getpid).result(60) == pid  # the same process


def test_a_folder_that_is_gone_is_left(one: GPUPool, tmp_path: Path) -> None:
    one.submit(work_in_a_folder_that_goes, str(tmp_path / "gone")).result(60)
    assert one.submit(os.getcwd).result(60) == str(Path.cwd())


def test_what_cannot_be_set_back_costs_the_worker(one: GPUPool, tmp_path: Path) -> None:
    def infers() -> int:
        vars(torch)["kept"] = mode = torch.inference_mode()
        mode.__enter__()
        return os.getpid()

    first = one.submit(infers).result(60)
    assert one.submit(lambda: (os.getpid() != first, torch.is_inference_mode_enabled())).result(60) == (
        True,
        False,
    )

    def joins(file: str) -> int:
        torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
        return os.getpid()

    first = one.submit(joins, str(tmp_path / "a")).result(60)
    assert one.submit(joins, str(tmp_path / "b")).result(60) != first


def replace_descriptors() -> None:
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
    os.close(2)
    sys.stdout = sys.stderr = io.StringIO()


def speak() -> None:
    print("out")
    print("err", file=sys.stderr)
    os.system("echo child")


def test_each_task_has_its_own_log(one: GPUPool, tmp_path: Path) -> None:
    tasks = [Task(replace_descriptors, name="a"), Task(speak, name="b", after="a")]
    run = one.run(tasks, name="r", folder=tmp_path / "run").wait(60)
    assert sorted(run.logs("b").split()) == ["child", "err", "out"]


def leave_a_thread(go: str, said: str) -> None:
    def later() -> None:
        while not Path(go).exists():
            time.sleep(0.005)
        print("from the thread of a")
        print("and its errors", file=sys.stderr)
        Path(said).touch()

    threading.Thread(target=later, daemon=True).start()
    print("a itself")


def wait_for_it(go: str, said: str, log: str) -> None:
    print("b begins")
    # Its thread writes there itself, not by way of the pool, which may be yet to make the file.
    while not Path(log).exists() or "a itself" not in Path(log).read_text():
        time.sleep(0.005)
    Path(go).touch()
    while not Path(said).exists():
        time.sleep(0.005)
    thread = threading.Thread(target=print, args=("from a thread of b",))
    thread.start()
    thread.join()


def test_what_a_thread_prints_later_is_in_the_log_of_its_task(one: GPUPool, tmp_path: Path) -> None:
    files = str(tmp_path / "go"), str(tmp_path / "said")
    log = str(tmp_path / "run" / "logs" / "00000-a.log")
    tasks = [Task(leave_a_thread, *files, name="a"), Task(wait_for_it, *files, log, name="b", after="a")]
    run = one.run(tasks, name="r", folder=tmp_path / "run").wait(60)
    assert not run.failures
    assert run.logs("b") == "b begins\nfrom a thread of b\n"
    assert run.logs("a") == "a itself\nfrom the thread of a\nand its errors\n"
    assert one.submit(lambda: type(sys.stdout).__name__).result(60) in ("Stream", "_SortedStream")


def test_what_setup_sets_is_the_ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()

    def setup(folder: str = str(tmp_path)) -> None:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        os.environ["OF_SETUP"] = "1"
        os.environ.pop("GONE", None)
        os.chdir(f"{folder}/own")
        sys.path.insert(0, folder)
        os.umask(0o027)
        decimal.getcontext().prec = 9
        torch.manual_seed(5)
        warnings.simplefilter("ignore")

    monkeypatch.setenv("GONE", "there")
    with GPUPool(slots=1, setup=setup) as pool:
        first = pool.submit(look).result(60)
        assert first["dtype"] == torch.float64
        assert first["device"].type == "meta"
        assert first["folder"] == str(tmp_path / "own")
        assert first["path"][0] == str(tmp_path)
        assert (first["umask"], first["decimal"]) == (0o027, 9)
        assert first["variables"]["OF_SETUP"] == "1"
        assert "GONE" not in first["variables"]
        for spoil in (replace_environment, set_context, set_torch):
            pool.submit(spoil).result(60)
        assert pool.submit(look).result(60) == first
        monkeypatch.setenv("LATER", "2")  # another environment does not replace what setup has set
        monkeypatch.chdir(tmp_path)
        later = pool.submit(look).result(60)
        assert later["variables"].pop("LATER") == "2"
        assert later == first
        assert pool.submit(torch.initial_seed).result(60) == 5


def test_what_an_import_sets_stays(one: GPUPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in_double_precision.py").write_text(
        "import os, torch\nfrom mgpu_nb import context\n"
        "if context._current is not None:  # not in the parent process, which imports it as well\n"
        "    torch.set_default_dtype(torch.float64)\n    os.environ['OF_IMPORT'] = '1'\n"
        "def found():\n    return str(torch.get_default_dtype()), os.environ['OF_IMPORT']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with GPUPool(slots=1) as pool:
        for n in range(3):
            run = pool.run([Task("in_double_precision:found")], name="r", folder=tmp_path / f"{n}")
            assert run.results() == [("torch.float64", "1")]


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_calls_without_a_seed_do_not_repeat_what_a_task_has_seeded(one: GPUPool, tmp_path: Path) -> None:
    drawn = []
    for n in range(2):
        run = one.run([Task(draw, name="t")], name="r", folder=tmp_path / str(n), seed=1)
        drawn.append((run.results()[0], one.submit(draw).result(60)))
    assert drawn[0][0] == drawn[1][0]
    assert not set(drawn[0][1]) & set(drawn[1][1])

    def seeds() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    after = []
    for _ in range(2):
        one.submit(seeds).result(60)
        after.append(one.submit(draw).result(60))
    assert not set(after[0]) & set(after[1])


def ended_by_sigint(make: Callable[[], Any]) -> str:
    child = make()
    os.kill(child.pid, signal.SIGINT)
    if isinstance(child, subprocess.Popen):
        return f"{child.wait(20)}"
    child.join(20)
    return f"{child.exitcode}"


def sleeping_program() -> Any:
    return subprocess.Popen(["sleep", "60"])


def sleeping_fork() -> Any:
    ready = multiprocessing.get_context("fork").Event()

    def sleeps() -> None:
        try:
            ready.set()
            for _ in range(600):  # a signal just before a sleep does not end it
                time.sleep(0.1)
        except KeyboardInterrupt:
            os._exit(7)

    child = multiprocessing.get_context("fork").Process(target=sleeps)
    child.start()
    assert ready.wait(20)
    return child


@pytest.mark.parametrize(("make", "code"), [(sleeping_program, "-2"), (sleeping_fork, "7")])
def test_children_of_a_task_heed_an_interrupt(one: GPUPool, make: Callable[[], Any], code: str) -> None:
    assert one.submit(ended_by_sigint, make).result(60) == code
    assert one.submit(os.kill, one.submit(os.getpid).result(60), signal.SIGINT).result(60) is None
    assert one.submit(lambda: worker().slot).result(60) == 0
