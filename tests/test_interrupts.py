"""Public calls that are interrupted at each of their lines: the pool works afterwards, and nothing is left of them."""

import gc
import itertools
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from interrupts import every_line
from matplotlib.figure import Figure

import mgpu_nb
from mgpu_nb import GPUPool, Run, Task, launch
from mgpu_nb.engines.segment import MAX_FREE
from mgpu_nb.interrupts import uninterrupted, uninterruptible
from mgpu_nb.runs.ledger import Ledger
from mgpu_nb.runs.submitted import write_job
from mgpu_nb.store.metrics import FILE, History, format_points

LARGE = np.ones(2**16)  # through shared memory


def shared_files() -> int:
    """Mappings of shared memory, and descriptors of it."""
    found = Path("/proc/self/maps").read_text().count("memfd:mgpu_nb")
    for fd in Path("/proc/self/fd").iterdir():
        try:
            found += "memfd:mgpu_nb" in str(fd.readlink())
        except OSError:  # it was closed since
            continue
    return found


def held() -> tuple[int, ...]:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return descriptors, shared_files(), threading.active_count(), len(mgpu_nb.pools())


@pytest.fixture(scope="module")
def launched(pool: GPUPool, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the first launch of a process opens for good is there."""
    launch(abs, -1, nprocs=1, pool=pool, folder=tmp_path_factory.mktemp("launched")).wait(120)


@pytest.fixture
def nothing_held(pool: GPUPool, launched: None) -> Iterator[None]:
    """Afterwards there are no more descriptors, files, threads and pools than before."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    for call in [pool.submit(abs, LARGE) for _ in range(2 * MAX_FREE)]:  # some are kept to be used again
        call.result(60)
    gc.collect()
    before = held()
    yield
    end = time.monotonic() + 60
    while any(now > then for now, then in zip(held(), before, strict=True)) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.05)
    assert all(now <= then for now, then in zip(held(), before, strict=True)), (before, held())


def interrupt_each(
    call: Callable[[], object],
    check: Callable[[], object],
    before: Callable[[], object] = lambda: None,
    files: tuple[str, ...] = (".py",),
) -> None:
    """Interrupt a call at each of its lines; after each, `check` must not fail. `before` is called before each."""
    before()
    interrupts = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for line, error in every_line(call, files):
            try:
                assert error is None or isinstance(error, KeyboardInterrupt)
                check()
            except BaseException as problem:
                problem.add_note(f"interrupted at {line}: {error!r}")
                raise
            interrupts += error is not None
            before()
    assert interrupts > 4


def works(pool: GPUPool) -> None:
    assert pool.submit(abs, -7).result(60) == 7


def fails() -> None:
    raise ValueError


# An interrupt within a generator that is dropped is lost, as Python has it.
pytestmark = [
    pytest.mark.usefixtures("small_heap", "nothing_held"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_submit(pool: GPUPool) -> None:
    interrupt_each(lambda: pool.submit(abs, LARGE), lambda: works(pool))


@pytest.mark.slow
def test_map(pool: GPUPool) -> None:
    interrupt_each(lambda: next(pool.map(abs, range(5), chunksize=2)), lambda: works(pool))


BEGIN: dict[str, Callable[[GPUPool, Path], Run]] = {
    "run": lambda pool, folder: pool.run(
        [Task(abs, LARGE, name="a"), Task(abs, LARGE, name="b"), Task(abs, 2, after="a")], folder=folder
    ),
    "sweep": lambda pool, folder: pool.sweep(pow, base=[2, 3], exp=[1], folder=folder),
    "launch": lambda pool, folder: launch(abs, -1, nprocs=1, pool=pool, folder=folder),
}

# Of the others, what is not of `run`, whose lines they share.
FILES = {
    "run": (".py",),
    "sweep": ("pool.py", "grid.py"),
    "launch": ("launch.py", "interrupts.py", "rendezvous.py"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BEGIN)
def test_what_begins_a_run_leaves_its_folder_to_the_next(pool: GPUPool, tmp_path: Path, kind: str) -> None:
    numbers = itertools.count()
    folder = tmp_path

    def call() -> None:
        nonlocal folder
        folder = tmp_path / str(next(numbers))
        BEGIN[kind](pool, folder)

    def check() -> None:
        for run in pool.runs:
            run.wait(60)
        if folder.exists():
            assert all(record.ok for record in BEGIN[kind](pool, folder).wait(60).records)
        works(pool)

    interrupt_each(call, check, files=FILES[kind])


@pytest.mark.slow
@pytest.mark.parametrize("call", [Run.wait, Run.results, Run.cancel], ids=["wait", "results", "cancel"])
def test_waits_for_a_run_and_its_end(pool: GPUPool, tmp_path: Path, call: Callable[[Run], object]) -> None:
    runs: list[Run] = []
    numbers = itertools.count()

    def begin() -> None:
        runs[:] = [pool.run([Task(time.sleep, 0.02)], folder=tmp_path / str(next(numbers)))]

    def check() -> None:
        (run,) = runs
        assert [record.status for record in run.wait(60).records] in (["ok"], ["cancelled"])
        works(pool)

    interrupt_each(lambda: call(runs[0]), check, begin)


@pytest.mark.slow
def test_a_retry(pool: GPUPool, tmp_path: Path) -> None:
    tasks = [Task(fails, name="a"), Task(abs, -1, name="b", after="a")]
    runs: list[Run] = []
    numbers = itertools.count()

    def begin() -> None:
        runs[:] = [pool.run(tasks, folder=tmp_path / str(next(numbers))).wait(60)]

    def check() -> None:
        again = pool.run(tasks, folder=runs[0].folder).wait(60)
        assert [record.status for record in again.records] == ["error", "skipped"]

    interrupt_each(lambda: runs[0].retry(), check, begin)


@pytest.mark.slow
def test_opening_a_run(pool: GPUPool, tmp_path: Path) -> None:
    pool.run([Task(abs, -1)], folder=tmp_path / "run").wait(60)
    interrupt_each(
        lambda: Run.open(tmp_path / "run"), lambda: Run.open(tmp_path / "run").results(), lambda: None
    )


@pytest.mark.slow
def test_opening_a_run_of_a_job(pool: GPUPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no squeue
    pool.run([Task(abs, -1)], folder=tmp_path / "run").wait(60)
    write_job(tmp_path / "run", "slurm", 17, 2)
    interrupt_each(
        lambda: Run.open(tmp_path / "run"), lambda: Run.open(tmp_path / "run").results(), lambda: None
    )


READS_METRICS: dict[str, Callable[[Run], object]] = {
    "metrics": Run.metrics,
    "plot": lambda run: run.plot("loss", ax=Figure().subplots()),
    "frame": Run.frame,
    "panel": lambda run: run._ledger.charts(),
}


@pytest.mark.parametrize("call", READS_METRICS.values(), ids=READS_METRICS)
def test_each_point_of_a_run_that_goes_on_is_shown_and_written_once(
    tmp_path: Path, call: Callable[[Run], object]
) -> None:
    run = Run(Ledger("run", tmp_path, ["a"]))
    run._ledger.writer = "another process"  # so that `frame` reads what tasks have reported
    steps = itertools.count()
    reported: list[bytes] = []

    def report(history: History) -> None:
        history.later = lambda flush, seconds: None  # what is not flushed waits for who reads
        step = next(steps)
        reported.append(format_points("a", 1, [(step, step / 8, {"loss": 0.5})]))
        history.add(reported[-1])

    def begin() -> None:
        other = History(tmp_path)
        report(other)
        other.flush()
        report(run._ledger.history)

    def check() -> None:
        assert list(run.metrics("loss").step) == list(range(len(reported)))
        assert (tmp_path / FILE).read_bytes() == b"".join(reported)

    interrupt_each(lambda: call(run), check, begin, ("run.py", "metrics.py", "files.py", "interrupts.py"))


@pytest.mark.slow
def test_a_pool_that_is_made(pool: GPUPool) -> None:
    def check() -> None:
        gc.collect()
        end = time.monotonic() + 60
        while len(mgpu_nb.pools()) > 1 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(mgpu_nb.pools()) == 1

    interrupt_each(lambda: GPUPool(slots=1, share=True), check)


@pytest.mark.slow
@pytest.mark.parametrize("by_with", [False, True], ids=["shutdown", "with"])
def test_a_pool_that_ends(by_with: bool) -> None:
    made: list[GPUPool] = []

    def begin() -> None:
        made[:] = [GPUPool(slots=1, share=True)]
        made[0].submit(abs, -1)

    def end() -> None:
        if by_with:
            with made[0]:
                pass
        else:
            made[0].shutdown()

    def check() -> None:
        made[0].shutdown()
        assert not made[0]._dispatcher.thread.is_alive()

    interrupt_each(end, check, begin)
    made[0].shutdown()


@pytest.mark.filterwarnings("default")
def test_a_step_is_done_whole_or_undone() -> None:
    done: list[int] = []
    undone: list[int] = []
    numbers = itertools.count()

    def step() -> int:
        done.append(next(numbers))
        return done[-1]

    def check() -> None:
        end = time.monotonic() + 60
        while len(done) - len(undone) not in (0, 1) and time.monotonic() < end:
            time.sleep(0.001)
        assert len(done) - len(undone) in (0, 1)
        undone[:] = done

    interrupt_each(lambda: uninterrupted(step, undone.append), check)


def test_what_a_step_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        uninterrupted(lambda: 1 // 0)


def test_threads_that_no_interrupt_strikes_do_a_step_themselves() -> None:
    where = uninterruptible(threading.get_ident)
    assert where() != threading.get_ident()
    with ThreadPoolExecutor(1) as other:
        assert other.submit(where).result() == other.submit(threading.get_ident).result()
