"""Names of devices in a text: those of another machine stand behind its name."""

from __future__ import annotations

import functools
import socket
from collections.abc import Sequence

from .output import clean

__all__ = ["device_name", "device_names", "elsewhere"]


def elsewhere(host: str) -> str:
    """Name of a machine that is not this one; empty for this one, and where the name is empty."""
    return "" if not host or host == _here() else host


@functools.cache
def _here() -> str:
    """Name of this machine; a view of a thousand workers asks for each."""
    return socket.gethostname()


def device_name(device: str, host: str) -> str:
    """Name of a device as a reader here knows it: ``cuda:0``, and ``n1 cuda:0`` for one of another machine."""
    there = clean(elsewhere(host))
    return f"{there} {device}" if there else device


def device_names(devices: Sequence[tuple[str, str]]) -> list[str]:
    """Names of devices that are each given with their host: ``n1 cuda:0`` if there are several hosts, else ``cuda:0``.

    Where there is no device its name is empty.
    """
    several = len({host for device, host in devices if device}) > 1
    return [f"{clean(host)} {device}".strip() if device and several else device for device, host in devices]
