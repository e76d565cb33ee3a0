"""What the suite takes from inside the package: the public face has no name for it."""

from mgpu_nb.hardware import nvml
from mgpu_nb.telemetry.sampler import shared as sampler
from mgpu_nb.telemetry.samples import Snapshot
from mgpu_nb.views.devices import devices_html
from mgpu_nb.views.run import run_html, state_of
from mgpu_nb.workloads.tracin.graph import write_graph

__all__ = ["devices_html", "history", "listen", "readings", "run_html", "state_of", "tick", "write_graph"]


def tick() -> Snapshot:
    """Look at the devices once, as the panels do twice a second."""
    return sampler.take()


def readings() -> list[nvml.Reading]:
    """GPUs and MIG instances as the driver lists them."""
    return nvml.shared.gpus()


def history() -> list[Snapshot]:
    return list(sampler.history)


class listen:  # noqa: N801 - used like a function
    """The snapshots that are taken meanwhile, by the sampler's own thread."""

    def __enter__(self) -> list[Snapshot]:
        self.seen: list[Snapshot] = []
        sampler.listen(self.seen.append)
        return self.seen

    def __exit__(self, *_: object) -> None:
        # A bound method is made anew at each look: it must be one that compares equal.
        sampler.leave(self.seen.append)
