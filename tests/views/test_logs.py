"""The logs of a run in its panel: which are listed, and that the chosen one follows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mgpu_nb.views import logs
from mgpu_nb.views.logs import LISTED, LogBox, log_html
from mgpu_nb.views.run import ObservedRun


@dataclass
class Tasks:
    """A run as far as its logs are concerned."""

    folder: Path
    tasks: list[str]
    running: list[Any] = field(default_factory=list)
    failures: list[Any] = field(default_factory=list)

    def log_file(self, name: str) -> Path:
        return self.folder / f"{self.tasks.index(name)}.log"

    def run(self, *names: str) -> None:
        self.running = [SimpleNamespace(name=name) for name in names]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [100.0]
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def box_of(run: Tasks) -> tuple[LogBox, Any, Any, Any]:
    box = LogBox(cast(ObservedRun, run))
    choices, text = box.make()
    return box, choices[0], choices[1] if len(choices) > 1 else None, text


def listed(list_: Any) -> list[str]:
    return [name for _, name in list_.options[1:]]


def test_the_chosen_log_follows_and_stays(tmp_path: Path, clock: Callable[[float], None]) -> None:
    run = Tasks(tmp_path, ["a", "b"])
    box, choice, name, text = box_of(run)
    assert name is None
    assert listed(choice) == []
    run.run("a", "b")
    box.update()
    assert listed(choice) == []  # they may be short
    clock(3)
    box.update()
    assert listed(choice) == ["a", "b"]
    choice.value = "a"
    assert "nothing was written yet" in text.value
    run.log_file("a").write_bytes(b"first\n 5%\r<b>50%")
    box.update()
    assert "first<br>&lt;b&gt;50%</div>" in text.value
    before = text.value
    box.update()
    assert text.value is before
    run.run()  # both have ended
    run.log_file("a").write_bytes(b"first\nlast\n")
    box.update()
    assert "first<br>last</div>" in text.value
    assert choice.value == "a"
    assert listed(choice) == ["a", "b"]
    assert "first<br>last</div>" in box.html
    choice.value = ""
    assert (text.value, box.html) == ("", "")


def test_ten_thousand_tasks_send_few_options(tmp_path: Path, clock: Callable[[float], None]) -> None:
    run = Tasks(tmp_path, [f"t{n}" for n in range(10_000)])
    run.failures = [SimpleNamespace(name=f"t{n}") for n in range(5000)]
    box, choice, name, text = box_of(run)
    assert listed(choice) == [f"t{n}" for n in range(4999, 4999 - LISTED, -1)]
    for n in range(0, 200, 2):
        run.run(f"t{5000 + n}", f"t{5001 + n}")
        box.update()
        clock(3)
        box.update()
        assert listed(choice)[:2] == [f"t{5000 + n}", f"t{5001 + n}"]
        assert len(choice.options) == LISTED + 1
    assert len(box._since) <= 2 * LISTED
    run.log_file("t9876").write_text("asked for\n")
    name.value = " t9876 "
    assert (name.value, choice.value) == ("", "t9876")
    assert "asked for" in text.value
    name.value = "T12"
    assert "no task &#x27;T12&#x27; in this run: t12, t120, t121, t122, t123" in text.value
    name.value = "<b>"
    assert "in this run: the first is t0" in text.value
    assert "<b>" not in text.value


def test_a_choice_outlives_changes_of_the_list(tmp_path: Path, clock: Callable[[float], None]) -> None:
    run = Tasks(tmp_path, ["a", "b", "c"], failures=[SimpleNamespace(name="c")])
    box, choice, _, text = box_of(run)
    run.log_file("c").write_text("why\n")
    choice.value = "c"
    run.run("a")
    clock(3)
    box.update()
    clock(3)
    box.update()
    assert listed(choice) == ["c", "a"]
    assert choice.value == "c"
    assert "why" in text.value


def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    run = Tasks(tmp_path, ["a"])
    run.log_file("a").write_bytes(b"".join(b"line %d\n" % n for n in range(10**6)))
    html = log_html(cast(ObservedRun, run), "a")
    assert "line 999999</div>" in html
    assert "the last 40 lines of" in html
    assert html.count("<br>") == 39
    assert len(html) < 10_000
    run.log_file("a").write_bytes(b"x" * 10**6)
    assert len(log_html(cast(ObservedRun, run), "a")) < 10_000
