"""Nodes of a cluster that are not there: what their agents would write, and the registry of nodes, empty for a test."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mgpu_nb.hardware import nodes
from mgpu_nb.telemetry.node import Node

GIB = 2**30


def gpu(n: int = 0, **more: Any) -> dict[str, Any]:
    """A GPU as `read_node` writes it."""
    return {
        "index": n, "kind": "cuda", "name": "NVIDIA L4", "uuid": f"GPU-{n}", "total": 40 * GIB, "used": 8 * GIB,
        "free": 32 * GIB, "utilisation": 50, "temperature": 61, "power": 250.5, "driver": "580.65", **more,
    }  # fmt: skip


def sample(n: int = 0, **more: Any) -> dict[str, Any]:
    """A GPU as the sampler of a node has it."""
    return {
        "uuid": f"GPU-{n}", "label": f"cuda:{n}", "name": "NVIDIA L4", "kind": "cuda", "total": 40 * GIB,
        "used": 8 * GIB, "ours": 6 * GIB, "others": 2 * GIB, "utilisation": 50, "temperature": 61, "power": 250.5,
        "holders": [{"pid": 9, "size": 2 * GIB, "user": "ana", "command": "python train.py"}], **more,
    }  # fmt: skip


def worker(pid: int = 100, uuid: str = "GPU-0", memory: int | None = 6 * GIB, **more: Any) -> dict[str, Any]:
    """A worker as `read_node` writes it."""
    return {"pid": pid, "uuid": uuid, "memory": memory, "source": "nvml", **more}


def content(**more: Any) -> dict[str, Any]:
    """What a reading says of a node with one GPU and one worker."""
    return {
        "at": time.time(), "gpus": [gpu()], "virtual": [], "samples": [sample()], "workers": [worker()],
        "ram": 64 * GIB, "free_ram": 48 * GIB, "process_limit": None, "note": "", **more,
    }  # fmt: skip


def of_cores(count: int = 4, resident: int = GIB, **more: Any) -> dict[str, Any]:
    """What a reading says of a node without a GPU, and with one worker."""
    cpu = {"name": f"CPU, 1 of {count} cores", "total": 64 * GIB, "used": 16 * GIB, "free": 48 * GIB}
    ram = {"uuid": "cpu", "label": "cpu", "name": f"{count} cores", "kind": "cpu", "total": 64 * GIB}
    told = {
        "gpus": [], "virtual": [{**cpu, "index": 0, "uuid": "cpu:0", "count": count}],
        "samples": [{**ram, "used": 16 * GIB, "ours": resident, "others": 15 * GIB, "utilisation": 3.5}],
        "workers": [worker(uuid="cpu", memory=resident, source="rss")],
    }  # fmt: skip
    return content(**{**told, **more})


def node(name: str, told: dict[str, Any] | None = None, ago: float = 0.0) -> Node:
    """A listed node whose last reading is some seconds old."""
    made = Node(name)
    made.update(json.dumps(content() if told is None else told).encode())
    age(made, ago)
    nodes.add(made)
    return made


def age(made: Node, seconds: float) -> None:
    """Let the last reading of a node be as old as that."""
    reading = made.reading
    assert reading is not None
    made._last = reading, time.monotonic() - seconds


@contextmanager
def no_nodes() -> Iterator[None]:
    """No node is listed before and after."""
    nodes._after_fork()
    try:
        yield
    finally:
        nodes._after_fork()
