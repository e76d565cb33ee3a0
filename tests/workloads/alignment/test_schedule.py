"""Seconds of chains of jobs on a few slots, with a barrier between rounds and without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from virtual import Behaviour, VirtualEngine

from mgpu_nb import GPUPool, Task
from mgpu_nb.workloads.alignment.schedule import Placed, bound, makespan, placements

Chains = tuple[dict[str, float], dict[str, tuple[str, ...]], dict[str, int]]


def chains(seed: int, count: int = 10, rounds: int = 3) -> Chains:
    """Seconds, what is waited for, and rounds of chains of lognormal jobs."""
    drawn = np.random.default_rng(seed).lognormal(0.0, 1.0, (count, rounds))
    names = {(chain, number): f"{chain}-{number}" for chain in range(count) for number in range(rounds)}
    return (
        {name: float(drawn[place]) for place, name in names.items()},
        {name: (names[chain, n - 1],) if n else () for (chain, n), name in names.items()},
        {name: number for (_, number), name in names.items()},
    )


def lasts(seconds: float) -> Behaviour:
    return Behaviour(seconds=seconds)


def test_two_chains_side_by_side_and_with_a_barrier() -> None:
    seconds = {"a1": 8.0, "a2": 1.0, "b1": 1.0, "b2": 8.0}
    after = {"a1": (), "a2": ("a1",), "b1": (), "b2": ("b1",)}
    rounds = {"a1": 1, "b1": 1, "a2": 2, "b2": 2}
    assert makespan(seconds, after, 2) == bound(seconds, after, 2) == 9.0
    assert makespan(seconds, after, 2, rounds) == 16.0
    assert placements(seconds, after, 2, rounds) == {
        "a1": Placed(0, 0.0, 8.0),
        "b1": Placed(1, 0.0, 1.0),
        "b2": Placed(0, 8.0, 16.0),
        "a2": Placed(1, 8.0, 9.0),
    }
    assert makespan(seconds, after, 1) == makespan(seconds, after, 1, rounds) == 18.0


@pytest.mark.parametrize("seed", range(4))
def test_the_graph_is_within_8_per_cent_of_the_bound_and_a_barrier_is_not(seed: int, tmp_path: Path) -> None:
    seconds, after, rounds = chains(seed)
    tasks = [Task(lasts, seconds[name], name=name, after=after[name]) for name in seconds]
    engine, taken = VirtualEngine(4, blocks=True), []
    with GPUPool(engine=engine) as pool:
        barriers: tuple[bool | dict[str, int], ...] = (False, False, rounds)
        for number, by_round in enumerate(barriers):
            began = engine.clock.now
            pool.run(tasks, folder=tmp_path / str(number), by_round=by_round).results(60)
            taken.append(engine.clock.now - began)
    _, graph, barrier = taken  # the first run learns how long tasks take
    least = bound(seconds, after, 4)
    assert least <= graph <= 1.08 * least
    assert barrier > 1.08 * least
    assert least <= makespan(seconds, after, 4) <= 1.08 * least
    assert makespan(seconds, after, 4, rounds) == pytest.approx(barrier, rel=0.1)
