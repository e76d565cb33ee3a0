"""Plain data: a device, and the table of devices that a notebook shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, overload

from ..tables import Html, Table, escape, gib, number
from .holders import Holder, held_by

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Device", "DeviceTable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU, a MIG instance of one, or a virtual CPU device, as of the query. Unknown values are None.

    Attributes
    ----------
    index
        The id for ``gpu_ids``: CUDA's number of the GPU in this process, under its own CUDA_VISIBLE_DEVICES.
        MIG instances take the place of their GPU, in order. None if it cannot be used: `problem` says why.
        The N of ``cpu:N`` for virtual devices.
    kind
        ``cuda`` | ``cpu``.
    name
        The model; for a virtual device, its share of the cores.
    uuid
        ``GPU-...`` or ``MIG-...`` as the driver reports it; ``cpu:N`` for virtual devices.
    total, used, free
        Memory in bytes; for virtual devices, and for a GPU that `shares_ram`, the RAM that all of them share.
    utilisation
        Percent of the last sampling period in which a CUDA kernel ran.
    temperature
        Degrees Celsius.
    power
        Watts.
    driver
        Version of the driver; empty for virtual devices.
    pci_bus
        PCI address, the order of ``nvidia-smi``.
    mig
        Whether it is a MIG instance.
    shares_ram
        Whether it is a GPU without memory of its own: that of the machine is its.
    problem
        Why it cannot be used; empty if it can.
    holders
        Processes that hold its memory, the largest first, as far as the driver lists them.
    host
        Name of the node of a cluster that it is a device of; empty for this machine. On another machine `index` and
        the process ids are those of that machine. Host and UUID together are unique.
    """

    index: int | None
    kind: Literal["cuda", "cpu"]
    name: str
    uuid: str
    total: int | None = None
    used: int | None = None
    free: int | None = None
    utilisation: int | None = None
    temperature: int | None = None
    power: float | None = None
    driver: str = ""
    pci_bus: str = ""
    mig: bool = False
    shares_ram: bool = False
    problem: str = ""
    holders: tuple[Holder, ...] = ()
    host: str = ""

    @property
    def label(self) -> str:
        """Device name, ``cuda:1`` or ``cpu:0``; empty for a GPU that cannot be used."""
        return "" if self.index is None else f"{self.kind}:{self.index}"


def _size(value: int | None) -> str:
    return "" if value is None else f"{gib(value)} GiB"


def _below(text: str) -> Html:
    """Parts of a text, each on a line of its own."""
    return Html("<br>".join(escape(part) for part in text.split("; ")))


# Heading, class of `tables.table`, and the text of a device's cell.
_COLUMNS: tuple[tuple[str, str, Callable[[Device], str]], ...] = (
    ("host", "", lambda d: d.host),
    ("device", "", lambda d: d.label),
    ("name", "o", lambda d: d.name),
    ("total", "n o", lambda d: _size(d.total)),
    ("used", "n", lambda d: _size(d.used)),
    ("free", "n", lambda d: _size(d.free)),
    ("util", "n", lambda d: number(d.utilisation, " %")),
    ("temp", "n m", lambda d: number(d.temperature, " °C")),
    ("power", "n m", lambda d: number(d.power, " W")),
    ("held by", "", lambda d: _below(held_by(d.holders))),
    ("problem", "", lambda d: d.problem),
    ("driver", "m", lambda d: d.driver),
    ("uuid", "m", lambda d: d.uuid),
)


class DeviceTable(Sequence[Device]):
    """The devices of this machine, then those of the nodes of a cluster: a sequence of `Device`, displayed as a table.

    Attributes
    ----------
    reason
        Why no GPU can be used; empty if one can.
    notes
        Further warnings, such as that CUDA reads CUDA_VISIBLE_DEVICES only up to an invalid entry.
    """

    def __init__(self, devices: Iterable[Device], reason: str = "", notes: Iterable[str] = ()) -> None:
        self._devices = tuple(devices)
        self.reason = reason
        self.notes = tuple(notes)

    @overload
    def __getitem__(self, key: int) -> Device: ...
    @overload
    def __getitem__(self, key: slice) -> DeviceTable: ...
    def __getitem__(self, key: int | slice) -> Device | DeviceTable:
        if isinstance(key, slice):
            return DeviceTable(self._devices[key], self.reason, self.notes)
        return self._devices[key]

    def __len__(self) -> int:
        return len(self._devices)

    def __iter__(self) -> Iterator[Device]:
        return iter(self._devices)

    @property
    def gpus(self) -> tuple[Device, ...]:
        """Usable GPUs and MIG instances of this machine, by index."""
        return tuple(d for d in self._devices if d.kind == "cuda" and d.index is not None and not d.host)

    @property
    def has_gpu(self) -> bool:
        """Whether a GPU of this machine can be used."""
        return bool(self.gpus)

    def frame(self) -> pd.DataFrame:
        """A row per device, a column per attribute of `Device`, in its units; holders as text."""
        import pandas as pd

        names = [f.name for f in fields(Device)]
        rows = [[held_by(d.holders) if n == "holders" else getattr(d, n) for n in names] for d in self]
        frame = pd.DataFrame(rows, columns=names)
        whole = dict.fromkeys(("index", "total", "used", "free", "utilisation", "temperature"), "Int64")
        return frame.astype({**whole, "power": "Float64"})

    def fitted(self, width: int) -> str:
        """Table for a terminal of so many columns; on a narrow one without UUIDs, then without names."""
        return self._table().fitted(width)

    def __repr__(self) -> str:
        return str(self._table())

    def _repr_html_(self) -> str:
        return self._table().to_html()

    def _caption(self) -> str:
        count = len(self.gpus)
        if count:
            return f"{count} GPU{'s' * (count > 1)}"
        cpus = sum(d.kind == "cpu" and not d.host for d in self)
        return f"No GPU: {self.reason}\n{cpus} virtual CPU device{'s' * (cpus != 1)}, sharing the RAM"

    def _of_nodes(self) -> list[str]:
        """A line on the devices of nodes, if there are any."""
        there = [d for d in self if d.host]
        gpus = sum(d.kind == "cuda" and d.index is not None for d in there)
        cpus = sum(d.kind == "cpu" for d in there)
        nodes = len({d.host for d in there})
        counts = [f"{gpus} GPU{'s' * (gpus != 1)}"] * bool(gpus)
        counts += [f"{cpus} virtual CPU device{'s' * (cpus != 1)}"] * bool(cpus)
        return [f"on {nodes} node{'s' * (nodes > 1)}: {' and '.join(counts) or 'no usable GPU'}"] * bool(
            nodes
        )

    def _table(self) -> Table:
        # Empty columns are left out.
        filled = [c for c in _COLUMNS if any(c[2](d) for d in self)] or _COLUMNS[1:3]
        of_nodes = self._of_nodes()
        return Table(
            [(heading, kind) for heading, kind, _ in filled],
            [[cell(d) for _, _, cell in filled] for d in self],
            "devices of this machine and of nodes" if of_nodes else "devices of this machine",
            [*self._caption().splitlines(), *of_nodes, *self.notes],
        )
