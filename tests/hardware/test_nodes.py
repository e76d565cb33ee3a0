"""The nodes of a cluster in the list of devices."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest
from cluster_nodes import GIB, content, gpu, no_nodes, node, of_cores
from fake_nvml import gpus, install

from mgpu_nb.hardware import host, nodes
from mgpu_nb.hardware.slots import Slot, devices, devices_here, resolve_slots
from mgpu_nb.places import device_name, device_names, elsewhere
from mgpu_nb.telemetry.node import Node

HERE = socket.gethostname()
EVIL = "<img src=x onerror=alert(1)>\x1b[2J\u202e"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(host, "cores", lambda: 2)
    install(monkeypatch, [], init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    with no_nodes():
        yield


def test_without_nodes_nothing_is_said_of_hosts() -> None:
    table = devices()
    assert [device.label for device in table] == [device.label for device in devices_here()]
    assert "host" not in str(table)
    assert {device.host for device in table} == {""}
    assert table.frame()["host"].tolist() == ["", ""]


def test_devices_of_nodes_follow_those_of_this_machine() -> None:
    node("n10")
    node("n2", of_cores(3))
    table = devices()
    assert [(d.host, d.label) for d in table] == [
        ("", "cpu:0"), ("", "cpu:1"), ("n2", "cpu:0"), ("n2", "cpu:1"), ("n2", "cpu:2"), ("n10", "cuda:0"),
    ]  # fmt: skip
    lines = str(table).splitlines()
    assert lines[1:3] == [
        "2 virtual CPU devices, sharing the RAM",
        "on 2 nodes: 1 GPU and 3 virtual CPU devices",
    ]
    heading, *rows = lines[-7:]
    assert heading.split()[:2] == ["host", "device"]
    assert rows[-1].split()[:2] == ["n10", "cuda:0"]
    assert rows[0].split()[0] == "cpu:0"
    assert table.frame()["host"].tolist() == ["", "", "n2", "n2", "n2", "n10"]
    assert (table[-1].total, table[-1].free, table[-1].power) == (40 * GIB, 32 * GIB, 250.5)


def test_two_nodes_with_the_same_devices_are_both_listed() -> None:
    node("n1")
    node("n2")
    there = [d for d in devices() if d.host]
    assert [(d.host, d.index, d.uuid) for d in there] == [("n1", 0, "GPU-0"), ("n2", 0, "GPU-0")]


def test_a_machine_on_which_two_pools_have_an_agent_is_listed_once() -> None:
    node("n1", content(gpus=[gpu(used=GIB)]), ago=3)
    node("n1", content(gpus=[gpu(used=2 * GIB), gpu(1)]))
    assert [(d.uuid, d.used) for d in devices() if d.host] == [("GPU-0", 2 * GIB), ("GPU-1", 8 * GIB)]


def test_an_agent_on_this_machine_adds_nothing() -> None:
    node(HERE)
    assert {device.host for device in devices()} == {""}


def test_no_id_means_a_device_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    node("n1", content(gpus=[gpu(uuid="GPU-of-n1"), gpu(1, uuid="GPU-of-n1-too")]))
    assert not devices().has_gpu
    for ids in ([0], ["GPU-of-n1"]):
        with pytest.raises(ValueError, match="there is no GPU"):
            resolve_slots(ids)
    assert [slot.kind for slot in resolve_slots()] == ["cpu", "cpu"]
    install(monkeypatch, gpus("NVIDIA L4"))
    assert len(devices().gpus) == 1
    assert len([d for d in devices() if d.kind == "cuda"]) == 3
    assert "1 GPU\non 1 node: 2 GPUs" in str(devices())
    with pytest.raises(ValueError, match="there is no GPU 1"):
        resolve_slots([1])


def test_of_a_silent_node_only_what_stays_is_told() -> None:
    told = content(gpus=[gpu(holders=[{"pid": 1, "command": "x"}])])
    node("n1", told, ago=nodes.STALE + 1)
    (device,) = [d for d in devices() if d.host]
    assert (device.total, device.name, device.driver) == (40 * GIB, "NVIDIA L4", "580.65")
    assert (device.used, device.free, device.utilisation, device.temperature, device.power) == (None,) * 5
    assert device.holders == ()
    assert any(re.fullmatch(r"n1: not heard of for 1[12] s", note) for note in devices().notes)
    nodes.add(Node("n3"))
    assert "n3: nothing has been heard of its devices yet" in devices().notes


def test_a_node_that_left_is_not_listed_and_one_that_was_lost_is_told_of() -> None:
    first, second = node("n1"), node("n2")
    nodes.remove(first)
    nodes.remove(first, "it has left already")
    assert nodes.losses() == []
    nodes.remove(second, "its agent ended")
    assert nodes.all_nodes() == []
    (loss,) = nodes.losses()
    assert re.fullmatch(r"node n2 was lost at \d\d:\d\d:\d\d: its agent ended", str(loss))
    node("n2")
    assert nodes.losses() == []


def test_losses_are_told_for_some_time_and_not_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(50):
        nodes.remove(node(f"n{n}"), EVIL)
    assert [loss.name for loss in nodes.losses()] == [f"n{n}" for n in range(50 - nodes.MOST_LOSSES, 50)]
    assert not set("\x1b\u202e") & set(str(nodes.losses()[0]))
    monkeypatch.setattr(nodes, "REMEMBERED", -1.0)
    assert nodes.losses() == []


def test_a_child_has_no_nodes() -> None:
    node("n1")
    assert nodes._lock.acquire()  # as another thread of the parent may have it
    try:
        child = os.fork()
        if not child:
            os._exit(len(nodes.all_nodes()))
        assert os.waitpid(child, 0)[1] == 0
    finally:
        nodes._lock.release()
    assert [each.name for each in nodes.all_nodes()] == ["n1"]


def test_hostile_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    node(EVIL, content(gpus=[gpu(name=EVIL, problem=EVIL)]), ago=60)
    table = devices()
    html = table._repr_html_()
    assert "<img" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") >= 3
    for shown in (str(table), html, table.fitted(60)):
        assert not set("\x1b\u202e") & set(shown)


def test_numbers_in_names_are_numbers() -> None:
    names = ["n10", "n9", "a", "n9b2", "n09", "n" + "9" * 5000, "", "7"]
    for name in names:
        nodes.add(Node(name))
    assert [each.name for each in nodes.all_nodes()] == [
        "7",
        "a",
        "n9",
        "n9b2",
        "n09",
        "n10",
        "n" + "9" * 5000,
    ]


def test_a_device_has_its_machine_before_it_where_that_is_another() -> None:
    slot = Slot(index=0, kind="cuda", gpu_id=1, uuid="GPU-1", name="", threads=1)
    at = {
        name: Slot(**{**{f: getattr(slot, f) for f in Slot.__slots__}, "host": name})
        for name in ("", HERE, "n1")
    }
    assert [at[name].place for name in ("", HERE, "n1")] == ["cuda:1", "cuda:1", "n1 cuda:1"]
    assert len({each.device for each in at.values()}) == 3
    assert [elsewhere(name) for name in ("", HERE, "n1")] == ["", "", "n1"]
    assert device_name("cpu:0", "n\x1b[2J1\n") == "n1 cpu:0"
    assert device_names([("cpu:0", "a"), ("cpu:0", "b"), ("", "")]) == ["a cpu:0", "b cpu:0", ""]
    assert device_names([("cpu:0", "a"), ("cpu:1", "a"), ("", "")]) == ["cpu:0", "cpu:1", ""]
