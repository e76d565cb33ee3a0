"""The nodes of a cluster that work for this process, as `devices` lists them and the sampler reads them.

An engine adds a node when its agent has come and removes it when that has left; any thread may ask.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from ..output import clean
from ..places import elsewhere
from .device import Device

__all__ = [
    "STALE",
    "Loss",
    "Node",
    "add",
    "all_nodes",
    "devices_of_nodes",
    "is_silent",
    "losses",
    "natural",
    "remove",
    "silence",
]

STALE = 10.0  # seconds after which a reading says nothing of the present
REMEMBERED = 600.0  # seconds in which the loss of a node is told
MOST_LOSSES = 8  # that are told of


class Node(Protocol):
    """A machine on which workers of this process run.

    Attributes
    ----------
    name
        The `Slot.host` of its slots.
    devices
        Its devices as of its last reading, without `Device.host`; none before the first.
    seen
        When that came: seconds of ``time.monotonic``; None before.
    """

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def devices(self) -> Sequence[Device]:
        """Its devices as of its last reading."""

    @property
    def seen(self) -> float | None:
        """When its last reading came."""


class Loss(NamedTuple):
    """A node that is gone although it was wanted: name, reason and Unix time, seconds."""

    name: str
    reason: str
    at: float

    def __str__(self) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(self.at))
        return f"node {clean(self.name)} was lost at {clock}: {clean(self.reason)}"


_lock = threading.Lock()
_nodes: list[Node] = []
_losses: list[Loss] = []


def add(node: Node) -> None:
    """List a node from now on. Its name is no lost one's any more."""
    with _lock:
        _losses[:] = [loss for loss in _losses if loss.name != node.name]
        if not any(each is node for each in _nodes):
            _nodes.append(node)


def remove(node: Node, reason: str = "") -> None:
    """List a node no more, if it is listed.

    Parameters
    ----------
    node
        The node.
    reason
        Why it was lost: views say that for ten minutes, or until a node of its name is there. Empty for one that is
        not wanted any more.
    """
    with _lock:
        left = [each for each in _nodes if each is not node]
        if len(left) < len(_nodes) and reason:
            _losses[:] = [*_losses[1 - MOST_LOSSES :], Loss(node.name, reason, time.time())]
        _nodes[:] = left


def all_nodes() -> list[Node]:
    """Nodes by name, numbers in names by their size. Two of two pools may be one machine: they have one name.

    Of those the one that was heard of last is the first. A node that is this machine is left out: its devices are
    listed anyway, and its processes are seen from here.
    """
    with _lock:
        found = list(_nodes)
    found = [node for node in found if elsewhere(node.name)]
    return sorted(found, key=lambda node: (natural(node.name), -(node.seen or 0.0)))


def losses() -> list[Loss]:
    """Nodes that were lost in the last ten minutes and have not come back, the latest last."""
    since = time.time() - REMEMBERED
    with _lock:
        return [loss for loss in _losses if loss.at > since]


def silence(node: Node) -> float | None:
    """Seconds since the last reading of a node; None before the first."""
    return None if node.seen is None else max(0.0, time.monotonic() - node.seen)


def is_silent(node: Node) -> bool:
    """Whether what the last reading of a node says may not be true any more."""
    seconds = silence(node)
    return seconds is None or seconds > STALE


def devices_of_nodes() -> tuple[list[Device], list[str]]:
    """Devices of all nodes, with their hosts, each once; and what a reader should know of them.

    Of a node that is silent only what does not change is told.
    """
    found: dict[tuple[str, str], Device] = {}
    notes: dict[str, str] = {}
    for node in all_nodes():
        silent = is_silent(node)
        notes.setdefault(node.name, f"{clean(node.name)}: {silent_words(node)}" if silent else "")
        for n, device in enumerate(node.devices):
            placed = replace(device, host=node.name)
            key = node.name, device.uuid or f"the device at {n}"  # one that fails may tell no UUID
            found.setdefault(key, _unknown(placed) if silent else placed)
    return list(found.values()), [note for note in notes.values() if note]


def silent_words(node: Node) -> str:
    """How long nothing has been heard of a node."""
    seconds = silence(node)
    return (
        "nothing has been heard of its devices yet"
        if seconds is None
        else f"not heard of for {seconds:.0f} s"
    )


def _unknown(device: Device) -> Device:
    """A device without what changes."""
    return replace(device, used=None, free=None, utilisation=None, temperature=None, power=None, holders=())


def natural(name: str) -> list[tuple[str, int, str]]:
    """Key of a name by which n2 comes before n10."""
    return [(text, len(digits), digits) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def _after_fork() -> None:
    # The nodes work for the parent, and the lock may be held by one of its threads.
    global _lock
    _lock = threading.Lock()
    _nodes.clear()
    _losses.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
