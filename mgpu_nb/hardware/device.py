"""Plain data: a device, and the table of them that a notebook shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Literal, overload

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Device", "DeviceTable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU, a MIG instance of one, or a virtual CPU device, as it was when asked. What is not known is None.

    Attributes
    ----------
    index
        The id to give in ``gpu_ids``: the place CUDA gives the GPU in this kernel, that is under the
        kernel's own CUDA_VISIBLE_DEVICES. MIG instances stand in the place of their GPU, one after the
        other. None where it cannot be used: `problem` says why. On virtual devices the N of ``cpu:N``.
    kind
        ``cuda`` | ``cpu``.
    name
        The model; of a virtual device, the share of cores it is.
    uuid
        ``GPU-...`` or ``MIG-...`` by the driver; ``cpu:N`` for virtual devices.
    total, used, free
        Memory in bytes; on virtual devices the RAM that all of them share.
    utilisation
        Percent of the last sample in which a kernel ran.
    temperature
        Degrees Celsius.
    power
        Watts.
    driver
        Version of the driver; empty on virtual devices.
    pci_bus
        Its PCI address, by which ``nvidia-smi`` sorts.
    mig
        Whether it is a MIG instance.
    problem
        Why it cannot be used; empty where it can.
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
    problem: str = ""

    @property
    def label(self) -> str:
        """``cuda:1``, ``cpu:0``; empty for a GPU that cannot be used."""
        return "" if self.index is None else f"{self.kind}:{self.index}"


# Heading, how a device fills the column, and whether it is a number (and so stands to the right).
_COLUMNS = (
    ("device", lambda d: d.label, False),
    ("name", lambda d: d.name, False),
    ("total GiB", lambda d: _gib(d.total), True),
    ("used GiB", lambda d: _gib(d.used), True),
    ("free GiB", lambda d: _gib(d.free), True),
    ("util %", lambda d: _plain(d.utilisation), True),
    ("temp C", lambda d: _plain(d.temperature), True),
    ("power W", lambda d: _plain(d.power), True),
    ("driver", lambda d: d.driver, False),
    ("uuid", lambda d: d.uuid, False),
    ("problem", lambda d: d.problem, False),
)


class DeviceTable(Sequence[Device]):
    """The devices of this machine: a sequence of `Device` that shows itself as a table.

    Attributes
    ----------
    reason
        Why there is no GPU to use; empty where there is one.
    notes
        What else should be known, such as that CUDA reads CUDA_VISIBLE_DEVICES only up to a wrong entry.
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
        """The GPUs and MIG instances that can be used, by index."""
        return tuple(d for d in self._devices if d.kind == "cuda" and d.index is not None)

    @property
    def has_gpu(self) -> bool:
        """Whether there is a GPU to use."""
        return bool(self.gpus)

    def frame(self) -> pd.DataFrame:
        """Return a row per device, a column per attribute of `Device`: bytes, percent, Celsius, watts."""
        import pandas as pd

        frame = pd.DataFrame([asdict(d) for d in self], columns=[f.name for f in fields(Device)])
        whole = dict.fromkeys(("index", "total", "used", "free", "utilisation", "temperature"), "Int64")
        return frame.astype({**whole, "power": "Float64"})

    def __repr__(self) -> str:
        headings, rows, right = self._cells()
        widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
        lines = [self._caption(), *self.notes]
        for row in [headings, *rows]:
            cells = zip(row, widths, right, strict=True)
            lines.append("  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in cells).rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        headings, rows, right = self._cells()
        rule = "1px solid var(--jp-border-color2,#ccc)"
        base = f"padding:2px 8px;white-space:nowrap;border-bottom:{rule};text-align:"
        styles = [base + ("right" if r else "left") for r in right]

        def line(tag: str, cells: Sequence[str]) -> str:
            styled = zip(cells, styles, strict=True)
            inner = "".join(f'<{tag} style="{s}">{escape(c)}</{tag}>' for c, s in styled)
            return f"<tr>{inner}</tr>"

        text = "color:var(--jp-content-font-color1,inherit);font-size:var(--jp-ui-font-size1,13px)"
        head = "".join(
            f'<div style="white-space:pre-line">{escape(t)}</div>' for t in (self._caption(), *self.notes)
        )
        body = "".join(line("td", row) for row in rows)
        table = f'<table style="border-collapse:collapse">{line("th", headings)}{body}</table>'
        return f'<div style="{text};overflow-x:auto">{head}{table}</div>'

    def _caption(self) -> str:
        count = len(self.gpus)
        if count:
            return f"{count} GPU{'s' * (count > 1)}"
        cpus = sum(d.kind == "cpu" for d in self)
        return f"No GPU: {self.reason}\n{cpus} virtual CPU device{'s' * (cpus != 1)}, sharing the RAM"

    def _cells(self) -> tuple[list[str], list[list[str]], list[bool]]:
        """Headings, rows of text, and which columns stand to the right; empty columns are left out."""
        filled = [c for c in _COLUMNS if any(c[1](d) for d in self)] or list(_COLUMNS[:2])
        headings = [heading for heading, _, _ in filled]
        return headings, [[cell(d) for _, cell, _ in filled] for d in self], [right for _, _, right in filled]


def _gib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**30:.1f}"


def _plain(number: float | None) -> str:
    return "" if number is None else f"{number:.0f}"
