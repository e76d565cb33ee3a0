"""What the suite takes from inside the package: the public face has no name for it."""

from mgpu_nb.telemetry.sampler import shared as sampler
from mgpu_nb.views.devices import devices_html
from mgpu_nb.views.run import run_html, state_of
from mgpu_nb.workloads.tracin.graph import write_graph

__all__ = ["devices_html", "history", "listen", "run_html", "state_of", "tick", "write_graph"]


def tick():
    """Look at the devices once, as the panels do twice a second."""
    return sampler.take()


def history():
    return list(sampler.history)


class listen:  # noqa: N801 - used like a function
    """The snapshots that are taken meanwhile, by the sampler's own thread."""

    def __enter__(self):
        self.seen = []
        sampler.listen(self.seen.append)
        return self.seen

    def __exit__(self, *_):
        # A bound method is made anew at each look: it must be one that compares equal.
        sampler.leave(self.seen.append)
