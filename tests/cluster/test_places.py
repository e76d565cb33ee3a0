"""Two agents are two machines in all that is shown: panels, lists of devices, records, samples."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import jobs
import pytest
from agent_farm import FarmCluster, farm

from mgpu_nb import GPUPool, Run, Task, devices, watch
from mgpu_nb.hardware import nodes
from mgpu_nb.telemetry import sampler
from mgpu_nb.telemetry.sampler import Sampler
from mgpu_nb.views.run import state_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FarmCluster]:
    """Two agents on this machine, which go under names of their own."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers"))))
    monkeypatch.setattr(sampler, "shared", Sampler())
    yield FarmCluster(2)
    farm.close()


def written(run: Run, hosts: set[str]) -> bool:
    """Whether the samples of a run have a task with its memory on each host."""
    try:
        samples = run.samples()
    except FileNotFoundError:
        return False
    return set(samples[(samples["kind"] == "task") & samples["used"].notna()]["host"]) == hosts


@pytest.mark.slow
def test_two_agents_are_two_machines_everywhere(cluster: FarmCluster, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with GPUPool("cpu", 1, cluster=cluster) as pool:
        slots = pool.wait_for_slots(timeout=120)
        hosts = {slot.host for slot in slots}
        assert len(hosts) == 2
        assert {slot.label for slot in slots} == {"cpu:0"}
        tasks = [Task(jobs.blocks_until, str(go), name=name) for name in "ab"]
        run = pool.run(tasks, folder=tmp_path / "run")
        end = time.monotonic() + 60
        while not written(run, hosts):  # a node's reading comes twice a second, and so does a sample
            assert time.monotonic() < end
            time.sleep(0.1)
        snapshot = sampler.shared.history[-1]
        held = {w.state.host: w.memory for w in snapshot.workers if w.state.task}
        assert held.keys() == hosts
        state = state_of(run._ledger, [snapshot])
        assert {row.device: row.memory for row in state.rows} == {f"{h} cpu:0": held[h] for h in hosts}
        assert all(row.total for row in state.rows)
        for slot in slots:
            (mine,) = [device for device in snapshot.devices if device.host == slot.host]
            assert mine.ours == held[slot.host]
            assert pool._engine.memory(slot).total == mine.total
        assert {(d.host, d.uuid) for d in devices()} >= {("", "cpu:0"), *((h, "cpu:0") for h in hosts)}
        shown = repr(watch())
        assert all(
            re.search(rf"^{host} cpu  .*\n  [ab] of run 'run' ", shown, re.MULTILINE) for host in hosts
        )
        go.touch()
        run.wait(60)
    assert {record.host for record in run.records} == hosts
    assert set(run.frame()["host"]) == hosts
    assert all(f"{host} cpu:0" in str(run.table()) for host in hosts)
    samples = run.samples()
    assert set(samples["host"]) == hosts
    assert set(zip(samples["kind"], samples["device"], strict=True)) == {("device", "cpu"), ("task", "cpu:0")}
    assert nodes.all_nodes() == []
    assert nodes.losses() == []
    assert {device.host for device in devices()} == {""}
