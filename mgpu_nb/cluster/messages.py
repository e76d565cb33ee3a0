"""What an agent and its parent process say to each other, beside the messages of workers, which go as they are."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from enum import IntEnum
from typing import Any

from ..engines.protocol import Message, ProtocolError
from ..hardware.slots import Slot

__all__ = ["OF_WORKERS", "TO_WORKERS", "Kind", "pack_ports", "pack_slots", "unpack_ports", "unpack_slots"]

TO_WORKERS = frozenset({Message.BEGIN, Message.TASK, Message.PREFETCH, Message.ATTACHMENT, Message.ANSWER})
"""Frames of the parent process that an agent passes on."""
OF_WORKERS = frozenset(
    {Message.VALUE, Message.ERROR, Message.REPORT, Message.ASK, Message.LOG, Message.MEMORY, Message.SKIPPED}
)
"""Frames of workers that an agent passes on."""


class Kind(IntEnum):
    """Kinds of frames of agent and parent process; others are those of `engines.protocol.Message`."""

    # parent process to agent
    WELCOME = 98  # body: JSON of what is wanted of the node; the first frame
    REFUSED = 99  # meta: why the pool does not take the node; in place of WELCOME
    START = 100  # a worker; meta: JSON of kind and UUIDs of its devices
    SIGNAL = 101  # ident: number of the signal
    STOP = 102  # the worker ends when it has no job
    UNPREFETCH = 103  # take the last prefetched job back; ident: its number
    ABANDON = 104  # report nothing more of the worker
    DRAIN = 105  # no worker will be started any more
    LEAVE = 106  # the agent ends as soon as it has no worker
    PING = 107  # ident: its number
    # agent to parent process
    SLOTS = 120  # body: see pack_slots; meta: see pack_ports
    NO_SLOTS = 121  # meta: why the node has none; the agent ends
    STARTED = 122  # ident: pid
    READY = 123  # ident: pid
    SETUP_FAILED = 124  # meta: Failure
    UNFIT = 125  # the worker has not begun its job and ends
    OUTPUT = 126  # body: what the worker wrote
    BROKEN = 127  # meta: why what the worker sent cannot be read
    NOT_STARTED = 128  # ident: 1 if the next one will not start either; meta: why
    EXITED = (
        129  # ident: wait status, or UNKNOWN; meta: which memory there was, if it was killed for want of it
    )
    TAKEN_BACK = 130  # ident: number of the job
    DRAINING = 131  # meta: why; the node will be gone soon
    READING = 132  # body: devices and memory of the node, see `telemetry.node_reading`
    PONG = 133  # ident: number of the ping; meta: time of the node in nanoseconds
    NOTE = 134  # meta: a line for the log of the parent process
    BYE = 135  # the agent ends by its own will
    OPENS = 136  # the agent can open memory files of the parent process
    LOST = 137  # the worker was ended with its node, which is draining


UNKNOWN = 2**40
"""Wait status that nobody knows."""
RECORDED = 2**63
"""Set in the number of a job whose output is kept: it is read before the job's end is told."""


def pack_slots(slots: tuple[Slot, ...]) -> bytes:
    """Slots of a node as JSON."""
    return json.dumps([asdict(slot) for slot in slots]).encode()


_TYPES: dict[str, tuple[type, ...]] = {
    "index": (int,), "kind": (str,), "gpu_id": (int, type(None)), "uuid": (str,), "name": (str,), "threads": (int,),
    "host": (str,), "shares_ram": (bool,),
}  # fmt: skip


def unpack_slots(packed: bytes, host: str) -> tuple[Slot, ...]:
    """Slots of a node, whose name they get.

    Raises
    ------
    ProtocolError
        If they are no such slots.
    """
    try:
        entries = json.loads(packed)
        return tuple(_slot(entry, host) for entry in entries)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProtocolError(f"slots of node {host} cannot be read: {error}") from error


def _slot(entry: dict[str, Any], host: str) -> Slot:
    values = {field.name: entry[field.name] for field in fields(Slot)}
    wrong = [name for name, kinds in _TYPES.items() if type(values[name]) not in kinds]
    if wrong or values["kind"] not in ("cuda", "cpu"):
        raise TypeError(f"{', '.join(wrong) or 'kind'} of a slot")
    return Slot(**{**values, "host": host})


def pack_ports(address: str, ports: tuple[int, ...]) -> bytes:
    """An address of a node, and the ports of it that are kept for its slots, as JSON."""
    return json.dumps([address, *ports]).encode()


def unpack_ports(packed: bytes, slots: int) -> tuple[str, tuple[int, ...]]:
    """Address and ports for so many slots; empty where nothing is packed.

    Raises
    ------
    ProtocolError
        If they are no such address and ports.
    """
    if not packed:
        return "", ()
    try:
        address, *ports = json.loads(packed)
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"ports of a node cannot be read: {error}") from error
    if type(address) is not str or [type(port) for port in ports] != [int] * slots:
        raise ProtocolError(f"ports of a node are an address and {slots} numbers")
    return address, tuple(ports)
