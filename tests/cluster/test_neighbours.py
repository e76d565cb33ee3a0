"""Large values between processes of one machine: lent as files, not copied."""

import gc
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from links import arrive, contents, memory_file, noise, pool_of_links, until

from mgpu_nb import Agents, GPUPool
from mgpu_nb.cluster import node as node_module
from mgpu_nb.cluster.frames import TAKEN, BrokenLink
from mgpu_nb.cluster.link import Link, LinkFrame
from mgpu_nb.cluster.neighbours import Witness, neighbour, open_file
from mgpu_nb.engines.segment import SMALL

LARGE = SMALL + 4099


@pytest.fixture
def witness() -> Iterator[Witness]:
    witness = Witness()
    yield witness
    witness.close()


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    """The pool's end and the agent's, neighbours; nothing of them is open afterwards."""
    with pool_of_links() as pool:
        pool.door.open()
        gc.collect()
        before = psutil.Process().num_fds()
        ours, theirs = pool.connect()
        for link in (ours, theirs):
            link.lends, link.lender = True, os.getpid()
        yield ours, theirs
        ours.close()
        theirs.close()
        assert psutil.Process().num_fds() <= before


def test_a_process_of_the_same_user_is_a_neighbour(witness: Witness) -> None:
    assert neighbour(witness.told) == os.getpid()
    code = f"from mgpu_nb.cluster.neighbours import neighbour; print(neighbour({witness.told}))"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert other.stdout.strip() == str(os.getpid())


def test_who_only_has_the_same_numbers_is_none(witness: Witness) -> None:
    assert witness.told is not None
    pid, number, content = witness.told
    for told in (
        (pid, number, content[:-1] + ("1" if content[-1] == "0" else "0")),
        (2**22 + 1, number, content),
        (pid, 2**20, content),
        (pid, number),
        (f"{pid}/../{pid}", number, content),
        (pid, f"../fd/{number}", content),
        None,
        "x",
    ):
        assert neighbour(told) is None
    witness.close()
    assert neighbour(witness.told) is None


def test_without_memory_files_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert Witness().told is None
    assert neighbour(None) is None


def test_no_other_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    with path.open("rb") as file, ours, theirs:
        for number in (file.fileno(), ours.fileno(), reader, writer):
            with pytest.raises(OSError, match="no memory file"):
                open_file(os.getpid(), number)
    os.close(reader)
    os.close(writer)


def test_large_segments_are_lent_both_ways_until_they_are_opened(ends: tuple[Link, Link]) -> None:
    sizes = [LARGE, 3, LARGE + 1, SMALL, 0]
    parts = [noise(size) for size in sizes]
    for sender, receiver in (ends, ends[::-1]):
        before = sender.received, receiver.received
        fds = [memory_file(part) for part in parts]
        sender.send(1, 2, 3, b"meta", b"body", list(zip(fds, sizes, strict=True)))
        for fd in fds:
            os.close(fd)
        assert len(sender._lent) == 2
        (frame,) = arrive(receiver, 1, sender)
        assert frame[:5] == (1, 2, 3, b"meta", b"body")
        assert contents(frame) == parts
        assert receiver.received - before[1] < SMALL + 1000
        until(partial(_has_all_back, sender), sender, receiver)


def _has_all_back(link: Link) -> bool:
    return not link._lent


def test_what_is_lent_is_private_to_who_has_it(ends: tuple[Link, Link]) -> None:
    data = noise(LARGE)
    ours, theirs = ends
    fd = memory_file(data)
    theirs.send(1, segments=[(fd, LARGE)])
    (frame,) = arrive(ours, 1, theirs)
    frame.memory[0][:4] = b"mine"
    assert os.pread(fd, 4, 0) == data[:4]
    ours.send(1, segments=[(fd, LARGE)])
    (frame,) = arrive(theirs, 1, ours)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(frame.fds[0], b"mine", 0)
    os.close(frame.fds[0])
    os.close(fd)


def test_memory_of_the_sender_itself_is_sent(ends: tuple[Link, Link]) -> None:
    data = noise(LARGE)
    ends[0].send(1, segments=[memoryview(data)])
    assert not ends[0]._lent
    (frame,) = arrive(ends[1], 1, ends[0])
    assert contents(frame) == [data]


def test_a_link_that_ends_closes_what_it_lent(ends: tuple[Link, Link]) -> None:
    fd = memory_file(noise(LARGE))
    before = psutil.Process().num_fds()
    for _ in range(3):
        ends[0].send(1, segments=[(fd, LARGE)])
    ends[0].close()
    assert psutil.Process().num_fds() == before - 1
    os.close(fd)


def test_what_is_there_no_more_breaks_the_link(ends: tuple[Link, Link]) -> None:
    """As where an agent was killed after it had sent a value: its task is lost with its node, and tried elsewhere."""
    fd = memory_file(noise(LARGE))
    ends[0].send(1, segments=[(fd, LARGE)])
    os.close(fd)
    ends[0]._lent.pop().close()
    with pytest.raises(BrokenLink, match="lent what it has no more"):
        until(lambda: False, *ends)


@pytest.mark.parametrize("files", [True, False])
def test_without_a_descriptor_left_one_value_is_lost_and_not_the_link(
    ends: tuple[Link, Link], files: bool
) -> None:
    receiver, sender = ends[::-1] if files else ends
    data = noise(LARGE)
    fd = memory_file(data)
    sender.send(1, segments=[(fd, LARGE)])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        frames: list[LinkFrame] = []
        while not frames:
            frames += receiver.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert frames[0].fds == ((-1,) if files else ())
    assert not any(frames[0].memory)
    sender.send(2, segments=[(fd, LARGE)])
    os.close(fd)
    (frame,) = arrive(receiver, 1, sender)
    assert contents(frame) == [data]


def test_who_cannot_open_it_and_who_was_lent_nothing_is_told(ends: tuple[Link, Link]) -> None:
    fd = memory_file(noise(LARGE))
    ends[1].lender = None
    ends[0].send(1, segments=[(fd, LARGE)])
    os.close(fd)
    with pytest.raises(BrokenLink, match="cannot open"):
        until(lambda: False, *ends)
    ends[1].send(TAKEN, ident=2)
    with pytest.raises(BrokenLink, match="not lent"):
        until(lambda: False, ends[0], ends[1])


def total(array: np.ndarray) -> tuple[float, np.ndarray]:
    return float(array.sum()), array + 1


@pytest.mark.slow
@pytest.mark.parametrize("are_neighbours", [True, False])
def test_a_pool_and_its_agents_of_this_machine(are_neighbours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not are_neighbours:
        monkeypatch.setattr(node_module, "neighbour", lambda told: None)
        monkeypatch.setattr(
            Witness, "told", property(lambda self: None, lambda self, told: None), raising=False
        )
    array = np.arange(LARGE, dtype=float)
    with GPUPool("cpu", slots=1, cluster=Agents(here=2)) as pool:
        pool.wait_for_slots(2, timeout=120)
        results = [future.result(120) for future in [pool.submit(total, array + n) for n in range(6)]]
        links = [node.link for node in pool._engine.nodes.values()]  # type: ignore[attr-defined]
        assert [(link.lends, link.lender is not None) for link in links] == [(are_neighbours,) * 2] * 2
        for n, (found, back) in enumerate(results):
            assert found == float((array + n).sum())
            assert np.array_equal(back, array + n + 1)
        received = sum(link.received for link in links)
        assert (received < 6 * LARGE) == are_neighbours
        if are_neighbours:
            assert not any(link._lent for link in links)
