"""After every test: no process is left but the server, which lives as long as this process."""

import gc
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from mgpu_nb import GPUPool
from mgpu_nb.hardware.slots import with_defaults

# Where the tests run in the background of a script, SIGINT comes ignored, and under nohup SIGHUP; their processes would
# ignore these as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# What a test computes here has the bits that a worker finds, on processors without AVX-512 too: before MKL begins. And
# the threads of two processes of tests do not wait for each other awake: libgomp reads that where torch loads it.
os.environ.update(with_defaults(os.environ))
# The small models of the tests gain nothing by threads, which wait for each other at each operation: on one thread they
# take two thirds of the time of the cores. A worker has those of its slot, whatever this says.
os.environ.setdefault("OMP_NUM_THREADS", "1")

with suppress(ImportError):  # on a machine with a GPU no test needs it
    from hypothesis import settings

    settings.register_profile("mgpu_nb", deadline=None)  # no example fails for its time, on a busy machine
    settings.load_profile("mgpu_nb")

_shared: list[GPUPool] = []

TESTS = Path(__file__).parent
FOLDERS = {"browser": "browser", "gpu": "gpu", "notebooks": "slow"}  # the mark of every test below


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by their folder or fixture; notebooks and what needs a browser, SLURM or a GPU are slow as well.

    Processes of pytest-xdist begin with the files of most slow tests: one of minutes that came last would be run while
    the others have nothing to do.
    """
    for item in items:
        if not item.path.is_relative_to(TESTS):  # a cell of a notebook
            item.add_marker("slow")
            continue
        if mark := FOLDERS.get(item.path.relative_to(TESTS).parts[0]):
            item.add_marker(mark)
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("slurm")
        if any(item.get_closest_marker(mark) for mark in ("browser", "slurm", "gpu", "reference")):
            item.add_marker("slow")
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Leave modules and tests, which stay, to no collector: a third of a second each time that a test calls it."""
    freeze()


@contextmanager
def sharing(pool: GPUPool) -> Iterator[GPUPool]:
    """Within the block, which ends the pool, tests may leave its workers."""
    with pool:
        _shared.append(pool)
        yield pool
        _shared.remove(pool)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the user's cache is read, and nothing is written there, nor to the folder of invitations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MGPU_NB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def share() -> Callable[[GPUPool], AbstractContextManager[GPUPool]]:
    """What makes a pool one of all tests of a module: ``with share(GPUPool(...)) as pool``."""
    return sharing


@pytest.fixture(scope="module")
def pool() -> Iterator[GPUPool]:
    """A pool of two slots for the tests of a module."""
    with sharing(GPUPool(slots=2)) as pool:
        yield pool


@pytest.fixture(scope="module")
def small_heap() -> Iterator[None]:
    """Leave what there was before the tests of a module to no collector: half a second each, in the whole suite."""
    freeze()
    yield
    gc.unfreeze()
    freeze()


def freeze() -> None:
    """Leave what there is to no collector."""
    gc.collect()
    gc.freeze()


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended just now
        return False


def descendants(pid: int) -> list[int]:
    """Numbers of the processes below one. psutil would read of all that there are, in a hundred times as long."""
    try:
        below = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it, or a thread of it, ended just now
        try:
            below = [str(child.pid) for child in psutil.Process(pid).children()]
        except psutil.NoSuchProcess:
            return []
    children = [int(child) for text in below for child in text.split()]
    return [*children, *(other for child in children for other in descendants(child))]


def processes(pids: Iterable[int]) -> list[psutil.Process]:
    """Those of these processes that live."""
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return [process for process in found if alive(process)]


def stray() -> list[psutil.Process]:
    """Living descendants that are neither a server nor a worker of the pool of a module.

    The workers are asked for last: one that starts in between is known.
    """
    from mgpu_nb.engines.servers import runtime

    children = descendants(os.getpid())
    known: set[int | None] = {server.process.pid for server in runtime.servers}
    agents = [
        psutil.Process(node.pid) for pool in _shared for node in pool.nodes if psutil.pid_exists(node.pid)
    ]
    known |= {each.pid for agent in agents for each in (agent, *agent.children())}
    if (farm := sys.modules.get("agent_farm")) is not None:
        known |= farm.agents_and_servers()
    known |= {
        post.worker.pid for pool in _shared for post in list(pool._dispatcher.workers.processes.values())
    }
    return processes(pid for pid in children if pid not in known)


@pytest.fixture(autouse=True)
def no_losses() -> Iterator[None]:
    """A node that a test lost is told of for ten minutes: not in the next tests."""
    yield
    if (nodes := sys.modules.get("mgpu_nb.hardware.nodes")) is not None:
        nodes._losses.clear()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    end = time.monotonic() + 30
    while (left := stray()) and time.monotonic() < end:
        psutil.wait_procs(left, timeout=0.05)
    assert not [process.as_dict(["pid", "ppid", "status", "cmdline"]) for process in left if alive(process)]


@pytest.fixture(scope="session", autouse=True)
def server_ends() -> Iterator[None]:
    yield
    from mgpu_nb.engines.servers import runtime

    runtime.stop_servers()
    if (farm := sys.modules.get("agent_farm")) is not None:
        farm.farm.close()
    assert not processes(descendants(os.getpid()))
