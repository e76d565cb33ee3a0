"""The folder of a run as a worker has it."""

from pathlib import Path
from typing import Any

import pytest

from mgpu_nb.context import Worker
from mgpu_nb.engines import run_folder
from mgpu_nb.engines.base import Begin, Environment, TaskMeta
from mgpu_nb.engines.run_folder import RunFolder, RunFolders
from mgpu_nb.store import token
from mgpu_nb.store.token import write_token


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> RunFolders:
    monkeypatch.setattr(token, "PAUSES", (0.0,))
    nothing: Any = Environment({}, "", ())
    return RunFolders(
        Begin(0, 1, None, "cpu:0", ("cpu",), {}, nothing, None, False, node="n2", parent="laptop")
    )


def meta(folder: Path | None, name: str | None = "") -> TaskMeta:
    return TaskMeta(name="t", folder=None if folder is None else str(folder), token=name)


def test_it_is_looked_for_once(folders: RunFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = meta(tmp_path, write_token(tmp_path))
    assert folders.of(task) == RunFolder(tmp_path)
    monkeypatch.setattr(run_folder, "has_token", None)
    assert folders.of(task) == RunFolder(tmp_path)
    assert folders.of(meta(tmp_path)) == RunFolder(tmp_path)  # of a local pool
    assert folders.of(meta(None)) == RunFolder(None)


@pytest.mark.parametrize("name", [".shared-elsewhere", None])
def test_where_it_is_not_the_reason_is_told(folders: RunFolders, tmp_path: Path, name: str | None) -> None:
    path, note = folders.of(meta(tmp_path, name))
    assert path is None
    assert note == (
        f"the run's folder {tmp_path} of host laptop is not on node n2: return what must be kept, or give the run a "
        "folder that both machines have"
    )


def test_a_file_system_that_hangs_is_not_shared(
    folders: RunFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(*_: object) -> bool:
        raise TimeoutError("it does not answer")

    monkeypatch.setattr(run_folder, "has_token", hangs)
    path, note = folders.of(meta(tmp_path, "any"))
    assert path is None
    assert "of host laptop cannot be looked at (it does not answer) on node n2: return" in note


def test_folders_of_many_runs_are_not_remembered_for_ever(folders: RunFolders, tmp_path: Path) -> None:
    for n in range(3 * run_folder.MOST):
        folders.of(meta(tmp_path / str(n)))
    assert len(folders._known) <= run_folder.MOST


def test_what_cannot_do_without_says_what_to_do(tmp_path: Path) -> None:
    def here(**more: Any) -> Worker:
        return Worker(0, "cpu", ("cpu",), None, "cpu:0", **more)

    assert here(folder=tmp_path).need_folder() == tmp_path
    with pytest.raises(FileNotFoundError, match=r"run it by GPUPool\.run"):
        here().need_folder()
    with pytest.raises(FileNotFoundError, match=r"^it is elsewhere$"):
        here(folder_note="it is elsewhere").need_folder()
