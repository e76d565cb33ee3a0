"""Workers of another interpreter: another Python without torch, and another environment with its own."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import other_jobs
import psutil
import pytest
import torch
from environments import CORE, TORCH, environment, interpreter_of

import mgpu_nb
from mgpu_nb import GPUPool, SetupError, Task, TaskError, TaskTimeout, WorkerDied
from mgpu_nb.engines import servers
from mgpu_nb.engines.local import LocalEngine
from mgpu_nb.engines.protocol import PROTOCOL, Preloaded, ProtocolError, pack_preloaded, unpack_preloaded
from mgpu_nb.errors import message_of

Share = Callable[[GPUPool], AbstractContextManager[GPUPool]]

ONLY_THERE = """
class Error(Exception):
    pass
class Thing:
    pass
def triple(x):
    return 3 * x
def fails():
    raise Error("of a class that is only there")
def thing():
    return Thing()
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python 3.10, with what a worker needs and no more, and a module of its own."""
    made = environment(tmp_path_factory.mktemp("env") / "env", python=interpreter_of("3.10"))
    site = next(made.parents[1].glob("lib/python*/site-packages"))
    (site / "only_there.py").write_text(ONLY_THERE)
    (site / "json_of_theirs.py").touch()
    return made


@pytest.fixture(scope="module")
def other(python: Path, share: Share) -> Iterator[GPUPool]:
    with share(GPUPool(slots=2, python=python)) as pool:
        yield pool


def test_runs_what_both_import(other: GPUPool, python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(pytest.__file__).parents[1]))
    version, executable, ours, variables, path = other.submit(other_jobs.where).result()
    assert version == (3, 10)
    assert executable == str(python)
    assert ours == mgpu_nb.__file__  # it is not installed there
    assert "PYTHONPATH" not in variables
    assert variables["PATH"].startswith(f"{python.parent}:")
    site = next(place for place in path if place.endswith("site-packages"))
    assert Path(site).is_relative_to(python.parents[1])
    assert [place for place in path if place.endswith("site-packages")] == [site]
    assert path.index(site) < path.index(str(Path(other_jobs.__file__).parent))
    assert other.submit(other_jobs.device).result() == "cpu"


def test_maps_and_streams(other: GPUPool) -> None:
    assert list(other.map(other_jobs.double, range(20), chunksize=3)) == [2 * n for n in range(20)]
    large = b"x" * 2**21
    assert other.submit(other_jobs.double, large).result() == 2 * large


def test_functions_that_are_only_there_go_by_name(other: GPUPool, tmp_path: Path) -> None:
    run = other.run([Task("only_there:triple", 5), Task("only_there:missing")], folder=tmp_path / "run")
    good, bad = run.wait(progress=False).records
    assert good.value == 15
    assert bad.status == "error"
    assert "'only_there:missing' does not import" in bad.error


def test_errors_and_values_of_classes_that_this_side_lacks(other: GPUPool, tmp_path: Path) -> None:
    tasks = [Task("only_there:fails"), Task("only_there:thing"), Task(other_jobs.trouble)]
    error, value, known = other.run(tasks, folder=tmp_path / "run").wait(progress=False).records
    assert (error.status, error.error) == ("error", "Error: of a class that is only there")
    assert "only_there.py" in error.traceback
    assert type(error.exception) is TaskError
    assert value.error.startswith(
        "its value does not unpickle here: ModuleNotFoundError: No module named 'only_there'"
    )
    assert isinstance(known.exception, other_jobs.Trouble)
    assert known.exception.code == 3
    assert other.submit(other_jobs.double, 4).result() == 8


def test_a_module_that_is_missing_there_is_named_with_the_remedy(
    other: GPUPool, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        other.submit(other_jobs.uses_torch).result()
    assert f"No module named 'torch' in {python} (Python 3.10." in str(caught.value)
    assert f"{python} -m pip install torch" in str(caught.value)
    with pytest.raises(ModuleNotFoundError, match="No module named 'torch' in "):
        other.submit(other_jobs.double, torch.ones(2)).result()
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'psutil' in .*: install it there"):
        other.submit(psutil.pid_exists, 1).result()


def test_bytecode_of_another_minor_version_never_travels(other: GPUPool, python: Path) -> None:
    def cell(x: int) -> int:
        return x + 1

    refused = r"'cell' is not importable by name .* Python 3\.10\.\d+. Put it into a module"
    with pytest.raises(TypeError, match=refused):
        other.submit(cell, 1)
    with pytest.raises(TypeError, match=refused):
        list(other.map(cell, [1]))
    with pytest.raises(TypeError, match=refused) as caught:
        other.run([Task(cell, 1, name="mine")])
    assert any("task 'mine' cannot be sent" in note for note in caught.value.__notes__)
    with pytest.raises(TypeError, match=r"'<lambda>' is not importable by name"):
        other.submit(other_jobs.double, lambda: 1)
    with pytest.raises(
        TypeError, match=r"would go back as bytecode.*this worker is Python 3\.10.*Return data"
    ):
        other.submit(other_jobs.makes_function).result()
    with pytest.raises(TypeError, match=refused):
        GPUPool(slots=1, python=python, setup=cell)  # type: ignore[arg-type]


@pytest.mark.slow
def test_workers_are_killed_timed_and_cancelled_as_others(other: GPUPool, tmp_path: Path) -> None:
    with pytest.raises(WorkerDied, match="exit code 7"):
        other.submit(other_jobs.leave).result()
    begun = tmp_path / "begun"
    run = other.run([Task(other_jobs.wait, str(begun), name="long", timeout=0.5)], folder=tmp_path / "run")
    (record,) = run.wait(progress=False).records
    assert record.status == "timeout"
    assert isinstance(record.exception, TaskTimeout)
    begun.unlink(missing_ok=True)
    run = other.run([Task(other_jobs.wait, str(begun), name="long")], folder=tmp_path / "other")
    while not begun.exists():
        time.sleep(0.01)
    run.cancel()
    assert run.wait(progress=False).records[0].status == "cancelled"
    pid = other.submit(other_jobs.pid).result()
    psutil.Process(pid).send_signal(signal.SIGINT)  # as Jupyter does
    assert other.submit(other_jobs.double, 1).result() == 2


def test_draws_follow_the_seed(other: GPUPool, tmp_path: Path) -> None:
    tasks = [Task(other_jobs.draw, name=f"t{n}") for n in range(4)]
    first, second = (
        [
            record.value
            for record in other.run(tasks, folder=tmp_path / name, seed=3).wait(progress=False).records
        ]
        for name in "ab"
    )
    assert first == second
    assert len(set(first)) == 4


def test_provenance_says_what_the_workers_are(
    other: GPUPool, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "4a1b9c")
    other.run([Task(other_jobs.double, 1)], folder=tmp_path / "run").wait(progress=False)
    journal = (tmp_path / "run" / "journal.jsonl").read_text()
    made = json.loads(journal.splitlines()[0])["made"]
    assert made["python"] == sys.version.split()[0]
    assert made["workers"]["path"] == str(python)
    assert made["workers"]["python"].startswith("3.10.")
    assert set(made["workers"]["packages"]) == {"cloudpickle", "lazy-loader"}
    assert "4a1b9c" not in journal


@pytest.mark.slow
def test_a_child_that_a_task_spawns_finds_the_package(python: Path) -> None:
    with GPUPool(slots=1, python=python) as pool:
        assert pool.submit(other_jobs.spawns).result()


@pytest.mark.slow
def test_its_own_installation_of_this_package_is_used(tmp_path: Path) -> None:
    made = environment(tmp_path / "env", python=interpreter_of("3.10"))
    site = next(made.parents[1].glob("lib/python*/site-packages"))
    (site / "mgpu_nb").symlink_to(Path(mgpu_nb.__file__ or "").parent)
    with GPUPool(slots=1, python=made) as pool:
        assert pool.submit(other_jobs.where).result()[2] == str(site / "mgpu_nb" / "__init__.py")


def test_an_engine_that_is_given_has_its_own_interpreter(python: Path) -> None:
    with pytest.raises(ValueError, match="is for an engine that the pool makes; give it to LocalEngine"):
        GPUPool(slots=1, python=python, engine=LocalEngine())


@pytest.mark.slow
def test_protocols_that_differ_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = environment(tmp_path / "env", python=interpreter_of("3.10"))
    monkeypatch.setattr(servers, "PROTOCOL", PROTOCOL + 1)
    said = f"speak protocol {PROTOCOL}, their parent process {PROTOCOL + 1}"
    with GPUPool(slots=1, python=python) as pool, pytest.raises(SetupError, match=said):
        pool.submit(other_jobs.double, 1).result()
    assert unpack_preloaded(pack_preloaded(Preloaded({"a": "b"}, "c"))) == Preloaded({"a": "b"}, "c")
    for packed in (b"", b"\x80\x05N.", pack_preloaded(Preloaded({})).replace(b"K%c" % PROTOCOL, b"K\x09")):
        with pytest.raises((ProtocolError, EOFError)):
            unpack_preloaded(packed)


@pytest.mark.slow
def test_a_start_that_fails_there_is_told(tmp_path: Path) -> None:
    made = environment(tmp_path / "env", python=interpreter_of("3.10"))
    with GPUPool(slots=1, python=made) as pool:
        site = next(made.parents[1].glob("lib/python*/site-packages"))
        pool.submit(other_jobs.double, 1).result()
        (site / "cloudpickle").unlink()
        with pytest.raises((WorkerDied, SetupError)):
            pool.submit(other_jobs.leave).result()
        with pytest.raises(SetupError, match="No module named 'cloudpickle'"):
            pool.submit(other_jobs.double, 1).result()


@pytest.fixture(scope="module")
def own_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of this Python with a torch of its own."""
    return environment(tmp_path_factory.mktemp("torch") / "env", (*CORE, *TORCH))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_tensors_and_arrays_go_both_ways(own_torch: Path, method: Any, tmp_path: Path) -> None:
    def cell(x: Any) -> Any:
        return x * 2

    with GPUPool(slots=1, python=own_torch, start_method=method, preload=["torch"]) as pool:
        for size in (3, 600):
            a = torch.arange(float(size * size)).reshape(size, size)
            product, total = pool.submit(other_jobs.matmul, a).result()
            torch.testing.assert_close(product, a @ a)
            assert total == pytest.approx(a.sum().item(), rel=1e-6)
            b = np.arange(float(size * size)).reshape(size, size)
            back = pool.submit(cell, b).result()
            np.testing.assert_array_equal(back, 2 * b)
            assert back.flags.writeable
        for value in (np.float64(2), np.zeros((0, 3)), np.array(5), np.array(["a", None], dtype=object)):
            back = pool.submit(cell, value).result() if value.dtype != object else value
            np.testing.assert_array_equal(back, 2 * value if value.dtype != object else value)
        tasks = [Task(other_jobs.seeded), Task(other_jobs.matmul, torch.eye(400))]
        run = pool.run(tasks, folder=tmp_path / "run", seed=5)
        drawn, made = run.wait(progress=False).records
        torch.testing.assert_close(made.value[0], torch.eye(400))
    with GPUPool(slots=1) as pool:
        same = pool.run(tasks[:1], folder=tmp_path / "same", seed=5).wait(progress=False).records[0]
    assert drawn.value == same.value
    packages = json.loads((tmp_path / "run" / "journal.jsonl").read_text().splitlines()[0])["made"]["workers"]
    assert packages["packages"]["torch"] == torch.__version__


def test_preloads_are_tried_there(python: Path) -> None:
    with pytest.raises(
        ValueError, match=r"preload: 'torch' does not import in .*No module named 'torch'"
    ) as caught:
        GPUPool(slots=1, python=python, preload=["torch"], start_method="fork")
    assert message_of(caught.value)
