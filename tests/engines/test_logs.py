"""Workers log as the parent process does, and a task's own changes end with it."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb import GPUPool, Task
from mgpu_nb.engines.environment import capture_environment


@pytest.fixture
def one(share: Callable[[GPUPool], Any]) -> Iterator[GPUPool]:
    with share(GPUPool(slots=1)) as pool:
        yield pool


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Called in a test, it makes the root logger that of a program that has set nothing: pytest's handlers go."""
    level = logging.root.level

    def unset() -> None:
        monkeypatch.setattr(logging.root, "handlers", [])
        logging.root.setLevel(logging.WARNING)

    yield unset
    logging.disable(logging.NOTSET)
    for name in ("fit", "fit.inner"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.root.setLevel(level)


def says() -> None:
    for name in (None, "fit", "fit.inner"):
        logger = logging.getLogger(name)
        logger.debug("quiet")
        logger.info("epoch %d", 1)
        logger.warning("careful")


def log_of(pool: GPUPool, folder: Path, fn: Callable[[], None] = says) -> list[str]:
    return pool.run([Task(fn, name="t")], name="r", folder=folder).wait(60).logs("t").splitlines()


def test_tasks_log_at_the_levels_and_in_the_form_of_the_parent(
    one: GPUPool, tmp_path: Path, unset: Callable[[], None]
) -> None:
    unset()
    assert log_of(one, tmp_path / "default") == ["careful"] * 3
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    assert log_of(one, tmp_path / "info")[:4] == [
        "INFO:root:epoch 1",
        "WARNING:root:careful",
        "INFO:fit:epoch 1",
        "WARNING:fit:careful",
    ]
    logging.root.handlers[0].setFormatter(logging.Formatter("%(name)s> %(message)s"))
    logging.getLogger("fit").setLevel(logging.DEBUG)
    logging.getLogger("fit.inner").setLevel(logging.ERROR)
    assert log_of(one, tmp_path / "named") == [
        "root> epoch 1", "root> careful", "fit> quiet", "fit> epoch 1", "fit> careful",
    ]  # fmt: skip
    logging.root.handlers[0].setLevel(logging.WARNING)  # of what is debugged, the user sees warnings
    assert log_of(one, tmp_path / "threshold") == ["root> careful", "fit> careful"]
    logging.disable(logging.WARNING)
    assert log_of(one, tmp_path / "disabled") == []


def test_an_environment_is_the_same_object_until_logging_changes(unset: Callable[[], None]) -> None:
    unset()
    first = capture_environment()
    assert capture_environment() is first
    logging.getLogger("fit").setLevel(logging.NOTSET)  # as it was
    assert capture_environment() is first
    logging.getLogger("fit").setLevel(logging.INFO)
    assert capture_environment() is not first


def configures() -> None:
    logging.basicConfig(level=logging.DEBUG, format="mine %(message)s", stream=sys.stdout)
    logging.getLogger("fit").addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger("fit").setLevel(logging.ERROR)
    logging.getLogger("fit.inner").propagate = False
    logging.getLogger("fit.inner").disabled = True
    logging.getLogger().debug("debugged")
    logging.disable(logging.CRITICAL)


def test_what_a_task_configures_ends_with_it(one: GPUPool, tmp_path: Path, unset: Callable[[], None]) -> None:
    unset()
    before = log_of(one, tmp_path / "before")
    for n in range(2):
        assert log_of(one, tmp_path / f"own{n}", configures) == ["mine debugged"]
        assert log_of(one, tmp_path / f"after{n}") == before


def test_what_setup_configures_stays(tmp_path: Path) -> None:
    with GPUPool(
        slots=1, setup=lambda: logging.basicConfig(level=logging.INFO, format="setup %(message)s")
    ) as pool:
        for n in range(2):
            assert log_of(pool, tmp_path / f"a{n}")[:2] == ["setup epoch 1", "setup careful"]
            log_of(pool, tmp_path / f"b{n}", configures)
