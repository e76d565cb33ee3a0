"""Pools and agents that are only connected: a door with the links that came in, and what moves frames along."""

import os
import selectors
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import Queue
from typing import Any

from mgpu_nb.cluster.door import Door, dial
from mgpu_nb.cluster.invitation import Invitation
from mgpu_nb.cluster.link import Link, LinkFrame

WAIT = 30.0  # seconds until a test gives up


class Pool:
    """A door and what came in by it."""

    def __init__(self, admit: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda facts: {}) -> None:
        self.links: Queue[tuple[Link, dict[str, Any]]] = Queue()
        self.door = Door(admit, lambda link, facts: self.links.put((link, facts)), pool="pool-7")

    @property
    def invitation(self) -> Invitation:
        return self.door.open()

    def connect(self) -> tuple[Link, Link]:
        """The pool's end of a new link, and the agent's."""
        theirs, _ = dial(self.invitation, {"node": "n1"})
        return self.links.get(timeout=WAIT)[0], theirs


@contextmanager
def pool_of_links(
    admit: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda facts: {},
) -> Iterator[Pool]:
    """A pool whose door and links are closed in the end."""
    pool = Pool(admit)
    try:
        yield pool
    finally:
        pool.door.close()
        while not pool.links.empty():
            pool.links.get()[0].close()


def until(condition: Callable[[], object], *links: Link, what: str = "it") -> dict[Link, list[LinkFrame]]:
    """Serve links as an event loop does, until something is so; return the frames that came, by link."""
    frames: dict[Link, list[LinkFrame]] = {link: [] for link in links}
    serve(condition, {link: frames[link].append for link in links}, what)
    return frames


def serve(
    condition: Callable[[], object], links: Mapping[Link, Callable[[LinkFrame], object]], what: str = "it"
) -> None:
    """Serve links, with what is called with each frame that comes, until something is so."""
    end = time.monotonic() + WAIT
    with selectors.DefaultSelector() as selector:
        for link in links:
            selector.register(link, selectors.EVENT_READ)
        while not condition():
            assert time.monotonic() < end, f"{what} did not happen"
            for link in links:
                if link in selector.get_map():
                    more = selectors.EVENT_WRITE if link.pending else 0
                    selector.modify(link, selectors.EVENT_READ | more)
            selector.select(0 if any(link.more for link in links) else 0.05)
            for link, take in links.items():
                link.flush()
                for frame in link.receive():
                    take(frame)
                if link.closed and link in selector.get_map():
                    selector.unregister(link)


def drop(frame: LinkFrame) -> None:
    """Nobody asks for a frame."""


def arrive(link: Link, count: int, *others: Link) -> list[LinkFrame]:
    """So many frames of a link, while it and others are served."""
    found: list[LinkFrame] = []
    serve(
        lambda: len(found) >= count,
        {link: found.append, **dict.fromkeys(others, drop)},
        f"{count} frames",
    )
    return found


def memory_file(data: bytes) -> int:
    """Descriptor of a memory file."""
    fd = os.memfd_create("test")
    os.truncate(fd, len(data))
    os.pwrite(fd, data, 0)
    return fd


def noise(size: int) -> bytes:
    """Bytes that look random."""
    return (os.urandom(2**16) * (size // 2**16 + 1))[:size]


def contents(frame: LinkFrame) -> list[bytes]:
    """Segments of a frame, whose descriptors are closed."""
    found = [bytes(view) for view in frame.memory]
    for fd in frame.fds:
        found.append(os.pread(fd, os.fstat(fd).st_size, 0))
        os.close(fd)
    return found
