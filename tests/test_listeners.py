"""Listeners of a run: what they hear and when, that none harms a run, TensorBoard and Weights & Biases."""

import importlib.util
import logging
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb import GPUPool, Record, Run, Task, worker
from mgpu_nb.listeners import Listener, Started, TensorBoard, WandB
from mgpu_nb.runs.feed import Feed
from mgpu_nb.store.metrics import History, format_points


def fits(lr: float, flag: str = "", wait: str = "") -> float:
    here = worker()
    for step in range(5):
        here.report(step=step, loss=lr / (1 + step), stage="fit")
    if flag and here.attempt == 1:
        raise ValueError("the first attempt")
    end = time.monotonic() + 60
    while wait and not Path(wait).exists() and time.monotonic() < end:
        time.sleep(0.01)
    return lr


class Heard(Listener):
    """Notes all that it hears."""

    def __init__(self) -> None:
        self.all: list[tuple[Any, ...]] = []
        self.threads: set[str] = set()

    def started(self, attempt: Started) -> None:
        self.threads.add(threading.current_thread().name)
        self.all.append(("started", attempt.task, attempt.attempt, dict(attempt.arguments)))

    def reported(self, task: str, step: float, values: Mapping[str, float]) -> None:
        self.all.append(("reported", task, step, dict(values)))

    def ended(self, record: Record) -> None:
        self.all.append(("ended", record.name, record.status))

    def close(self) -> None:
        self.all.append(("close",))

    def of(self, task: str) -> list[tuple[Any, ...]]:
        return [fact for fact in self.all if fact[1:2] == (task,)]


def test_a_listener_hears_all_in_order_from_a_thread_of_its_own(pool: GPUPool, tmp_path: Path) -> None:
    tasks = [
        Task(fits, 0.5, name="a"),
        Task(fits, 0.25, "again", name="b", retries=1),
        Task(abs, -1, name="c"),
    ]
    heard = Heard()
    run = pool.run(tasks, folder=tmp_path / "run").listen(heard).wait(60)
    assert heard.all[-1] == ("close",)  # before wait returned
    points = [("reported", "a", step, {"loss": 0.5 / (1 + step)}) for step in range(5)]
    assert heard.of("a") == [("started", "a", 1, {"lr": 0.5}), *points, ("ended", "a", "ok")]
    again = heard.of("b")
    assert [fact[2] for fact in again if fact[0] == "started"] == [1, 2]
    assert [fact[0] for fact in again] == ["started", *["reported"] * 5] * 2 + ["ended"]
    assert [fact[0] for fact in heard.of("c")] == ["started", "ended"]
    assert heard.threads == {"mgpu_nb-listeners"}
    later = Heard()
    Run.open(run.folder).listen(later)
    assert sorted(map(str, later.all)) == sorted(map(str, heard.all))
    assert later.of("b") == again
    resumed = Heard()
    pool.run(tasks, folder=run.folder).listen(resumed).wait(60)
    assert resumed.of("a") == heard.of("a")


def test_a_listener_hears_of_attempts_that_reported_nothing_and_were_over_at_once(
    pool: GPUPool, tmp_path: Path
) -> None:
    heard = Heard()
    pool.run([Task(abs, "no number", name="a", retries=3)], folder=tmp_path / "run").listen(heard).wait(60)
    assert [fact[2] for fact in heard.of("a")] == [1, 2, 3, 4, "error"]


class Overtaken:
    """A run whose task reports, fails and begins again in the very moment in which a feed looks who runs."""

    name = "run"
    tasks: tuple[str, ...] = ("a",)

    def __init__(self, folder: Path) -> None:
        self.folder, self.history, self.done = folder, History(folder), False

    @property
    def running(self) -> list[Any]:
        if self.done:
            return []
        self.history.add(format_points("a", 1, [(0, 0.1, {"loss": 0.5})]))
        self.done = True
        return [types.SimpleNamespace(name="a", attempt=2)]

    def arguments_of(self, task: str) -> dict[str, Any]:
        return {}

    def ended_since(self, seen: int) -> list[Record]:
        return []

    def wait_for(self, what: Callable[[], bool], timeout: float | None = None) -> None:
        return


def test_a_listener_hears_what_an_attempt_reported_though_the_next_one_has_begun(tmp_path: Path) -> None:
    heard = Heard()
    feed = Feed(Overtaken(tmp_path), [heard])
    feed.start()
    assert feed.join(60)
    assert heard.all == [
        ("started", "a", 1, {}), ("reported", "a", 0, {"loss": 0.5}), ("started", "a", 2, {}), ("close",),
    ]  # fmt: skip


def test_a_listener_hears_of_a_run_while_it_goes_on(pool: GPUPool, tmp_path: Path) -> None:
    heard = Heard()
    wait = tmp_path / "go"
    run = pool.run([Task(fits, 0.5, "", str(wait), name="a")], folder=tmp_path / "run")
    assert run.listen(heard) is run
    end = time.monotonic() + 60
    while len(heard.all) < 6 and time.monotonic() < end:
        time.sleep(0.01)
    assert [fact[0] for fact in heard.all] == ["started", *["reported"] * 5]
    wait.touch()
    run.wait(60)
    assert [fact[0] for fact in heard.all[6:]] == ["ended", "close"]


class Broken(Listener):
    def reported(self, task: str, step: float, values: Mapping[str, float]) -> None:
        raise RuntimeError("no connection")

    def close(self) -> None:
        raise RuntimeError("no connection")


def test_an_error_of_a_listener_is_told_once_and_harms_nobody(
    pool: GPUPool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()
    with caplog.at_level(logging.WARNING):
        run = pool.run([Task(fits, 0.5, name="a")], folder=tmp_path / "run").listen(Broken(), heard).wait(60)
    assert run.records[0].ok
    assert len(heard.all) == 8
    assert caplog.text.count("Broken.reported failed (RuntimeError: no connection)") == 1
    assert "Broken.close" not in caplog.text


def test_what_cannot_listen_is_refused(pool: GPUPool, tmp_path: Path) -> None:
    run = pool.run([Task(abs, -1)], folder=tmp_path / "run").wait(60)
    with pytest.raises(TypeError, match=r"has no started, reported, ended, close; derive it from .*Listener"):
        run.listen(print)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is a class: make one of it"):
        run.listen(Heard)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "package"), [(TensorBoard, "tensorboard"), (WandB, "wandb")])
def test_a_package_that_is_missing_is_named_with_the_command(
    kind: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=f"{package} is not installed: pip install"):
        kind("somewhere")


@pytest.mark.slow  # imports tensorboard
def test_tensorboard_has_a_folder_per_task(pool: GPUPool, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tasks = [Task(fits, 0.5, name="a"), Task(fits, 0.25, "again", name="b"), Task(abs, -1, name="c")]
    run = pool.run(tasks, folder=tmp_path / "run").listen(TensorBoard(tmp_path / "tb")).wait(120)
    assert [record.status for record in run.records] == ["ok", "error", "ok"]
    assert sorted(path.name for path in (tmp_path / "tb" / "run").iterdir()) == ["a", "b", "c"]
    found = EventAccumulator(str(tmp_path / "tb" / "run" / "a"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [
        (step, pytest.approx(0.5 / (1 + step))) for step in range(5)
    ]
    assert "last/loss" in found.Tags()["scalars"]
    failed = EventAccumulator(str(tmp_path / "tb" / "run" / "b"))
    failed.Reload()
    (text,) = failed.Tensors("error/text_summary")
    assert b"the first attempt" in text.tensor_proto.string_val[0]


class FakeRun:
    """A run of Weights & Biases, as far as it is used."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.metrics: list[tuple[str, str | None]] = []
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.code: int | None = None

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        assert self.code is None
        self.rows.append(values)

    def finish(self, exit_code: int) -> None:
        assert self.code is None
        self.code = exit_code


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    runs: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        runs.append(FakeRun(options))
        return runs[-1]

    module: Any = types.ModuleType("wandb")
    module.init, module.Settings = init, lambda **options: options
    module.__spec__ = importlib.util.spec_from_loader("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_has_a_run_per_attempt(pool: GPUPool, tmp_path: Path, fake_wandb: list[FakeRun]) -> None:
    tasks = [Task(fits, 0.5, name="a"), Task(fits, 0.25, "again", name="b", retries=1)]
    wandb = WandB("ours", mode="offline", dir=tmp_path, tags=["t"])
    pool.run(tasks, folder=tmp_path / "run").listen(wandb).wait(60)
    by_name = {run.options["name"]: run for run in fake_wandb}
    assert set(by_name) == {"a", "b", "b (attempt 2)"}
    one = by_name["a"]
    assert {key: one.options[key] for key in ("project", "mode", "dir", "group", "config", "tags")} == {
        "project": "ours", "mode": "offline", "dir": str(tmp_path), "group": "run", "config": {"lr": 0.5},
        "tags": ["t"],
    }  # fmt: skip
    assert [(row["step"], row["loss"]) for row in one.rows] == [(step, 0.5 / (1 + step)) for step in range(5)]
    assert {run.options["name"]: run.code for run in fake_wandb} == {"a": 0, "b": 1, "b (attempt 2)": 0}
    assert (one.summary["status"], one.summary["stage"]) == ("ok", "fit")


OFFLINE = """
import sys
from mgpu_nb import GPUPool, Task, worker
from mgpu_nb.listeners import WandB
def fit(lr):
    for step in range(5):
        worker().report(step=step, loss=lr / (1 + step), stage="fit")
    if worker().attempt == 1:
        raise ValueError("the first attempt")
if __name__ == "__main__":
    with GPUPool(slots=1) as pool:
        run = pool.run([Task(fit, 0.5, name="a", retries=1)], folder=sys.argv[1] + "/run")
        assert run.listen(WandB("ours", mode="offline", dir=sys.argv[1])).wait(120).records[0].ok
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_wandb_itself_writes_offline(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(OFFLINE)
    # In a process of its own: their service ends with it.
    done = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, timeout=180, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 2
