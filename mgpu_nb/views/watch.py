"""`watch()`: the memory of every device and the processes that hold it, live."""

from __future__ import annotations

from ..notebook import in_notebook
from ..telemetry import sampler
from .devices import devices_html
from .markup import block, line
from .panel import Panel
from .terminal import device_lines, text

__all__ = ["Watch", "watch"]


_LEFT = block(line("The devices are shown while the notebook kernel runs; run the cell again.", "q"))


class Watch:
    """A live view of the devices. Displayed by the cell that ends with it; `close` stops it."""

    def __init__(self) -> None:
        self._open = True
        self._panels: list[Panel] = []

    def _html(self, live: bool) -> str:
        if not sampler.shared.history:
            sampler.shared.take()
        return devices_html(list(sampler.shared.history), live=live)

    def close(self) -> None:
        """Stop it; its last state stays as a static output."""
        self._open = False
        for panel in self._panels:
            panel.close()
        self._panels.clear()

    def _ipython_display_(self) -> None:
        if in_notebook():
            panel = Panel(self._html, lambda: not self._open, _LEFT, subject=self)
            self._panels.append(panel)
            panel.show()
        else:
            print(repr(self))

    def __repr__(self) -> str:
        sampler.shared.take()
        return text(device_lines(list(sampler.shared.history), 120))


def watch() -> Watch:
    """Show the memory of every device and the processes that hold it, live.

    The last expression of a cell shows it: a row per GPU with name, memory (ours, others, free), utilisation,
    temperature, power, the last minutes and who holds memory: tasks by name, other processes by user and command.
    Without a GPU the RAM of the machine is shown. Where open pools have workers on the nodes of a cluster, the devices
    of these follow, each behind the name of its node, and a line says which nodes were lost. ``mgpu-nb watch`` shows
    those of this machine in a terminal. Running the cell again, or `Watch.close`, ends it.

    Examples
    --------
    >>> from mgpu_nb import watch
    >>> panel = watch()
    >>> panel.close()
    """
    return Watch()
