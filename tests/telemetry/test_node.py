"""Readings of nodes: written there, read here, and part of every snapshot."""

from __future__ import annotations

import json
import os
import random
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest
from cluster_nodes import GIB, age, content, gpu, no_nodes, node, of_cores, sample, worker
from fake_nvml import Gpu, gpus, install, uuid

from mgpu_nb.hardware import host, nodes
from mgpu_nb.hardware.slots import Slot, device_memory, devices, devices_here, resolve_slots
from mgpu_nb.telemetry import recorder
from mgpu_nb.telemetry.node import Node
from mgpu_nb.telemetry.node_reading import MOST_BYTES, NodeReading, read_node
from mgpu_nb.telemetry.recorder import COLUMNS, FILE, Recorder, load
from mgpu_nb.telemetry.sampler import MOST_SAMPLES, Sampler
from mgpu_nb.telemetry.samples import Snapshot, WorkerState

EVIL = "<script>\x1b[2J\u202e=cmd()"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(monkeypatch, [], init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    with no_nodes():
        yield


def state(host: str = "n1", pid: int | None = 100, n: int = 0, **more: Any) -> WorkerState:
    kind = more.pop("kind", "cuda")
    place = {"label": f"{kind}:{n}", "uuid": f"GPU-{n}" if kind == "cuda" else f"cpu:{n}", "kind": kind}
    return WorkerState(pool=1, slot=n, pid=pid, host=host, **{**place, **more})


def unpack(told: dict[str, Any]) -> NodeReading:
    return NodeReading.unpack(json.dumps(told).encode(), "n1")


# Written by an agent, read by the parent process.


def test_what_a_node_with_gpus_writes_is_read_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.getppid()
    install(
        monkeypatch,
        [
            Gpu(used=10 * GIB, compute=[(os.getpid(), 6 * GIB), (other, 3 * GIB)]),
            Gpu(uuid=uuid(1), bus="00000000:08:00.0"),
        ],
    )
    mine = state(host="", pid=os.getpid(), uuid=uuid(0), label="what an agent calls it")
    data = read_node([mine])
    reading = NodeReading.unpack(data, "n1", clock_offset=1000.0)
    assert reading.devices == tuple(devices_here())
    first, second = reading.samples
    assert (first.host, first.label, first.ours, first.others) == ("n1", "cuda:0", 6 * GIB, 4 * GIB)
    assert [(holder.pid, holder.size, holder.ours) for holder in first.holders] == [(other, 3 * GIB, False)]
    assert first.holders[0].command
    assert (second.label, second.utilisation, second.power) == ("cuda:1", 37.0, 250.5)
    assert reading.at == pytest.approx(json.loads(data)["at"] + 1000)
    slot = resolve_slots([0])[0]
    assert reading.memory(slot) == device_memory(slot)
    assert reading.held(os.getpid(), slot) == 6 * GIB
    assert reading.held(other, slot) is None
    assert reading.held(None, slot) is None
    assert reading.memory(replace(slot, uuid="GPU-of-nobody")) == (None, None)


def test_what_a_node_without_a_gpu_writes_is_read_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cores", lambda: 300)
    monkeypatch.setattr(host, "process_limit", lambda: 5 * GIB)
    data = read_node([state(host="", pid=os.getpid(), n=7, kind="cpu")])
    assert len(data) < 1000  # whatever the number of cores
    reading = NodeReading.unpack(data, "n1")
    assert [(d.index, d.uuid, d.label) for d in reading.devices[-2:]] == [
        (298, "cpu:298", "cpu:298"),
        (299, "cpu:299", "cpu:299"),
    ]
    assert [d.total for d in reading.devices] == [d.total for d in devices_here()]
    (ram,) = reading.samples
    assert (ram.host, ram.label, ram.name, ram.kind) == ("n1", "cpu", "300 cores", "cpu")
    slot = resolve_slots(slots=9)[8]
    assert reading.memory(slot).total == 5 * GIB
    assert reading.memory(slot).free == pytest.approx(host.memory()[2], rel=0.2)
    assert reading.held(os.getpid(), slot) == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


def test_a_gpu_that_shares_the_ram_of_its_node_has_that(monkeypatch: pytest.MonkeyPatch) -> None:
    (only,) = gpus("NVIDIA GB10")
    only.total = only.used = only.reserved = 0
    only.compute = [(os.getpid(), 2 * GIB)]
    install(monkeypatch, [only])
    monkeypatch.setattr(host, "process_limit", lambda: GIB)
    (slot,) = resolve_slots()
    assert slot.shares_ram
    reading = NodeReading.unpack(read_node([state(host="", pid=os.getpid(), uuid=uuid(0))]), "n1")
    assert reading.memory(slot).total == host.memory()[0]
    held = reading.held(os.getpid(), slot)
    assert held == pytest.approx(2 * GIB + psutil.Process().memory_info().rss, rel=0.2)


def test_a_full_reading_of_a_large_node_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[tuple[int, int | None]] = [(pid, GIB) for pid in psutil.pids()]
    install(
        monkeypatch,
        [Gpu(uuid=uuid(n), bus=f"00000000:{n:02x}:00.0", name="N" * 999, compute=pids) for n in range(8)],
    )
    data = read_node([state(host="", pid=pids[0][0], n=n, uuid=uuid(n)) for n in range(8)])
    assert len(data) < MOST_BYTES / 10
    reading = NodeReading.unpack(data, "n1")
    assert len(reading.workers) == 8


# Foreign data.


@pytest.mark.parametrize(
    ("told", "where"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "decode"),
        (b"[]", "reading must be an object, got list of 0"),
        (b"{", "Expecting"),
        (b'{"at": NaN}', "NaN is no number"),
        (b'{"at": 1e999}', r"reading.at must be a number from 0 to"),
        (b'{"at": -1}', "reading.at"),
        (b'{"at": true}', "reading.at"),
        (b'{"gpus": {}}', "reading.gpus must be a list of at most 256, got dict of 0"),
        (b'{"gpus": [3]}', r"gpus\[0\] must be an object, got 3"),
        (b'{"gpus": [{"total": 1.5}]}', r"gpus\[0\].total must be a whole number"),
        (b'{"gpus": [{"total": -1}]}', r"gpus\[0\].total"),
        (b'{"gpus": [{"total": 9223372036854775808}]}', r"gpus\[0\].total"),
        (b'{"gpus": [{"name": 3}]}', r"gpus\[0\].name must be a text of at most 400 characters, got 3"),
        (b'{"gpus": [{"mig": 1}]}', r"gpus\[0\].mig must be true or false"),
        (b'{"gpus": [{"holders": [{"pid": "1"}]}]}', r"holders\[0\].pid"),
        (b'{"virtual": [{"count": 1000000}]}', r"virtual\[0\].count"),
        (b'{"virtual": [{}, {}]}', "reading.virtual must be a list of at most 1"),
        (b'{"note": "%s"}' % (b"x" * 401), "reading.note"),
        (b'{"workers": [{"pid": 1, "memory": "much"}]}', r"workers\[0\].memory"),
        (b'{"ram": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b" " * (MOST_BYTES + 1), "4,194,305 bytes, more than 4,194,304"),
    ],
)
def test_what_is_no_reading_is_refused_by_name(told: bytes, where: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^the reading of node n1 cannot be read: .*{where}|^the reading.*{where}"
    ):
        NodeReading.unpack(told, "n1")


def test_a_reading_that_says_nothing_is_empty() -> None:
    reading = NodeReading.unpack(b"{}", "n1")
    assert (reading.devices, reading.samples, reading.workers, reading.ram) == ((), (), {}, (None, None))


@pytest.mark.slow
def test_broken_bytes_are_an_error_or_a_reading_and_nothing_else() -> None:
    """Random damage to a real reading: bytes changed, left out, doubled, values of other types."""
    whole = json.dumps(content(note="x")).encode()
    draw = random.Random(7)
    odd: list[Any] = [
        None,
        True,
        -1,
        10**400,
        1e308,
        "",
        "\x1b[2J",
        [],
        {},
        [[]],
        {"a": 1},
        "GPU-0",
        2**63 - 1,
        "\ud800",
    ]
    refused = []
    for turn in range(3000):
        data = bytearray(whole)
        if turn % 3 == 0:
            for _ in range(draw.randint(1, 4)):
                data[draw.randrange(len(data))] = draw.randrange(256)
        elif turn % 3 == 1:
            begin = draw.randrange(len(data))
            data[begin : begin + draw.randint(1, 40)] = draw.choice([b"", bytes(data[:30]), b"\0"])
        else:
            told = content()
            group: Any = draw.choice([told, told["gpus"][0], told["samples"][0], told["workers"][0]])
            group[draw.choice(list(group))] = draw.choice(odd)
            data = bytearray(json.dumps(told).encode())
        made = Node("n1")
        try:
            made.update(bytes(data))
        except ValueError as error:
            refused.append(str(error))
            continue
        # What was taken is safe to show.
        nodes._after_fork()
        nodes.add(made)
        shown = Sampler().take()
        assert made.memory(resolve_slots(slots=1)[0])
        assert not any("\x1b" in str(device) for device in (*shown.devices, *made.devices))
    assert 500 < len(refused) < 3000
    assert all(error.startswith("the reading of node n1 cannot be read: ") for error in refused)
    assert not any("\x1b" in error for error in refused)


def test_a_broken_reading_leaves_the_last_one() -> None:
    made = node("n1")
    before = made.reading
    with pytest.raises(ValueError, match="n1"):
        made.update(b"{")
    assert made.reading is before


def test_escape_sequences_of_a_node_go_when_they_come() -> None:
    reading = unpack(content(gpus=[gpu(name=EVIL)], samples=[sample(name=EVIL, problem=EVIL)], note=EVIL))
    texts = [reading.devices[0].name, reading.samples[0].name, reading.samples[0].problem, reading.note]
    assert set(texts) == {"<script>\ufffd=cmd()"}


# Snapshots.


class Pool:
    def __init__(self, *states: WorkerState) -> None:
        self._states = states

    def states(self) -> tuple[WorkerState, ...]:
        return self._states


def take(*states: WorkerState) -> Snapshot:
    sampler, pool = Sampler(), Pool(*states)
    sampler.add_pool(pool)
    return sampler.take()


def test_workers_of_nodes_take_their_memory_from_the_reading_of_their_node() -> None:
    """Two nodes with the same devices and the same pids, and a worker of this machine with that pid as well."""
    here = os.getpid()
    node("n1", content(workers=[worker(here, memory=GIB)], samples=[sample(used=11 * GIB)]))
    node("n2", content(workers=[worker(here, memory=2 * GIB)], samples=[sample(used=12 * GIB)]))
    node("n3", of_cores(workers=[worker(here, "cpu", 3 * GIB)]))
    snapshot = take(
        state("n2", here),
        state("n1", here),
        state("n3", here, kind="cpu"),
        state("n3", here, n=1, kind="cpu"),
        state(socket.gethostname(), here, kind="cpu"),
    )
    resident = psutil.Process().memory_info().rss
    by_host = {w.state.host: w.memory for w in snapshot.workers}
    assert by_host[socket.gethostname()] == pytest.approx(resident, rel=0.2)
    assert [by_host[name] for name in ("n1", "n2", "n3")] == [GIB, 2 * GIB, 3 * GIB]
    assert [(d.place, d.used) for d in snapshot.devices[1:]] == [
        ("n1 cuda:0", 11 * GIB), ("n2 cuda:0", 12 * GIB), ("n3 cpu", 16 * GIB),
    ]  # fmt: skip
    assert snapshot.devices[0].place == "cpu"
    assert snapshot.devices[0].ours == pytest.approx(resident, rel=0.2)  # of the one worker that is here
    assert snapshot.notices == ()


def test_what_a_node_has_not_told_is_not_known() -> None:
    node("n1")
    snapshot = take(state("n1", 101), state("n1", None), state("n2", 100), state("n1", 100, n=1))
    assert [w.memory for w in snapshot.workers] == [None] * 4


def test_a_reading_that_is_old_is_no_fact() -> None:
    old = node("n1")
    node("n2")
    slot = Slot(index=0, kind="cuda", gpu_id=0, uuid="GPU-0", name="", threads=1, host="n1")
    assert (old.memory(slot), old.held(100, slot)) == ((40 * GIB, 32 * GIB), 6 * GIB)
    age(old, nodes.STALE + 1)
    assert (old.memory(slot), old.held(100, slot)) == ((40 * GIB, None), None)
    snapshot = take(state("n1"), state("n2"))
    assert [w.memory for w in snapshot.workers] == [None, 6 * GIB]
    _, stale, fresh = snapshot.devices
    assert (stale.place, stale.used, stale.ours, stale.others, stale.holders) == (
        "n1 cuda:0",
        None,
        0,
        None,
        (),
    )
    assert re.fullmatch(r"not heard of for 1[12] s", stale.problem)
    assert (fresh.problem, fresh.used) == ("", 8 * GIB)
    (notice,) = snapshot.notices
    assert notice.startswith("not heard of for 10 s or more: n1;")


def test_before_its_first_reading_nothing_is_known_of_a_node() -> None:
    made = Node("n1")
    nodes.add(made)
    slot = Slot(index=0, kind="cpu", gpu_id=None, uuid="cpu:0", name="", threads=1, host="n1")
    assert (made.memory(slot), made.held(1, slot), made.seen, made.devices) == ((None, None), None, None, ())
    snapshot = take(state("n1"))
    assert len(snapshot.devices) == 1
    assert "n1" in snapshot.notices[0]


def test_lost_and_silent_nodes_are_told_in_a_line() -> None:
    nodes.remove(node("n1"), "its agent ended: signal 9")
    for n in range(2, 20):
        node(f"n{n}", ago=60)
    lost, silent = take().notices
    assert lost.startswith("node n1 was lost at ")
    assert "n2, n3, n4, n5, n6, n7 and 12 more" in silent


def test_two_pools_on_one_machine_are_not_strangers_to_each_other() -> None:
    """Each agent knows its own workers and takes those of the other for strangers."""
    mine = sample(ours=6 * GIB, others=2 * GIB, holders=[{"pid": 200, "size": GIB}, {"pid": 9, "size": GIB}])
    theirs = sample(
        ours=GIB,
        others=7 * GIB,
        label="GPU 0",
        holders=[{"pid": 100, "size": 6 * GIB}, {"pid": 9, "size": GIB}],
    )
    node("n1", content(samples=[mine], workers=[worker(100)]), ago=1)
    node("n1", content(samples=[theirs], workers=[worker(200, memory=GIB)]))
    snapshot = take(state("n1", 100), state("n1", 200))
    assert [w.memory for w in snapshot.workers] == [6 * GIB, GIB]
    (device,) = snapshot.devices[1:]
    assert (device.label, device.ours, device.others) == ("cuda:0", 7 * GIB, GIB)
    assert [holder.pid for holder in device.holders] == [9]


def test_gpus_that_fail_are_all_shown() -> None:
    broken = [{"label": f"GPU {n}", "kind": "cuda", "problem": f"fails: {n}"} for n in range(2)]
    listed = [gpu(index=None, uuid="", problem=f"fails: {n}") for n in range(2)]
    for _ in range(2):
        node("n1", content(gpus=listed, samples=broken, workers=[]))
    assert [(d.place, d.problem) for d in take().devices[1:]] == [
        ("n1 GPU 0", "fails: 0"),
        ("n1 GPU 1", "fails: 1"),
    ]
    assert [d.problem for d in devices() if d.host] == ["fails: 0", "fails: 1"]


def test_of_two_agents_on_one_machine_the_silent_one_tells_nothing() -> None:
    node("n1", content(samples=[sample(used=GIB)], workers=[worker(100)]), ago=60)
    node("n1", content(samples=[sample(used=2 * GIB)], workers=[worker(200)]))
    snapshot = take(state("n1", 100), state("n1", 200))
    assert [w.memory for w in snapshot.workers] == [None, 6 * GIB]
    assert [(d.used, d.problem) for d in snapshot.devices[1:]] == [(2 * GIB, "")]


@pytest.mark.slow
def test_a_cluster_of_many_nodes_keeps_a_short_past() -> None:
    for n in range(100):
        node(f"n{n}", content(samples=[sample(i) for i in range(8)], workers=[]))
    pool, sampler = Pool(*(state(f"n{n}", n=i) for n in range(100) for i in range(8))), Sampler()
    sampler.add_pool(pool)
    for _ in range(60):
        sampler.take()
    sizes = [len(snapshot.devices) + len(snapshot.workers) for snapshot in sampler.history]
    assert sum(sizes) <= MOST_SAMPLES
    assert 30 < len(sizes) < 60


# Samples on disk.


def record(tmp_path: Path, *taken: Snapshot) -> Recorder:
    keeps = Recorder(tmp_path, lambda action: action())
    for snapshot in taken:
        keeps(snapshot)
    return keeps


def test_samples_on_disk_carry_the_host(tmp_path: Path) -> None:
    node("n1")
    node("n2")
    run: dict[str, Any] = {"run": str(tmp_path), "task": "t"}
    here = state("", os.getpid(), kind="cpu", **run)
    record(tmp_path, take(state("n1", **run), state("n2", **{**run, "task": "u"}), here))
    frame = load(tmp_path)
    assert [tuple(row) for row in frame[["kind", "device", "host"]].to_numpy()] == [
        ("device", "cpu", ""), ("device", "cuda:0", "n1"), ("device", "cuda:0", "n2"),
        ("task", "cpu:0", ""), ("task", "cuda:0", "n1"), ("task", "cuda:0", "n2"),
    ]  # fmt: skip
    assert frame["used"].tolist()[4:] == [6 * GIB] * 2


def test_only_the_devices_of_a_run_are_kept(tmp_path: Path) -> None:
    node("n1")
    node("n2")
    record(tmp_path, take(state("n2", run=str(tmp_path), task="t"), state("n1", run="/another")))
    assert set(load(tmp_path)["host"]) == {"n2"}


@pytest.mark.parametrize("name", ["null", "NA", "007", '=cmd("x")', "a,b\nc", "@sum"])
def test_odd_hosts_and_tasks_are_read_as_they_were_written(tmp_path: Path, name: str) -> None:
    node(name)
    record(tmp_path, take(state(name, run=str(tmp_path), task=name)))
    text = (tmp_path / FILE).read_text()
    assert not re.search(r"(^|,|\")[=@]", text)
    frame = load(tmp_path)
    assert {host.removeprefix("'") for host in frame["host"]} == {name}
    assert len(frame) == 2


BEFORE = """\
at,kind,device,uuid,slot,task,pid,used,total,ours,utilisation,temperature,power
1000.000,device,cuda:0,GPU-0,,,,10737418240,42949672960,6442450944,37,61,250.5
1000.000,task,cuda:0,GPU-0,0,t,4711,6442450944,,,,,
"""


def test_samples_of_before_nodes_are_read(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(BEFORE)
    frame = load(tmp_path)
    assert list(frame.columns) == list(COLUMNS)
    assert frame["host"].tolist() == ["", ""]
    assert frame["used"].tolist() == [10 * GIB, 6 * GIB]
    assert frame["power"].tolist()[0] == 250.5
    assert frame["pid"].tolist()[1] == 4711


def test_a_folder_of_before_nodes_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(BEFORE + "1001.000,task,cu")  # a line that was cut off
    node("n1")
    record(
        tmp_path,
        take(state("n1", run=str(tmp_path), task="t")),
        take(state("n1", run=str(tmp_path), task="t")),
    )
    frame = load(tmp_path)
    assert frame["host"].tolist()[:2] == ["", ""]
    assert frame["host"].tolist()[-2:] == ["n1", "n1"]
    assert frame["at"].notna().all()


def test_many_rows_make_fewer_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "DENSE", 200)
    node("n1", content(samples=[sample(i) for i in range(8)], workers=[]))
    few, many = tmp_path / "few", tmp_path / "many"
    for folder, count in ((few, 1), (many, 400)):
        folder.mkdir()
        one = take(*(state("n1", pid=n, n=n % 8, run=str(folder), task=f"t{n}") for n in range(count)))
        record(folder, *(replace(one, at=1000.0 + 20 * n) for n in range(300)))
    assert load(many)["at"].nunique() < load(few)["at"].nunique() / 2
