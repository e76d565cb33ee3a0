"""Panels, tables and pictures of work on several machines: every device behind the name of its node."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pynvml
import pytest
from cluster_nodes import GIB, content, no_nodes, node, sample, worker
from fake_nvml import install

from mgpu_nb import watch
from mgpu_nb.hardware import nodes
from mgpu_nb.runs.frame import sort_frame, task_frame, task_rows
from mgpu_nb.store.export import export
from mgpu_nb.store.reading import Journal
from mgpu_nb.tasks import Progress, Record
from mgpu_nb.telemetry import sampler
from mgpu_nb.telemetry.sampler import Sampler
from mgpu_nb.telemetry.samples import PoolActivity, SlotActivity, Snapshot, WorkerState
from mgpu_nb.views.activity import reason_to_wait
from mgpu_nb.views.devices import MOST_DEVICES, devices_html
from mgpu_nb.views.lists import pool_html, pools_table, slots_table
from mgpu_nb.views.memory import memory
from mgpu_nb.views.run import run_html, state_of
from mgpu_nb.views.table import run_table
from mgpu_nb.views.terminal import device_lines, text
from mgpu_nb.views.timeline import timeline

HERE = socket.gethostname()
EVIL = "<script>alert(1)</script>\x1b[2J\u202e"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(monkeypatch, [], init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    monkeypatch.setattr(sampler, "shared", Sampler())
    with no_nodes():
        yield
    plt.close("all")


def texts(html: str) -> str:
    return re.sub(r"<[^>]*>", "|", re.sub(r"<style>.*?</style>", "", html, flags=re.S))


def state(host: str, n: int = 0, slot: int = 0, **more: Any) -> WorkerState:
    place = {"label": f"cuda:{n}", "uuid": f"GPU-{n}", "kind": "cuda", "pid": 100}
    return WorkerState(pool=1, slot=slot, host=host, **{**place, **more})


class Pool:
    def __init__(self, *states: WorkerState) -> None:
        self._states = states

    def states(self) -> tuple[WorkerState, ...]:
        return self._states


def take(*states: WorkerState) -> Snapshot:
    one, pool = Sampler(), Pool(*states)
    one.add_pool(pool)
    return one.take()


def two_nodes() -> Snapshot:
    """Two nodes of the same devices and pids, whose workers hold 6 and 7 GiB."""
    node("n1")
    node("n2", content(workers=[worker(memory=7 * GIB)], samples=[sample(used=9 * GIB, ours=7 * GIB)]))
    return take(state("n1", task="a"), state("n2", slot=1, task="b"))


# Devices.


@pytest.mark.parametrize("live", [True, False])
def test_every_device_of_the_panel_has_its_node_and_its_own_holders(live: bool) -> None:
    shown = texts(devices_html([two_nodes()] * 3, live=live))
    order = [shown.index(words) for words in ("|cpu|", "n1 cuda:0", "a 6.0 GiB", "n2 cuda:0", "b 7.0 GiB")]
    assert order == sorted(order)
    assert shown.count("ana: python train.py (pid 9) 2.0 GiB") == 2
    assert "8.0 / 40.0 GiB" in shown
    assert "9.0 / 40.0 GiB" in shown


def test_lines_of_a_terminal_have_the_nodes_too() -> None:
    lines = text(device_lines([two_nodes()], 120)).splitlines()
    assert [line.split()[:2] for line in lines[2:6:2]] == [["n1", "cuda:0"], ["n2", "cuda:0"]]
    assert lines[3].strip() == "a 6.0 GiB; ana: python train.py (pid 9) 2.0 GiB"
    assert lines[5].strip() == "b 7.0 GiB; ana: python train.py (pid 9) 2.0 GiB"
    narrow = text(device_lines([two_nodes()], 40)).splitlines()
    assert max(map(len, narrow)) <= 40


def test_sparklines_of_two_nodes_do_not_mix() -> None:
    now = two_nodes()
    half = [replace(device, used=20 * GIB) if device.host == "n2" else device for device in now.devices]
    history = [replace(now, at=now.at + n / 2, devices=tuple(half)) for n in range(100)]
    rows = re.findall(r"<tr>.*?</tr>", devices_html(history, live=True))
    line = {name: next(row for row in rows if f"{name} cuda:0" in row) for name in ("n1", "n2")}
    assert "▅" * 24 in line["n2"]
    assert "▅" not in line["n1"]


def test_watch_shows_nodes_and_who_was_lost() -> None:
    gone = node("n1")
    node("n2")
    assert "n1 cuda:0" in repr(watch())
    nodes.remove(gone, "its agent ended")
    shown = repr(watch())
    assert "n1 cuda:0" not in shown
    assert "n2 cuda:0" in shown
    assert re.search(r"node n1 was lost at \d\d:\d\d:\d\d: its agent ended", shown)
    assert "node n1 was lost" in texts(watch()._html(live=True))


def test_a_silent_node_says_so_in_place_of_figures() -> None:
    node("n1", ago=60)
    now = take(state("n1", task="a"))
    shown = texts(devices_html([now], live=True))
    assert "n1 cuda:0" in shown
    assert "not heard of for 60 s" in shown
    assert "8.0 / 40.0" not in shown
    assert "ana" not in shown
    assert "n1 cuda:0  not heard of for 60 s" in text(device_lines([now], 100))


def test_of_many_devices_the_rest_is_added_up() -> None:
    for n in range(125):
        node(f"n{n}", content(samples=[sample(i) for i in range(8)]))
    now = take()
    html = devices_html([now] * 100, live=True)
    left = 1001 - MOST_DEVICES
    said = f"and {left} more devices on 122 machines: {8 * left:,}.0 of {40 * left:,}.0 GiB used".replace(
        ",", ""
    )
    assert said in texts(html)
    assert len(html.encode()) < 40_000
    lines = text(device_lines([now] * 100, 100)).splitlines()
    assert len(lines) < 2 * MOST_DEVICES + 5
    assert said in lines


def test_hostile_nodes_are_shown_and_do_nothing() -> None:
    lost = node(EVIL + "2")
    node(
        EVIL,
        content(
            samples=[
                sample(label=EVIL, name=EVIL, holders=[{"pid": 1, "command": EVIL}]),
                sample(1, problem=EVIL),
            ]
        ),
    )
    nodes.remove(lost, EVIL)
    now = take(state(EVIL, task=EVIL))
    html = devices_html([now], live=False)
    plain = text(device_lines([now], 200))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 5
    for shown in (html, plain):
        assert not set("\x1b\u202e") & set(shown)


# Runs.


def activity(*hosts: str, **more: Any) -> PoolActivity:
    slots = [
        SlotActivity(
            slot=n, label="cuda:0", host=host, state="busy", task=f"t{n}", run="/runs/r", run_name="r", run_began=1e9,
            since=1e9,
        )
        for n, host in enumerate(hosts)
    ]  # fmt: skip
    return PoolActivity(pool=1, slots=tuple(slots), **more)


class FakeJob:
    def __init__(self, name: str) -> None:
        self.name, self.attempt, self.metrics = name, 1, {"progress": 0.5}


class FakeRun:
    """A run of two tasks, each at a slot of the pool."""

    def __init__(self, doing: PoolActivity) -> None:
        self.name, self.folder, self.activity = "r", Path("/runs/r"), doing
        self.tasks, self.slots = ["t0", "t1"], ()
        self.records = self.failures = ()
        self.began, self.ended_at, self.done, self.share, self.time_left = 1e9, None, False, 0.5, 9.0
        self.running = [FakeJob(slot.task) for slot in doing.slots]
        self.waits_for = self.others = self.left_words = ()
        self.writer = self.state_words = ""
        self.can_be_cancelled = True
        self.pool = 1
        self.peak = 7 * GIB
        self.progress = Progress(2, 0, len(self.running), {})

    def peak_of(self, task: str) -> int | None:
        return None


def panel(doing: PoolActivity, *history: Snapshot) -> str:
    run: Any = FakeRun(doing)
    return texts(run_html(state_of(run, history), live=True))


def test_a_run_has_each_worker_at_its_node_with_its_memory() -> None:
    node("n1")
    node("n2", content(workers=[worker(memory=10 * GIB)], samples=[sample(total=20 * GIB)]))
    now = take(state("n1", task="t0", run="/runs/r"), state("n2", slot=1, task="t1", run="/runs/r"))
    run: Any = FakeRun(activity("n1", "n2"))
    shown = state_of(run, [now])
    assert [(row.device, row.memory, row.total) for row in shown.rows] == [
        ("n1 cuda:0", 6 * GIB, 40 * GIB),
        ("n2 cuda:0", 10 * GIB, 20 * GIB),
    ]
    assert "0 (n1 cuda:0)" in panel(activity("n1", "n2"), now)


def test_slots_that_come_and_go_keep_their_devices() -> None:
    """Slot 0 has left: what is shown of slot 1 is its own."""
    node("n2")
    now = take(state("n2", slot=1, task="t1", run="/runs/r"))
    doing = activity("n1", "n2")
    run: Any = FakeRun(replace(doing, slots=doing.slots[1:]))
    ((row,), _) = state_of(run, [now]).rows, now
    assert (row.slot, row.device, row.task, row.memory, row.total) == (
        1,
        "n2 cuda:0",
        "t1",
        6 * GIB,
        40 * GIB,
    )


def test_memory_that_a_node_has_not_told_is_a_dash() -> None:
    node("n1", ago=60)
    now = take(state("n1", task="t0", run="/runs/r"))
    shown = panel(activity("n1"), now)
    assert re.search(r"\|t0\|[^-]*50 %\|+-\|", shown)
    assert "6.00" not in shown
    assert "not heard of for 10 s or more: n1" in shown
    assert "|-|" not in panel(activity(HERE), now)


def test_a_run_says_what_its_pool_waits_for_and_who_was_lost() -> None:
    nodes.remove(node("n9"), "its agent ended")
    now = take()
    waits = "2 of 4 nodes (SLURM job 17: PENDING, Resources)"
    shown = panel(activity("n1", waits_for=waits), now)
    assert f"the pool waits for {waits}" in shown
    assert "node n9 was lost" in shown
    empty = panel(activity(waits_for=waits), now)
    assert empty.count(waits) == 1
    assert f"its tasks wait: the pool waits for {waits}" in empty
    assert reason_to_wait(activity()) == "no slot is in use"
    assert reason_to_wait(activity(waits_for=EVIL)) == f"the pool waits for {EVIL}"
    assert "<script" not in run_html(state_of(FakeRun(activity(waits_for=EVIL)), [now]), live=True)  # type: ignore[arg-type]
    assert "n9" not in panel(activity(HERE), now)  # a pool of this machine has nothing to do with it


def test_tables_of_pools_have_the_nodes_and_what_is_waited_for() -> None:
    doing = activity("n1", "n2", HERE, waits_for="1 of 3 nodes")
    assert [row[1] for row in slots_table(doing).rows] == ["n1 cuda:0", "n2 cuda:0", "cuda:0"]
    html = pool_html("pool 1", doing, [])
    assert "n2 cuda:0" in html
    (row,) = pools_table([(doing, "", [])]).rows
    assert row[2:4] == ("n1 cuda:0, n2 cuda:0, cuda:0", "3 busy, the pool waits for 1 of 3 nodes")
    nothing = pool_html(EVIL, PoolActivity(pool=1, waits_for=EVIL), [])
    assert "<script" not in nothing
    assert "<table" not in nothing


# Records.


def record(n: int, host: str, **more: Any) -> Record:
    where = {"slot": n, "device": "cuda:0", "gpu_id": 0, "uuid": "GPU-0", "pid": 100, "host": host}
    times = {"started": 100.0 + n, "finished": 101.0 + n, "seconds": 1.0, "attempt": 1}
    return Record(name=f"t{n}", index=n, kind="m:f", **{"status": "ok", **where, **times, **more})


def frame(*records: Record) -> pd.DataFrame:
    return task_frame(task_rows([*(r.name for r in records), "later"], records))


def test_a_frame_of_several_machines_has_their_names() -> None:
    found = frame(record(0, "n1"), record(1, "n2"))
    assert list(found.columns)[2:4] == ["device", "host"]
    assert found["host"].tolist() == ["n1", "n2", ""]
    assert "host" not in frame(record(0, "n1"), record(1, "n1", device="cuda:1"))
    for table in (run_table(found), run_table(sort_frame(found, "seconds", ascending=False))):
        assert "host" not in [heading for heading, _ in table.head]
        assert "n1 cuda:0" in str(table)
        assert "n2 cuda:0" in str(table)
    assert " cuda:0" not in str(run_table(frame(record(0, "n1")))).replace("  cuda:0", "")


def test_an_argument_named_host_stays_what_it_is() -> None:
    one = frame(record(0, "n1", arguments={"host": "x"}), record(1, "n1", arguments={"host": "y"}))
    assert one["host"].tolist()[:2] == ["x", "y"]
    assert " cuda:0" in str(run_table(one))
    two = frame(record(0, "n1", arguments={"host": "x"}), record(1, "n2", arguments={"host": "y"}))
    assert two["argument.host"].tolist()[:2] == ["x", "y"]
    assert two["host"].tolist()[:2] == ["n1", "n2"]


def test_hostile_hosts_of_records_do_nothing(tmp_path: Path) -> None:
    records = [record(0, '=cmd("x")'), record(1, EVIL)]
    table = run_table(frame(*records))
    assert "<script" not in table.to_html()
    assert not set("\x1b\u202e") & set(str(table))
    assert not set("\x1b\u202e") & set(repr(records[1]))
    assert "<script" not in records[1]._repr_html_()
    export(tmp_path, records, task_rows(["t0", "t1"], records), Journal([{"tasks": []}], {}, 0))
    assert ',"\'=cmd(""x"")",' in (tmp_path / "summary_results.csv").read_text()


def test_a_record_says_the_machine_if_that_is_another() -> None:
    assert "on n1 cuda:0" in repr(record(0, "n1"))
    assert "on cuda:0" in repr(record(0, HERE))
    assert "n1 cuda:0" in record(0, "n1")._repr_html_()


def test_a_timeline_of_several_machines_has_their_names() -> None:
    def labels(*records: Record) -> list[str]:
        return [label.get_text() for label in timeline(records).get_yticklabels()]

    assert labels(record(0, "n1"), record(1, "n2")) == ["slot 0 (n1 cuda:0)", "slot 1 (n2 cuda:0)"]
    assert labels(record(0, "n1"), record(1, "n1")) == ["slot 0 (cuda:0)", "slot 1 (cuda:0)"]
    assert labels(record(0, "a$b$"), record(1, "n1"))[0] == r"slot 0 (a\$b\$ cuda:0)"


def samples(*hosts: str, device: str = "cuda:0") -> pd.DataFrame:
    rows = [
        {
            "at": at,
            "kind": kind,
            "device": name,
            "host": host,
            "task": task,
            "used": (n + 1) * GIB,
            "utilisation": use,
        }
        for n, host in enumerate(hosts)
        for at in (0, 1)
        for kind, name, task, use in (("device", device, None, 50 + n), ("task", device, f"t{n}", None))
    ]
    found = pd.DataFrame(rows)
    return found.assign(
        at=pd.to_datetime(found["at"], unit="s", utc=True), used=found["used"].astype("Int64")
    )


def test_memory_over_time_is_drawn_for_each_machine() -> None:
    drawn = memory(samples("n1", "n2", "")).get_lines()
    lines = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in drawn}
    assert lines == {
        "memory of tasks on cuda:0": [3.0, 3.0],
        "memory of tasks on n1 cuda:0": [1.0, 1.0],
        "memory of tasks on n2 cuda:0": [2.0, 2.0],
        "memory, all of cuda:0": [3.0, 3.0],
        "memory, all of n1 cuda:0": [1.0, 1.0],
        "memory, all of n2 cuda:0": [2.0, 2.0],
    }


def test_utilisation_of_cores_is_named_by_machine() -> None:
    ax = memory(samples("n1", "", device="cpu"), utilisation=True)
    legend = ax.get_legend()
    assert legend
    labels = [label.get_text() for label in legend.get_texts()]
    assert labels == [
        "memory of tasks on cpu",
        "memory of tasks on n1 cpu",
        "utilisation of all cores",
        "utilisation of all cores of n1",
    ]
