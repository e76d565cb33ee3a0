"""Who may read the folder of a run."""

import os
from pathlib import Path

import pytest

from mgpu_nb import GPUPool, Task
from mgpu_nb.store.files import make_private


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture(autouse=True)
def open_umask() -> object:
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_folder_is_its_owners_and_one_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    new, mine = tmp_path / "below" / "new", tmp_path / "mine"
    make_private(new)
    mine.mkdir(mode=0o750)
    make_private(mine)
    assert (mode(new), mode(new.parent), mode(mine)) == (0o700, 0o777, 0o750)


def test_runs_are_private(pool: GPUPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN", "a-secret-of-the-environment")
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o770)
    runs = [pool.run([Task(str, 1)], folder=folder).wait(60) for folder in (None, tmp_path / "named", shared)]
    assert [mode(run.folder) for run in runs] == [0o700, 0o700, 0o770]
    for path in (path for run in runs for path in run.folder.rglob("*") if path.is_file()):
        assert b"a-secret-of-the-environment" not in path.read_bytes()
