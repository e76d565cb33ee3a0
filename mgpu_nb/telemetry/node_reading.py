"""The reading of a node: what its agent writes of devices and workers, and what the parent process makes of it.

It travels as JSON. A node may run code for this process, but what it says here is foreign data all the same: every
field is checked, every text and list is bounded, and escape sequences go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn, Self

from ..hardware import host
from ..hardware.device import Device
from ..hardware.holders import Holder
from ..hardware.slots import Memory, Slot, devices_here
from ..output import clean
from .reading import read
from .samples import DeviceSample, WorkerSample, WorkerState

__all__ = ["MOST_BYTES", "Held", "NodeReading", "read_node"]

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
            found = _reading(_parsed(data))
            return cls(
                host=host,
                at=found.get("at", 0.0) + clock_offset,
                gpus=found.get("gpus", ()),
                virtual=found.get("virtual", ()),
                samples=tuple(_sample(host, **values) for values in found.get("samples", ())),
                workers=dict(found.get("workers", ())),
                ram=Memory(found.get("ram"), found.get("free_ram")),
                process_limit=found.get("process_limit"),
                note=found.get("note", ""),
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
    labels = {device.uuid: device.label for device in listed if device.kind == "cuda" and device.label}
    gpus = [device for device in listed if device.kind == "cuda"][:MOST_DEVICES]
    cores = [device for device in listed if device.kind == "cpu"]
    total, _, free = host.memory()
    content = {
        "at": snapshot.at,
        "gpus": [_packed(device) for device in gpus],
        # They differ in their numbers only, and there may be hundreds.
        "virtual": [{**_packed(cores[0]), "count": len(cores)}] if cores else [],
        "samples": [
            # As the slots are called, also where no worker is.
            _packed(replace(sample, label=labels.get(sample.uuid, sample.label)))
            for sample in snapshot.devices[: MOST_DEVICES + 1]
        ],
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


class _FieldError(ValueError):
    """A value that cannot be: what is wanted, what was found, and where."""

    def __init__(self, wanted: str, value: object) -> None:
        super().__init__(wanted, value)
        self.wanted, self.value, self.where = wanted, value, ""

    def within(self, place: str) -> _FieldError:
        """Put the place in front that it was found in."""
        self.where = place + self.where
        return self

    def __str__(self) -> str:
        value = self.value
        found = (
            f"{type(value).__name__} of {len(value)}" if isinstance(value, (list, dict)) else repr(value)[:40]
        )
        return f"{self.where} must be {self.wanted}, got {clean(found)}"


_Check = Callable[[Any], Any]


def _whole(most: int = 2**63 - 1) -> _Check:
    """Check of a number from 0 to `most` without fraction."""

    def check(value: Any) -> int:
        if type(value) is int and 0 <= value <= most:
            return value
        raise _FieldError(f"a whole number from 0 to {most}", value)

    return check


def _number(most: float = LARGEST) -> _Check:
    """Check of a number from 0 to `most`."""

    def check(value: Any) -> float:
        if type(value) in (int, float) and 0 <= value <= most:
            return float(value)
        raise _FieldError(f"a number from 0 to {most:g}", value)

    return check


def _text(value: Any) -> str:
    """Check of a text; what must not be shown is taken out."""
    if type(value) is str and len(value) <= LONGEST:
        return value if value.isprintable() else clean(value)
    raise _FieldError(f"a text of at most {LONGEST} characters", value)


def _flag(value: Any) -> bool:
    """Check of what is so or not."""
    if type(value) is bool:
        return value
    raise _FieldError("true or false", value)


def _each(most: int, make: _Check) -> _Check:
    """Check of a list of at most so many of what `make` checks."""

    def check(values: Any) -> tuple[Any, ...]:
        if type(values) is not list or len(values) > most:
            raise _FieldError(f"a list of at most {most:,}", values)
        made = []
        for value in values:
            try:
                made.append(make(value))
            except _FieldError as error:
                raise error.within(f"[{len(made)}]") from None
        return tuple(made)

    return check


def _object(fields: Mapping[str, _Check], make: Callable[..., Any]) -> _Check:
    """Check of an object: `make` is given those of the fields that it has; others that it has are let be."""

    def check(found: Any) -> Any:
        if type(found) is not dict:
            raise _FieldError("an object", found)
        values = {}
        for name, of_field in fields.items():
            if (value := found.get(name)) is not None:
                try:
                    values[name] = of_field(value)
                except _FieldError as error:
                    raise error.within(f".{name}") from None
        return make(**values)

    return check


_HOLDER = {"pid": _whole(), "size": _whole(), "user": _text, "command": _text, "ours": _flag}
_FIGURES: dict[str, _Check] = {
    **dict.fromkeys(("total", "used", "temperature"), _whole()),
    "power": _number(),
    **dict.fromkeys(("name", "uuid", "problem"), _text),
    "holders": _each(MOST_HOLDERS, _object(_HOLDER, lambda pid=0, **more: Holder(pid, **more))),
}
_DEVICE = {
    **_FIGURES,
    **dict.fromkeys(("index", "free", "utilisation"), _whole()),
    **dict.fromkeys(("driver", "pci_bus"), _text),
    **dict.fromkeys(("mig", "shares_ram"), _flag),
}
_SAMPLE = {
    **_FIGURES,
    **dict.fromkeys(("ours", "others"), _whole()),
    "utilisation": _number(),
    **dict.fromkeys(("label", "kind"), _text),
}
_WORKER = {**dict.fromkeys(("pid", "memory", "resident"), _whole()), "uuid": _text, "source": _text}


def _device(kind: Literal["cuda", "cpu"], **values: Any) -> Device:
    return Device(**{"index": None, "name": "", "uuid": "", **values}, kind=kind)


def _virtual(count: int = 0, **values: Any) -> tuple[int, Device]:
    return count, _device("cpu", **values)


def _sample(host: str, kind: str = "", **values: Any) -> DeviceSample:
    told = {"name": "", "uuid": "", "label": "", **values}
    return DeviceSample(**told, kind="cuda" if kind == "cuda" else "cpu", host=host)


def _held(
    pid: int = 0, uuid: str = "", memory: int | None = None, source: str = "", resident: int | None = None
) -> tuple[tuple[int, str], Held]:
    return (pid, uuid), Held(memory, source, resident)


_READING: dict[str, _Check] = {
    "at": _number(LATEST),
    "gpus": _each(MOST_DEVICES, _object(_DEVICE, partial(_device, "cuda"))),
    "virtual": _each(1, _object({**_DEVICE, "count": _whole(MOST_CORES)}, _virtual)),
    "samples": _each(MOST_DEVICES + 1, _object(_SAMPLE, dict)),
    "workers": _each(MOST_WORKERS, _object(_WORKER, _held)),
    **dict.fromkeys(("ram", "free_ram", "process_limit"), _whole()),
    "note": _text,
}


def _reading(found: Any) -> dict[str, Any]:
    """Checked fields of a reading."""
    try:
        fields: dict[str, Any] = _object(_READING, dict)(found)
    except _FieldError as error:
        raise error.within("reading") from None
    return fields
