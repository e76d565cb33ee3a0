"""The panels' HTML: pure functions of plain data."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mgpu_nb.hardware.device import Device, DeviceTable
from mgpu_nb.hardware.holders import Holder
from mgpu_nb.hardware.slots import Slot
from mgpu_nb.studies.study import Measurement, Study
from mgpu_nb.tables import STYLE, Document, Html, Table, block, line, table
from mgpu_nb.tasks import Progress, Record
from mgpu_nb.telemetry.samples import (
    DeviceSample,
    PoolActivity,
    SlotActivity,
    Snapshot,
    WorkerSample,
    WorkerState,
)
from mgpu_nb.views.devices import devices_html, past_heading, pasts
from mgpu_nb.views.markup import (
    CANCELLED,
    DONE,
    FAILED,
    RUNNING,
    bar,
    duration,
    escape,
    gib,
    sparkline,
    stacked_bar,
    status_bar,
)
from mgpu_nb.views.run import MOST_ROWS, Row, RunState, run_html, state_of
from mgpu_nb.views.table import frame_table

GIB = 2**30
EVIL = "<img src=x onerror=alert(1)>\"'&\x1b[31m\u202e"


def device(n: int = 0, **more: Any) -> DeviceSample:
    values = {
        "uuid": f"GPU-{n}", "label": f"cuda:{n}", "name": "NVIDIA H100 80GB HBM3", "kind": "cuda", "total": 80 * GIB,
        "used": 40 * GIB, "ours": 30 * GIB, "others": 10 * GIB, "utilisation": 97, "temperature": 61, "power": 402.4,
    }  # fmt: skip
    return DeviceSample(**{**values, **more})


def worker(n: int = 0, task: str = "task", memory: int = 30 * GIB) -> WorkerSample:
    state = WorkerState(
        pool=1, slot=n, label=f"cuda:{n}", uuid=f"GPU-{n}", kind="cuda", pid=100 + n, task=task
    )
    return WorkerSample(state, memory, "nvml")


def snapshots(n: int, count: int = 600, **more: Any) -> list[Snapshot]:
    one = Snapshot(1e9, tuple(device(i, **more) for i in range(n)), tuple(worker(i) for i in range(n)))
    return [replace(one, at=1e9 + i / 2) for i in range(count)]


def texts(html: Html) -> str:
    return re.sub(r"<[^>]*>", "|", re.sub(r"<style>.*?</style>", "", html, flags=re.S))


def test_every_number_stands_in_text_beside_its_bar() -> None:
    shown = texts(devices_html(snapshots(1), live=True))
    for text in (
        "cuda:0",
        "H100 80GB HBM3",
        "40.0 / 80.0 GiB",
        "30.0 GiB",
        "10.0 GiB",
        "97 %",
        "61 °C",
        "402 W",
        "task 30.0 GiB",
    ):
        assert text in shown


def test_what_nvml_does_not_know_is_empty_and_never_zero() -> None:
    row = texts(
        devices_html(snapshots(1, used=None, others=None, ours=0, utilisation=None, power=None), live=True)
    )
    assert " %" not in row
    assert " W" not in row
    assert "/ 80.0" not in row


def test_a_device_that_fails_says_why() -> None:
    assert "fell off the bus" in texts(devices_html(snapshots(2, problem="fell off the bus"), live=True))


def test_ours_others_and_free_are_the_bar() -> None:
    widths = [float(w) for w in re.findall(r"width:([\d.]+)%", devices_html(snapshots(1), live=True))]
    assert widths == [37.5, 12.5]


def test_holders_are_named_the_largest_first_and_counted() -> None:
    now = snapshots(1)[-1]
    many = replace(now, workers=tuple(worker(0, f"t{i}", i * GIB) for i in range(1, 8)))
    shown = texts(devices_html([many], live=True))
    assert "t7 7.0 GiB|t6 6.0 GiB|t5 5.0 GiB|t4 4.0 GiB|and 3 more" in shown


def test_holders_have_names() -> None:
    ana = Holder(4321, 12 * GIB, "ana", "python train.py")
    hidden = Holder(77, GIB // 2)
    now = snapshots(1, count=1, holders=(ana, hidden))[0]
    assert "task 30.0 GiB|ana: python train.py (pid 4321) 12.0 GiB|pid 77 0.50 GiB" in texts(
        devices_html([now], live=False)
    )


def test_workers_say_of_which_run_and_pool_they_are() -> None:
    (now,) = snapshots(1, count=1)
    first, second = worker(0, "fit"), worker(0, "", 2 * GIB)
    run = replace(first.state, run="/home/ana/runs/x", run_name="long")
    workers = (replace(first, state=run), replace(second, state=replace(second.state, pool=2, slot=1)))
    assert "fit of run &#x27;long&#x27; of pool 1 30.0 GiB|worker 1 of pool 2 2.0 GiB" in texts(
        devices_html([replace(now, workers=workers)], live=True)
    )
    assert "fit of run &#x27;long&#x27; 30.0 GiB" in texts(
        devices_html([replace(now, workers=workers[:1])], live=True)
    )


def test_the_sparkline_says_what_it_is_and_how_long() -> None:
    for count, said in ((81, "40 s"), (241, "2 min"), (600, "5 min"), (900, "5 min")):
        assert f"memory, last {said}" in texts(devices_html(snapshots(1, count), live=True))
    assert "last" not in texts(devices_html(snapshots(1, 1), live=True))  # one look is no course of time
    shown = texts(devices_html(snapshots(1), live=True))
    assert "▅" * 24 in shown  # half of the memory, not of its own peak
    assert "▁ empty to █ full: all memory of the device" in shown


def test_the_sparkline_is_blank_where_nobody_looked() -> None:
    before, after = snapshots(1, 100), [replace(s, at=s.at + 200) for s in snapshots(1, 100)]
    line = pasts([*before, *after])["", "GPU-0"]
    assert line.strip("▅") == " " * line.count(" ")
    assert 10 < line.count(" ") < 15
    assert set(pasts([*after, *before])["", "GPU-0"]) == {
        "▅",
        " ",
    }  # the clock was set back, and nothing fails
    hour_ago = [replace(s, at=s.at - 3600) for s in before]
    assert pasts([*hour_ago, *after])["", "GPU-0"] == "▅" * 24
    assert past_heading([*hour_ago, *after]) == "memory, last 50 s"


@pytest.mark.parametrize("count", [1, 4, 8])
def test_a_frame_is_small(count: int) -> None:
    assert len(devices_html(snapshots(count), live=True).encode()) < 10_000
    rows = tuple(
        Row(
            slot=n,
            device=f"cuda:{n}",
            task="t" * 200,
            elapsed=99.0,
            memory=GIB,
            peak=2 * GIB,
            total=80 * GIB,
            past=(GIB,) * 600,
        )
        for n in range(count)
    )
    state = RunState(
        name="n" * 300, folder="/f" * 300, at=1e9, total=10_000, counts={"ok": 9_000, "error": 5},
        running=count, done=False, rows=rows, failures=(("task" * 30, "error", "x" * 999),) * 5,
    )  # fmt: skip
    assert len(run_html(state, live=True).encode()) < 10_000


def state(**more: Any) -> RunState:
    values = {
        "name": "r",
        "folder": "/runs/r",
        "at": 1e9,
        "total": 4,
        "counts": {"ok": 1},
        "running": 2,
        "done": False,
    }
    return RunState(**{**values, **more})


def test_a_run_in_words() -> None:
    shown = texts(run_html(state(counts={"ok": 1, "out-of-memory": 1}, elapsed=3700, left=65), live=True))
    assert "2 of 4 done · 1 out of memory · 2 running · 1:01:40 elapsed · about 1:05 left" in shown


def test_slots_show_what_they_do() -> None:
    rows = (
        Row(
            slot=0,
            device="cpu:0",
            task="a",
            elapsed=61,
            progress=0.5,
            memory=GIB,
            peak=2 * GIB,
            total=4 * GIB,
            attempt=2,
        ),
        Row(slot=1, device="cpu:1"),
    )
    shown = texts(run_html(state(rows=rows), live=True))
    for text in ("0 (cpu:0)", "(attempt 2)", "1:01", "50 %", "1.00", "2.00", "1 (cpu:1)", "idle"):
        assert text in shown


@pytest.mark.parametrize("live", [True, False])
def test_all_foreign_text_is_escaped(live: bool) -> None:
    html: str = run_html(
        state(
            name=EVIL,
            folder=EVIL,
            rows=(Row(slot=0, device=EVIL, task=EVIL),),
            failures=((EVIL, EVIL, EVIL),),
            note=EVIL,
        ),
        live=live,
    )
    now = replace(snapshots(1, label=EVIL, name=EVIL)[-1], workers=(worker(0, EVIL),), note=EVIL)
    html += devices_html([now], live=live)
    html += devices_html([replace(now, devices=(device(problem=EVIL),))], live=live)
    assert "<img" not in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;&quot;&#x27;&amp;") >= 9


def test_control_characters_are_shown_as_such() -> None:
    assert escape("a\x00b\u202ec\ud800\n") == "a\ufffdb\ufffdc\ufffd\ufffd"
    assert escape("x" * 300).endswith("…")


def test_bars_never_overflow() -> None:
    assert re.findall(r"width:([\d.]+)%", stacked_bar([(9.0, "#000000"), (9.0, "#111111")], 10.0, "")) == [
        "90",
        "10",
    ]
    assert re.findall(r"width:([\d.]+)%", bar(7.0, "#000000", "")) == ["100"]
    assert "<div style" not in stacked_bar([(1.0, "#000000")], 0.0, "")


def test_pieces_of_a_bar_stay_on_one_line_whatever_they_are_rounded_to() -> None:
    for parts in range(1, 201):
        for amounts in ([1] * parts, [*range(1, parts + 1)], [1e9, *[1e-9] * (parts - 1)]):
            html = stacked_bar([(a, "#000000") for a in amounts], sum(amounts), "")
            widths = re.findall(r"width:([\d.]+)%", html)
            assert len(widths) == parts
            assert sum(round(100 * float(w)) for w in widths) <= 10_000
    assert (
        "display:inline-flex" in html
    )  # which does not wrap, and makes room for the two pixels of the smallest
    assert "[role=img] div{min-width:2px}" in STYLE


def test_a_bar_of_tasks_knows_their_progress_and_that_cancelled_is_not_failed() -> None:
    counts = {"ok": 2, "error": 1, "timeout": 1, "cancelled": 1, "skipped": 1}
    html = status_bar(counts, 10, "all", running=[0.25, None])
    pieces = re.findall(r"height:(\d)px;width:([\d.]+)%;background-color:(#\w+)", html)
    assert pieces == [
        ("8", "20", DONE), ("8", "20", FAILED), ("8", "20", CANCELLED), ("8", "2.5", RUNNING), ("2", "17.5", RUNNING),
    ]  # fmt: skip
    assert FAILED not in status_bar({"ok": 2, "cancelled": 6}, 8, "")
    assert re.findall(r"height:8px;width:([\d.]+)%", status_bar({}, 1, "", running=[0.17])) == ["17"]


def test_sparklines_have_one_width_and_the_largest_values() -> None:
    assert sparkline([], None, 5) == "     "
    assert sparkline([0, 5, 10], 10, 5) == "  ▁▅█"
    assert sparkline([0, 0, 0, 0, 10, 0, 0, 0], 10, 4) == "▁▁█▁"
    assert sparkline([None, 1], None, 2) == " █"
    assert len(sparkline(range(601), None)) == 24


def test_numbers() -> None:
    assert [duration(s) for s in (None, 0, 59.6, 3600)] == ["", "0:00", "1:00", "1:00:00"]
    assert [gib(b) for b in (None, 0, 3 * GIB // 2)] == ["", "0.0", "1.5"]


def test_a_stopped_panel_says_when() -> None:
    assert "stopped, as of" in devices_html(snapshots(1), live=False)
    assert "stopped" not in devices_html(snapshots(1), live=True)
    assert "looking at the devices" in devices_html([], live=True)


def test_a_table_escapes_text_and_keeps_html() -> None:
    cells = [[EVIL, Html("<b>bold</b>"), 3]]
    html = table([("<i>", ""), ("two", "t"), ("three", "n")], cells, EVIL, title=EVIL)
    assert "<img" not in html
    assert "<i>" not in html
    assert "<b>bold</b>" in html
    assert html.count("&lt;img src=x") == 3  # the cell, the label, the title


def test_a_static_table_states_its_alignment_in_every_cell_and_a_live_one_leaves_it_to_the_style() -> None:
    static, live = (table([("a", ""), ("b", "n o")], [["x", "1"]], "t", live=live) for live in (False, True))
    assert (
        re.findall(r'<t[hd] class="([^"]*)" style="text-align:(\w+)"', static)
        == [
            ("", "left"),
            ("n o", "right"),
        ]
        * 2
    )
    assert "style=" not in live
    with pytest.raises(ValueError, match="zip"):
        table([("a", "")], [["x", "too many"]], "t")


def test_text_and_html_of_a_table_say_the_same() -> None:
    mark = Html('<span class="e">&lt;bad&gt;</span>')
    shown = Table([("name", ""), ("size", "n")], [["a", 10], [mark, 5]], "sizes", ["two lines", "above"])
    assert repr(shown).splitlines() == ["two lines", "above", "name   size", "a        10", "<bad>     5"]
    words = [word for word in texts(shown.to_html()).split("|") if word]
    assert words == ["two lines", "above", "name", "size", "a", "10", "&lt;bad&gt;", "5"]


class Told(Document):
    def _content(self) -> list[str | Table]:
        frame = pd.DataFrame(
            {"who": ["<a>", None], "how_much": [0.123456, float("nan")], "count": [1, 20_000]}
        )
        return [
            "first & line",
            "second",
            frame_table(frame, "facts", ["above"], {"how_much": "{:.1%}"}),
            "last",
        ]


def test_a_document_is_lines_and_tables_as_text_and_as_html() -> None:
    assert repr(Told()).splitlines() == [
        "first & line", "second", "", "above",
        "who  how much   count", "<a>     12.3%       1", "               20,000", "", "last",
    ]  # fmt: skip
    html = Told()._repr_html_()
    assert html.startswith(
        f'{STYLE}<div class="mgpu"><div>first &amp; line</div><div>second</div><div>above</div><table'
    )
    assert html.endswith("</table><div>last</div></div>")
    assert '<td class="" style="text-align:left">&lt;a&gt;</td>' in html


def test_of_a_long_table_the_ends_are_shown() -> None:
    shown = Table([("n", "n"), ("square", "n")], [[n, n * n] for n in range(10_000)], "squares")
    lines = str(shown).splitlines()
    assert len(lines) == 62
    assert lines[41].strip() == "… 9,940 more …"
    assert lines[40].split() == ["39", "1521"]
    assert lines[42].split() == ["9980", str(9980**2)]
    assert "… 9,940 more …" in texts(shown.to_html())
    assert len(shown.to_html()) < 20_000
    assert len(shown.rows) == 10_000
    assert len(str(Table([("a", "")], [["x" * 500 + "\ny"]], "long")).splitlines()[-1]) == 60


def test_a_cell_of_several_lines_has_them_in_a_terminal_too() -> None:
    shown = Table(
        [("name", ""), ("held by", "t"), ("n", "n")], [["a", Html("x &amp; y<br>z"), 10], ["b", "", 5]], "t"
    )
    assert str(shown).splitlines() == [
        "name  held by   n",
        "a     x & y    10",
        "      z",
        "b               5",
    ]
    assert "x &amp; y<br>z" in shown.to_html()


def test_all_tables_have_one_look() -> None:
    gpu = Device(index=0, kind="cuda", name=EVIL, uuid="GPU-0", total=GIB)
    study = Study([Measurement(1, 0, 2.0, (1.0, 1.0)), Measurement(2, 0, 1.0, (1.0, 1.0))], [EVIL])
    shown = [
        DeviceTable([gpu], notes=[EVIL])._repr_html_(),
        study._repr_html_(),
        devices_html(snapshots(1), live=False),
        run_html(state(rows=(Row(slot=0, device="cpu:0"),)), live=False),
        block(line("a"), table([("a", "n")], [[1]], "b")),
    ]
    for html in shown:
        assert html.startswith(f'{STYLE}<div class="mgpu">')
        assert re.search(
            r'<table aria-label="[^"]+">.*<thead>.*<th class="[^"]*" style="text-align:\w+" scope="col">',
            html,
        )
        assert "<img" not in html


def activity_of(*does: str, run: str = "/runs/r") -> PoolActivity:
    """Slots, busy with tasks of these names of a run; idle where the name is empty."""
    slots = [
        SlotActivity(
            slot=n, label=f"cuda:{n}", state="busy" if name else "idle", task=name, run=run if name else "",
            run_name="r" if name else "", run_began=1e9 if name else None, since=1e9 if name else None,
        )
        for n, name in enumerate(does)
    ]  # fmt: skip
    return PoolActivity(pool=1, slots=tuple(slots))


@dataclass
class FakeJob:
    name: str
    attempt: int
    metrics: dict[str, Any]


class FakeRun:
    """A run of many tasks, of which one runs at each slot."""

    def __init__(self, slots: int, tasks: int, ended: int) -> None:
        self.name, self.folder = (
            "train-the-model",
            Path("/home/somebody/project/runs/train-the-model-20260101-000000"),
        )
        self.tasks = [f"train-{n}" for n in range(tasks)]
        self.slots = [
            Slot(index=n, kind="cuda", gpu_id=n, uuid=f"GPU-{n}", name="H100", threads=1)
            for n in range(slots)
        ]
        self.began, self.ended_at, self.done, self.share, self.time_left = 1e9, None, False, 0.17, 99.0
        self.running = [
            FakeJob(self.tasks[ended + n], 1, {"progress": 0.3, "loss": 0.123456, "accuracy": 0.987})
            for n in range(slots)
        ]
        self.activity = activity_of(*(job.name for job in self.running), run=str(self.folder))
        self.pool = 1
        self.waits_for: list[tuple[str, str]] = []
        self.after: dict[str, tuple[str, ...]] = {}
        self.states: dict[str, str] = {}
        self.others: list[Any] = []
        self.left_words: list[str] = []
        self.writer = self.state_words = ""
        self.can_be_cancelled = True
        self.peak = 30 * GIB
        self.records = [
            Record(name=name, index=n, kind="k", status="ok" if n % 100 else "error", error="ValueError: bad")
            for n, name in enumerate(self.tasks[:ended])
        ]
        self.progress = Progress(tasks, ended, slots, {"ok": ended - ended // 100, "error": ended // 100})

    @property
    def failures(self) -> list[Record]:
        return [record for record in self.records if record.failed]

    def charts(self) -> Any:
        return [], []

    def peak_of(self, task: str) -> int | None:
        return 20 * GIB

    def log_file(self, name: str) -> Path:
        return self.folder / name

    def cancel(self) -> None: ...

    def when_done(self, follower: Any) -> None: ...


def history_of(run: FakeRun, count: int = 240) -> list[Snapshot]:
    workers = tuple(
        WorkerSample(
            WorkerState(
                pool=1, slot=n, label=f"cuda:{n}", uuid=f"GPU-{n}", kind="cuda", pid=n, task=job.name,
                run=str(run.folder), began=1e9,
            ),
            (n % 30) * GIB,
            "nvml",
        )
        for n, job in enumerate(run.running)
    )  # fmt: skip
    one = Snapshot(1e9, tuple(device(n) for n in range(len(run.running))), workers)
    return [one] * count


@pytest.mark.parametrize("slots", [2, 8, 12, 64])
def test_a_frame_of_ten_thousand_tasks_is_small(slots: int) -> None:
    run = FakeRun(slots, 10_000, 9_000)
    html = run_html(state_of(run, history_of(run)), live=True)
    assert len(html.encode()) < 10_000
    shown = texts(html)
    assert "9000 of 10000 done" in shown
    assert "failed, the last 5 of 90" in shown
    if slots > MOST_ROWS:
        assert f"and {slots - MOST_ROWS} more slots: {slots - MOST_ROWS} busy" in shown


def test_columns_are_the_same_for_the_life_of_a_run() -> None:
    def columns(rows: tuple[Row, ...]) -> list[str]:
        return re.findall(r"<th [^>]*>([^<]*)", run_html(state(rows=rows), live=True))

    idle = (Row(slot=0, device="cpu:0"),)
    busy = (
        Row(
            slot=0,
            device="cpu:0",
            task="a",
            elapsed=1,
            memory=GIB,
            total=4 * GIB,
            progress=0.5,
            said=(("x", 1),),
        ),
    )
    assert columns(idle) == columns(busy)
    assert "memory, last 2 min" in columns(idle)


def test_a_sparkline_says_what_it_is_full_at() -> None:
    rows = (Row(slot=0, device="cpu:0", task="a", past=(GIB, None, 2 * GIB)),)
    html = run_html(state(rows=rows, top=2 * GIB), live=True)
    assert "memory, last 2 min, full at 2.00 GiB" in html
    assert '<td class="s">▅ █</td>' in html  # beside its heading: no blanks before it


def test_what_is_cancelled_is_counted_apart() -> None:
    ended = state(done=True, running=0, total=8, counts={"ok": 2, "cancelled": 6})
    assert "2 ok, 6 cancelled" in texts(run_html(ended, live=False))
    assert "failed" not in texts(run_html(ended, live=False))
    half = state(running=1, total=8, counts={"ok": 2, "cancelled": 1}, share=0.1749)
    assert "3 of 8 done · 1 cancelled · 1 running, 17 %" in texts(run_html(half, live=True))


def test_a_row_says_what_its_slot_does_for_others() -> None:
    run = FakeRun(2, 10, 2)
    run.activity = activity_of("x", "", run="/runs/other")
    run.running, run.progress = [], Progress(10, 2, 0, {"ok": 2})
    run.waits_for = [("train-2", "train-1")]
    run.left_words = ["an earlier execution of this cell left run 'long' (2 of 4 done) under way"]
    shown = texts(run_html(state_of(run), live=True)).replace("&#x27;", "'")
    assert "busy with run 'r' of 2001-09-" in shown
    assert "idle: 'train-2' waits for 'train-1'" in shown
    assert "an earlier execution of this cell left run 'long' (2 of 4 done) under way" in shown
    assert "its tasks wait: 'train-2' waits for 'train-1'" in shown
