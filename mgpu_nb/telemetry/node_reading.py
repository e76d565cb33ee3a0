"""The reading of a node: what its agent writes of devices and workers, and what the parent process makes of it.

It travels as JSON. A node may run code for this process, but what it says here is foreign data all the same: every
field is checked, every text and list is bounded, and escape sequences go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, NoReturn, Self, TypeVar

from ..hardware import host
from ..hardware.device import Device
from ..hardware.holders import Holder
from ..hardware.slots import Memory, Slot, devices_here
from ..output import clean
from .reading import read
from .samples import DeviceSample, WorkerSample, WorkerState

__all__ = ["MOST_BYTES", "Held", "NodeReading", "read_node"]

T = TypeVar("T")

MOST_BYTES = 2**22  # of a reading; that of a node of eight GPUs has some thousand
MOST_DEVICES = 256  # GPUs and MIG instances
MOST_CORES = 2**16
MOST_WORKERS = 2**14
MOST_HOLDERS = 32  # of a device; the largest
LONGEST = 400  # characters of a text
LARGEST = 1e15  # number that is no size: seconds, per cent, watts
LATEST = 2.0**36  # Unix time, which a calendar still has


class Held(NamedTuple):
    """What a worker holds on a device, in bytes; None if unknown.

    Attributes
    ----------
    memory
        As in `WorkerSample`.
    source
        Where that number comes from.
    resident
        RAM of its process, where its device has no memory but the machine's.
    """

    memory: int | None
    source: str
    resident: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReading:
    """Devices and workers of a node at one time.

    Attributes
    ----------
    host
        Name of the node.
    at
        Unix time by the clock of this machine, seconds.
    gpus, virtual
        GPUs as `devices` lists them on the node, without `Device.host`; the number of its virtual devices with the
        first of them.
    samples
        The devices as the sampler has them.
    workers
        What each worker holds, by its process id and the UUID of the device, ``cpu`` for all virtual ones.
    ram
        RAM of the node.
    process_limit
        Bytes of address space that a process may have there; None without a limit.
    note
        A warning for the reader.
    """

    host: str
    at: float
    gpus: tuple[Device, ...]
    virtual: tuple[tuple[int, Device], ...]
    samples: tuple[DeviceSample, ...]
    workers: Mapping[tuple[int, str], Held]
    ram: Memory
    process_limit: int | None
    note: str

    @classmethod
    def unpack(cls, data: bytes, host: str, clock_offset: float = 0.0) -> Self:
        """Read what `read_node` has written.

        Parameters
        ----------
        data
            The bytes.
        host
            Name of the node.
        clock_offset
            Seconds that the clock of this machine is ahead of that of the node.

        Raises
        ------
        ValueError
            If that is no reading; the message names the node and the field.
        """
        try:
            found = _Fields(_parsed(data), "reading")
            return cls(
                host=host,
                at=(found.number("at", LATEST) or 0.0) + clock_offset,
                gpus=found.each("gpus", MOST_DEVICES, lambda f: _device(f, "cuda")),
                virtual=found.each(
                    "virtual", 1, lambda f: (f.whole("count", MOST_CORES) or 0, _device(f, "cpu"))
                ),
                samples=found.each("samples", MOST_DEVICES + 1, lambda f: _sample(f, host)),
                workers=dict(found.each("workers", MOST_WORKERS, _worker)),
                ram=Memory(found.whole("ram"), found.whole("free_ram")),
                process_limit=found.whole("process_limit"),
                note=found.text("note"),
            )
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the reading of node {clean(host)} cannot be read: {error}") from None

    @property
    def devices(self) -> tuple[Device, ...]:
        """Its devices, as `Node.devices`."""
        virtual = [
            replace(device, index=n, uuid=f"cpu:{n}") for count, device in self.virtual for n in range(count)
        ]
        return (*self.gpus, *virtual)

    def memory(self, slot: Slot) -> Memory:
        """Memory of a slot's device, as `device_memory` would have it on the node; unknown for one not listed."""
        if slot.kind == "cuda" and not slot.shares_ram:
            found = (Memory(d.total, d.free) for d in self.gpus if d.uuid == slot.uuid)
            return next(found, Memory(None, None))
        total, free = self.ram
        if slot.kind == "cpu" and total is not None and self.process_limit is not None:
            total = min(total, self.process_limit)
        return Memory(total, free)

    def held(self, pid: int | None, slot: Slot) -> int | None:
        """Bytes that a worker holds on a slot's device, as its engine on the node says; None if unknown."""
        found = self.workers.get((pid or 0, _key(slot.kind, slot.uuid)))
        if found is None:
            return None
        return found.memory if found.resident is None else found.resident + (found.memory or 0)

    def worker(self, state: WorkerState) -> WorkerSample | None:
        """Sample of a worker; None if the node has not told of it."""
        found = self.workers.get((state.pid or 0, _key(state.kind, state.uuid)))
        return None if found is None else WorkerSample(state, found.memory, found.source)


def read_node(states: Iterable[WorkerState]) -> bytes:
    """Read the devices of this machine and the memory of its workers, for `NodeReading.unpack` elsewhere.

    Takes as long as `read` and `devices` together: milliseconds for each GPU, so it has a thread of its own.

    Parameters
    ----------
    states
        The workers, one state for each device that one works on; of names, tasks and runs nothing is used.
    """
    snapshot, listed = read(states), devices_here()
    sharing = {device.uuid for device in listed if device.shares_ram}
    gpus = [device for device in listed if device.kind == "cuda"][:MOST_DEVICES]
    cores = [device for device in listed if device.kind == "cpu"]
    total, _, free = host.memory()
    content = {
        "at": snapshot.at,
        "gpus": [_packed(device) for device in gpus],
        # They differ in their numbers only, and there may be hundreds.
        "virtual": [{**_packed(cores[0]), "count": len(cores)}] if cores else [],
        "samples": [_packed(sample) for sample in snapshot.devices[: MOST_DEVICES + 1]],
        "workers": [_packed_worker(sample, sharing) for sample in snapshot.workers[:MOST_WORKERS]],
        "ram": total,
        "free_ram": free,
        "process_limit": host.process_limit(),
        "note": snapshot.note,
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def _key(kind: str, uuid: str) -> str:
    return uuid if kind == "cuda" else "cpu"


def _packed(device: Device | DeviceSample) -> dict[str, Any]:
    """Fields that are not empty."""
    found = {field.name: getattr(device, field.name) for field in fields(device)}
    texts = {name: value[:LONGEST] for name, value in found.items() if isinstance(value, str) and value}
    figures = {
        name: value for name, value in found.items() if isinstance(value, (int, float)) and value is not False
    }
    held = [
        {**holder._asdict(), "user": holder.user[:LONGEST], "command": holder.command[:LONGEST]}
        for holder in device.holders[:MOST_HOLDERS]
    ]
    if device.kind == "cpu" and isinstance(device, DeviceSample):
        texts["name"] = device.name.removesuffix(" of this machine")
    return {**figures, **texts, **({"holders": held} if held else {})}


def _packed_worker(sample: WorkerSample, sharing: set[str]) -> dict[str, Any]:
    state = sample.state
    found = {
        "pid": state.pid,
        "uuid": _key(state.kind, state.uuid),
        "memory": sample.memory,
        "source": sample.source,
    }
    if state.uuid in sharing:
        found["resident"] = host.resident(state.pid)
    return found


def _parsed(data: bytes) -> Any:
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has {len(data):,} bytes, more than {MOST_BYTES:,}")

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number")

    return json.loads(data.decode(), parse_constant=refuse)


class _Fields:
    """Fields of an object that was read, each checked when it is asked for; those that are not there are empty."""

    def __init__(self, found: Any, where: str) -> None:
        if not isinstance(found, dict):
            raise ValueError(f"{where} must be an object, got {_short(found)}")  # noqa: TRY004 - of foreign data
        self._found = found
        self._where = where

    def whole(self, name: str, most: int = 2**63 - 1) -> int | None:
        """A number from 0 to `most`, without fraction."""
        value = self._found.get(name)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value <= most:
            self._refuse(name, f"a whole number from 0 to {most}", value)
        return value

    def number(self, name: str, most: float = LARGEST) -> float | None:
        """A number from 0 to `most`."""
        value = self._found.get(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not 0 <= value <= most:
            self._refuse(name, f"a number from 0 to {most:g}", value)
        return float(value)

    def text(self, name: str) -> str:
        """A text, without what must not be shown."""
        value = self._found.get(name, "")
        if not isinstance(value, str) or len(value) > LONGEST:
            self._refuse(name, f"a text of at most {LONGEST} characters", value)
        return clean(value)

    def flag(self, name: str) -> bool:
        """Whether something is so."""
        value = self._found.get(name, False)
        if not isinstance(value, bool):
            self._refuse(name, "true or false", value)
        return value

    def each(self, name: str, most: int, make: Callable[[_Fields], T]) -> tuple[T, ...]:
        """What `make` makes of each object of a list."""
        values = self._found.get(name, [])
        if not isinstance(values, list) or len(values) > most:
            self._refuse(name, f"a list of at most {most:,}", values)
        return tuple(make(_Fields(value, f"{name}[{n}]")) for n, value in enumerate(values))

    def _refuse(self, name: str, wanted: str, value: object) -> NoReturn:
        raise ValueError(f"{self._where}.{name} must be {wanted}, got {_short(value)}")


def _short(value: object) -> str:
    text = (
        repr(value)[:40] if not isinstance(value, (list, dict)) else f"{type(value).__name__} of {len(value)}"
    )
    return clean(text)


def _device(found: _Fields, kind: str) -> Device:
    return Device(
        index=found.whole("index"),
        kind="cuda" if kind == "cuda" else "cpu",
        name=found.text("name"),
        uuid=found.text("uuid"),
        total=found.whole("total"),
        used=found.whole("used"),
        free=found.whole("free"),
        utilisation=found.whole("utilisation"),
        temperature=found.whole("temperature"),
        power=found.number("power"),
        driver=found.text("driver"),
        pci_bus=found.text("pci_bus"),
        mig=found.flag("mig"),
        shares_ram=found.flag("shares_ram"),
        problem=found.text("problem"),
        holders=found.each("holders", MOST_HOLDERS, _holder),
    )


def _sample(found: _Fields, node: str) -> DeviceSample:
    return DeviceSample(
        uuid=found.text("uuid"),
        label=found.text("label"),
        name=found.text("name"),
        kind="cuda" if found.text("kind") == "cuda" else "cpu",
        total=found.whole("total"),
        used=found.whole("used"),
        ours=found.whole("ours") or 0,
        others=found.whole("others"),
        utilisation=found.number("utilisation"),
        temperature=found.whole("temperature"),
        power=found.number("power"),
        holders=found.each("holders", MOST_HOLDERS, _holder),
        problem=found.text("problem"),
        host=node,
    )


def _holder(found: _Fields) -> Holder:
    return Holder(
        found.whole("pid") or 0,
        found.whole("size"),
        found.text("user"),
        found.text("command"),
        found.flag("ours"),
    )


def _worker(found: _Fields) -> tuple[tuple[int, str], Held]:
    held = Held(found.whole("memory"), found.text("source"), found.whole("resident"))
    return (found.whole("pid") or 0, found.text("uuid")), held
