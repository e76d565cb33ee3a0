"""Workers log as the parent process does, and a task's own changes end with it."""

import logging
import socket
import sys
import threading
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


class Kept(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.arrived = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        if "last" in record.getMessage() or "left out" in record.getMessage():
            self.arrived.set()


def fails() -> None:
    logger = logging.getLogger("fit")
    logger.info("\x1b[31mepoch\x1b[0m %d", 2)
    logging.debug("not shown in the parent")
    try:
        raise ValueError("bad")
    except ValueError:
        logger.exception("the last")


def sets_up() -> None:
    logging.getLogger("fit").warning("setup")


def test_records_of_tasks_reach_the_handlers_of_the_parent(tmp_path: Path, unset: Callable[[], None]) -> None:
    unset()
    kept = Kept()
    logging.basicConfig(level=logging.INFO, handlers=[kept])
    with GPUPool(slots=1, setup=sets_up, forward_logs=True) as pool:
        run = pool.run([Task(fails, name="t")], name="r", folder=tmp_path / "run").wait(60)
        assert kept.arrived.wait(30)
        pool.submit(fails).result(60)
    shown = [(r.name, r.levelname, r.getMessage(), getattr(r, "task", None)) for r in kept.records]
    assert shown == [
        ("fit", "WARNING", "[slot 0] setup", ""),
        ("fit", "INFO", "[t] epoch 2", "t"),
        ("fit", "ERROR", "[t] the last", "t"),
        ("fit", "INFO", "[slot 0] epoch 2", ""),
        ("fit", "ERROR", "[slot 0] the last", ""),
    ]
    assert "ValueError: bad" in str(kept.records[2].exc_text)
    assert (kept.records[1].funcName, kept.records[1].processName) == ("fails", "t")
    assert (vars(kept.records[1])["run"], vars(kept.records[1])["slot"]) == ("r", 0)
    where = {name: vars(kept.records[1])[name] for name in ("device", "uuid", "host")}
    assert where == {name: getattr(run.records[0], name) for name in where}
    assert where["host"] == socket.gethostname()
    assert "ERROR:fit:the last" in run.logs("t")


def floods() -> None:
    logger = logging.getLogger("fit")
    for n in range(5000):
        logger.info("%d", n)


class Raises(Kept):
    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        raise KeyError("a handler of the user's")


def test_a_flood_of_records_is_cut_and_a_handler_that_raises_is_the_users(
    tmp_path: Path, unset: Callable[[], None]
) -> None:
    unset()
    kept = Raises()
    logging.basicConfig(level=logging.INFO, handlers=[kept])
    with GPUPool(slots=1, forward_logs=True) as pool:
        pool.run([Task(floods, name="t")], name="r", folder=tmp_path / "run").results()
        assert kept.arrived.wait(30)
        assert pool.submit(len, "ab").result(60) == 2
    messages = [record.getMessage() for record in kept.records if record.name in ("fit", "mgpu_nb")]
    left_out = sum(int(m.split()[1]) for m in messages if "left out" in m)
    sent = sum(1 for record in kept.records if record.name == "fit")
    assert left_out > 0
    assert sent + left_out == 5000
