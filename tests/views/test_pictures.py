"""Timeline, memory and table: asserted on their data."""

import re
import time
from pathlib import Path
from typing import Any

import jobs
import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import mgpu_nb
from mgpu_nb import GPUPool, Record, Run, Task
from mgpu_nb.runs.ledger import Ledger
from mgpu_nb.tasks import Status
from mgpu_nb.views.memory import memory
from mgpu_nb.views.palette import FAILURE, NEUTRAL
from mgpu_nb.views.table import run_table
from mgpu_nb.views.timeline import PIXELS, timeline

matplotlib.use("Agg")
GIB = 2**30


def record(
    name: str, slot: int, started: float, seconds: float, status: Status = "ok", **more: Any
) -> Record:
    return Record(
        name=name,
        index=0,
        kind="m:f",
        status=status,
        slot=slot,
        device=f"cpu:{slot}",
        started=started,
        seconds=seconds,
        **more,
    )


def boxes(ax: Any) -> dict[str, list[tuple[float, float, int]]]:
    """Left, width and row of the bars of each kind, in the order drawn."""
    found = {}
    for collection in ax.collections:
        corners = [path.get_extents() for path in collection.get_paths()]
        found[collection.get_label()] = [
            (round(c.x0, 9), round(c.width, 9), round((c.y0 + c.y1) / 2)) for c in corners
        ]
    return found


def test_a_bar_per_task_where_and_when_it_ran() -> None:
    records = [
        record("a-1", 0, 100.0, 2.0),
        record("a-2", 1, 100.5, 1.0, "error"),
        record("b-1", 0, 102.0, 3.0),
        record("b-2", 1, 102.0, 1.0, "cancelled"),
    ]
    ax = timeline([*records, Record(name="c", index=3, kind="m:f", status="cancelled")])
    gap = 5 / PIXELS  # the page between two tasks
    assert boxes(ax) == {
        "a": [(0, pytest.approx(2 - gap), 0), (0.5, pytest.approx(1 - gap), 1)],
        "b": [(2, pytest.approx(3 - gap), 0)],
        "cancelled": [(2, pytest.approx(1 - gap), 1)],
    }
    (marks,) = ax.get_lines()
    assert marks.get_label() == "failed (1)"
    assert np.asarray(marks.get_xydata()).tolist() == [[1.0, 1.0]]
    colours = [to_hex(np.asarray(collection.get_facecolor())[0]).upper() for collection in ax.collections]
    assert len({*colours, FAILURE}) == 4
    assert colours[2] == NEUTRAL
    assert [label.get_text() for label in ax.get_yticklabels()] == ["slot 0 (cpu:0)", "slot 1 (cpu:1)"]
    with pytest.raises(ValueError, match="no task has started"):
        timeline([])


def test_a_timeline_has_the_kinds_that_it_is_told() -> None:
    records = [record(f"{name}_r{n}", n, 10.0 * n, 1.0) for n in (1, 2) for name in "ab"]
    assert list(boxes(timeline(records, by=lambda name: f"round {name[-1]}"))) == ["round 1", "round 2"]


def test_a_timeline_names_the_kinds_that_took_the_most_time() -> None:
    ax = timeline([record(f"kind{n}-1", n % 2, 10.0 * n, 1.0 + n) for n in range(9)])
    assert list(boxes(ax)) == ["kind4", "kind5", "kind6", "kind7", "kind8", "others"]
    assert len(boxes(ax)["others"]) == 4


def test_a_pixel_of_short_tasks_has_the_colour_of_what_took_its_time() -> None:
    long = record("long", 0, 0.0, 600.0)
    short = [record(f"{kind}-{n}", 1, 10.0 + 0.1 * n, 0.1) for n, kind in enumerate("abbb")]
    assert boxes(timeline([long, *short])) == {"long": [(0, 599, 0)], "a": [], "b": [(10, 1, 1)]}
    nothing = [record(f"n-{n}", n, 5.0, 0.0) for n in range(1000)]
    ax = timeline(nothing)
    assert len(boxes(ax)["n"]) == 1000
    assert len(ax.get_yticks()) <= 25
    assert ax.get_window_extent().height < 1000


@pytest.mark.slow
def test_a_timeline_of_ten_thousand_tasks_has_few_artists() -> None:
    records = [
        record(f"{'abcd'[n % 4]}-{n}", n % 8, n / 1000, 0.008, "error" if n % 100 == 0 else "ok")
        for n in range(10_000)
    ]
    ax = timeline(records)
    ax.figure.canvas.draw()
    assert len(ax.collections) + len(ax.lines) <= 5
    assert sum(map(len, boxes(ax).values())) <= 8 * (PIXELS + 1)


def samples() -> pd.DataFrame:
    at = pd.to_datetime([0, 0, 1, 1, 2], unit="s", utc=True)
    return pd.DataFrame(
        {
            "at": at, "kind": ["device", "task", "device", "task", "device"], "device": "cuda:0", "slot": 0,
            "task": [None, "big", None, "big", None], "used": [4 * GIB, 3 * GIB, 6 * GIB, 5 * GIB, GIB],
        }
    )  # fmt: skip


def test_memory_over_time_with_its_peak_named() -> None:
    ax = memory(samples())
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in ax.get_lines()}
    assert lines == {"memory of tasks on cuda:0": [3.0, 5.0, 0.0], "memory, all of cuda:0": [4.0, 6.0, 1.0]}
    assert [text.get_text() for text in ax.texts] == ["big: 5.00 GiB"]
    assert ax.get_title() == "Memory of the run's tasks"
    with pytest.raises(ValueError, match="no samples"):
        memory(samples()[:0])


def test_utilisation_is_beside_the_memory_with_an_axis_of_its_own() -> None:
    known = samples()
    known["utilisation"] = [None if kind == "task" else 40.0 + n for n, kind in enumerate(known["kind"])]
    ax = memory(known, utilisation=True)
    (right,) = [other for other in ax.figure.axes if other is not ax]
    assert (ax.get_ylabel(), right.get_ylabel()) == ("memory, GiB", "utilisation, %")
    (line,) = right.get_lines()
    assert line.get_label() == "utilisation of cuda:0"
    assert line.get_linestyle() == "--"
    assert line.get_color() == ax.get_lines()[0].get_color()
    assert len(np.asarray(line.get_ydata())) == 3
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()][-1] == "utilisation of cuda:0"
    known["device"] = known["device"].where(known["kind"] == "task", "cpu")
    (_, cores) = memory(known, utilisation=True).figure.axes
    assert cores.get_lines()[0].get_label() == "utilisation of all cores"
    known["utilisation"] = np.nan
    assert len(memory(known, utilisation=True).figure.axes) == 1


def test_pictures_of_a_run_take_axes(pool: GPUPool, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    tasks = [Task(jobs.hangs, 0.7, name="naps"), Task(jobs.raises, "=1+1 <b>", name="fails")]
    run = pool.run(tasks, folder=tmp_path / "run").wait(60)
    _, axes = plt.subplots(2)
    assert run.plot_timeline(ax=axes[0]) is axes[0]
    assert run.plot_memory(ax=axes[1], utilisation=True) is axes[1]
    assert len(axes[1].figure.axes) == 3  # the cores of this machine are known
    again = Run.open(run.folder)
    assert len(again.samples()) == len(run.samples()) > 0
    shown = run.table().to_html()
    assert "✗ error" in shown
    assert "&lt;b&gt;" in shown
    assert "peak, GiB" in shown
    assert re.search(r"^fails +✗ error +", str(run.table()), re.MULTILINE)
    plt.close("all")


def test_a_run_without_samples_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no samples"):
        Run(Ledger("empty", tmp_path, ["a"])).plot_memory()


def test_a_runs_table_leaves_out_what_is_empty_and_formats_what_was_reported() -> None:
    rows = [
        record("a", 0, 100.0, 2.0, metrics={"loss": 0.123456, "epoch": 3, "tags": ["x", "y"]}),
        Record(name="b", index=1, kind="m:f", status="skipped"),
    ]
    ledger = Ledger("r", Path("r"), ["a", "b", "c"])
    for row in rows:
        ledger.ended(row)
    run = Run(ledger)
    lines = [re.split(r"  +", line) for line in str(run_table(run.frame())).splitlines()]
    assert lines[0] == [*("name", "status", "loss", "epoch", "tags", "device", "started, s", "seconds")]
    assert lines[1] == ["a", "ok", "0.1235", "3", "['x', 'y']", "cpu:0", "0.00", "2.00"]
    assert [line[:2] for line in lines[2:]] == [["b", "– skipped"], ["c", "· queued"]]
    assert "nan" not in str(lines).lower()


@pytest.mark.slow
def test_a_table_of_ten_thousand_tasks_is_short_and_shows_what_failed() -> None:
    failed = range(100, 9_000, 400)  # 23 of them
    ledger = Ledger("r", Path("r"), [f"t-{n}" for n in range(10_000)])
    for n in range(9_000):
        status: Status = "error" if n in failed else "cancelled" if n == 50 else "ok"
        ledger.ended(record(f"t-{n}", 0, n, 1.0, status, error="E: no such file" if n in failed else None))
    frame = Run(ledger).frame()
    began = time.process_time()
    shown = run_table(frame)
    html, text = shown.to_html(), str(shown)
    assert time.process_time() - began < 5  # a collection of all the tests have left takes half of one
    assert len(html.encode()) < 25_000
    lines = text.splitlines()
    assert len(lines) == 1 + 15 + 15 + 10 + 16  # heading, first, failed, last, gaps
    assert [line.split()[0] for line in lines[1:16]] == [f"t-{n}" for n in range(15)]
    assert [line.split()[0] for line in lines if "no such file" in line] == [f"t-{n}" for n in [*failed][:15]]
    assert re.search(r"^… 85 more … +84 ok, 1 cancelled$", text, re.MULTILINE)
    assert re.search(r"^… 4,289 more … +3,291 ok, 990 queued, 8 error$", text, re.MULTILINE)
    assert [line.split()[0] for line in lines[-10:]] == [f"t-{n}" for n in range(9_990, 10_000)]
    assert len(run_table(frame[:40]).rows) == 40
    assert len(run_table(frame[60:101]).rows) == 15 + 10 + 1  # nothing failed between


def test_a_long_value_does_not_make_a_table_wide() -> None:
    ledger = Ledger("r", Path("r"), ["a"])
    ledger.ended(record("a", 0, 0.0, 1.0, metrics={"note": "x" * 100_000 + "\n<b>"}))
    shown = run_table(Run(ledger).frame())
    assert len(shown.to_html()) < 4_000
    assert max(map(len, str(shown).splitlines())) < 200


@pytest.mark.slow
def test_names_that_look_like_markup_or_formulas(tmp_path: Path, pool: GPUPool) -> None:
    run = pool.run(
        [Task(reports_markup, name="cost $a_$ x"), Task(jobs.raises, "$", name="$b")], folder=tmp_path / "run"
    )
    run.wait(60)
    html = run.table().to_html()
    assert "<img" not in html
    assert "&lt;img" in html
    assert "attempts" in html
    run.plot_timeline().figure.canvas.draw()


def reports_markup() -> None:
    mgpu_nb.worker().report(
        **{"<img src=x onerror=alert(1)>": 1, "attempts": 3, "name": "mine", "seconds": 1}
    )
