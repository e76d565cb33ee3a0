"""Modules that a node lacks."""

import importlib
import os
import pickle
import sys
from pathlib import Path

import psutil
import pytest
from agent_farm import FarmCluster, farm

from mgpu_nb import GPUPool, Task
from mgpu_nb.cluster.missing import explain
from mgpu_nb.engines.interpreter import Interpreter
from mgpu_nb.engines.protocol import Failure
from mgpu_nb.engines.worker import _failure

THERE = Interpreter("/opt/python", "3.11.7", (), {}, {})


def failure(module: str) -> Failure:
    """What a worker sends that cannot import a module."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return _failure(error)
    raise AssertionError(module)


def explained(module: str, node: str = "n2") -> str:
    found = explain(failure(module), node, THERE)
    error = pickle.loads(found.exception)
    assert type(error) is ModuleNotFoundError
    assert (str(error), error.name) == (found.message, module)
    assert found.traceback.rstrip().endswith(found.message)
    assert found.kind == "ModuleNotFoundError"
    return found.message


def test_it_says_where_it_is_missing_and_how_to_install_it() -> None:
    assert explained("nowhere_at_all") == (
        "no module 'nowhere_at_all' on node n2: install it there (/opt/python -m pip install nowhere_at_all, if its "
        "package has that name), or use an environment that all nodes share"
    )
    assert "pip install numpy," in explained("numpy.of_a_newer_version")  # it is installed here


def test_of_a_file_beside_the_notebook_it_says_how_its_functions_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helpers_of_mine.py").write_text("x = 1\n")
    (tmp_path / "package_of_mine").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    for name, file in (("helpers_of_mine", "helpers_of_mine.py"), ("package_of_mine", "package_of_mine")):
        importlib.import_module(name)
        monkeypatch.setitem(sys.modules, name, sys.modules[name])
        missing = f"{name}.on_the_node"
        said = explained(missing)
        assert said.startswith(
            f"no module {missing!r} on node n2: here it is {tmp_path / file}, a file of yours"
        )
        assert f"cloudpickle.register_pickle_by_value({name}) before" in said
        assert "pip" not in said


@pytest.mark.parametrize(
    "error",
    [ModuleNotFoundError("a text of their own"), ImportError("cannot import name 'x'"), ValueError("other")],
)
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    found = _failure(error)
    assert explain(found, "n2", THERE) is found


def where(*lacking: str) -> str:
    """Name of a node that has a module, which these have not."""
    commands = [process.cmdline() for process in psutil.Process().parents()]
    (host,) = [words[2] for words in commands if "agent_farm" in " ".join(words[1:2])]
    if host in lacking:
        importlib.import_module("nowhere_at_all")
    return host


@pytest.mark.slow
def test_a_task_that_a_node_has_no_module_for_runs_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (root, root / "tests" / "helpers"))))
    try:
        with GPUPool("cpu", slots=1, cluster=FarmCluster(2)) as pool:
            first, second = (slot.host for slot in pool.wait_for_slots(timeout=60))
            tasks = [Task(where, first, name="a"), Task(where, first, second, name="b")]
            run = pool.run(tasks, folder=tmp_path).wait(60, progress=False)
            assert pool.submit(where, first).result(60) == second
    finally:
        farm.close()
    one, none = run.records
    assert (one.status, one.value) == ("ok", second)
    assert one.notes in ((), (f"attempt 1 was on node {first}, which lacks module 'nowhere_at_all'",))
    assert (none.status, none.attempt, len(none.notes)) == ("error", 2, 1)
    assert none.error.startswith(f"ModuleNotFoundError: no module 'nowhere_at_all' on node {none.host}: ")
