"""The graph of the tasks of a run."""

from __future__ import annotations

import itertools
from pathlib import Path

import jobs
import pytest

from mgpu_nb import GPUPool, Run, Task, ValueOf
from mgpu_nb.views.graph import RUNS, WAITS, graph, graph_html, layout

AFTER = {
    "b-train": ("b-0", "b-1"),
    "b-0": (),
    "b-1": (),
    "a-0": (),
    "a-train": ("a-0",),
    "a-more": ("a-train",),
    "<free>$1": (),
}
STATES = {
    "b-0": "ok", "b-1": "error", "b-train": "skipped", "a-0": "ok", "a-train": RUNS, "a-more": WAITS,
    "<free>$1": "cancelled",
}  # fmt: skip


def test_a_task_stands_right_of_what_it_waits_for_and_no_two_share_a_place() -> None:
    places = layout(AFTER)
    assert list(places) == list(AFTER)
    for name, others in AFTER.items():
        assert all(places[other][0] < places[name][0] for other in others)
    assert places["a-train"] == (1.0, places["a-0"][1])
    assert places["b-train"][1] == (places["b-0"][1] + places["b-1"][1]) / 2
    by_column: dict[float, list[float]] = {}
    for x, y in places.values():
        by_column.setdefault(x, []).append(y)
    for rows in by_column.values():
        ordered = sorted(rows)
        assert all(b - a >= 0.999 for a, b in itertools.pairwise(ordered))


def test_a_chain_of_thousands_and_a_fan_of_thousands_are_laid_out() -> None:
    chain = {str(n): (str(n - 1),) if n else () for n in range(5000)}
    assert layout(chain)["4999"] == (4999.0, 0.0)
    fan = {str(n): () for n in range(3000)} | {"last": tuple(map(str, range(3000)))}
    assert layout(fan)["last"] == (1.0, 2999 / 2)


def test_the_panel_names_states_in_words_and_escapes() -> None:
    html = graph_html(AFTER, STATES)
    assert (
        'aria-label="graph of the tasks: 2 ok, 1 running, 1 waiting, 1 failed, 2 cancelled or skipped"'
        in html
    )
    assert "<title>b-1: error</title>" in html
    assert "&lt;free&gt;$1: cancelled" in html
    assert "<free>" not in html
    assert (
        len(
            graph_html(
                {f"t{n}": ("t0",) if n else () for n in range(60)},
                dict.fromkeys((f"t{n}" for n in range(60)), "ok"),
            )
        )
        < 9_000
    )
    assert graph_html({"a": (), "b": ()}, {"a": "ok", "b": "ok"}) == ""


def test_the_picture_has_a_marker_for_each_state() -> None:
    ax = graph(AFTER, STATES)
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "ok (2)", "running (1)", "waiting (1)", "failed (1)", "cancelled or skipped (2)",
    ]  # fmt: skip
    assert len(ax.texts) == len(AFTER)
    ax.figure.canvas.draw()  # a dollar sign is no formula
    with pytest.raises(ValueError, match="no tasks"):
        graph({}, {})


def test_a_run_and_its_folder_have_the_same_graph(pool: GPUPool, tmp_path: Path) -> None:
    tasks = [
        Task(jobs.add, 1, 1, name="a"),
        Task(jobs.add, ValueOf("a"), 1, name="b"),
        Task(jobs.raises, name="c", after="a"),
        Task(jobs.add, 1, 1, name="d", after=["b", "c"]),
    ]
    run = pool.run(tasks, folder=tmp_path / "run")
    run.wait(60)
    opened = Run.open(tmp_path / "run")
    for each in (run, opened):
        texts = each.plot_graph().get_legend()
        assert texts is not None
        assert [text.get_text() for text in texts.get_texts()] == [
            "ok (2)",
            "failed (1)",
            "cancelled or skipped (1)",
        ]
        assert each._ledger.after == {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
        assert 0 <= (each.idle or 0.0) < 1
