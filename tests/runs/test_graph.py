"""The order that `after` asks for."""

from pathlib import Path

import pytest
from virtual import Behaviour, VirtualEngine

from mgpu_nb import GPUPool, Task
from mgpu_nb.runs.graph import Barrier, Graph


def test_a_task_is_free_when_all_it_waits_for_are_done() -> None:
    graph = Graph({"d": ["b", "c"], "b": ["a"], "c": ["a"], "a": []})
    assert graph.ready() == ["a"]
    assert graph.done("a") == ["b", "c"]
    assert graph.done("b") == []
    assert graph.done("c") == ["d"]
    order = graph.order()
    assert order.index("a") < min(order.index("b"), order.index("c"))
    assert order[-1] == "d"
    assert sorted(graph.followers("a")) == ["b", "c"]
    assert graph.followers("d") == []


def test_a_name_twice_is_waited_for_once() -> None:
    graph = Graph({"a": [], "b": ["a", "a"]})
    assert graph.done("a") == ["b"]


def test_unknown_names_and_circles_are_refused() -> None:
    with pytest.raises(ValueError, match=r"waits for 'tran'.*did you mean 'train'"):
        Graph({"train": [], "test": ["tran"]})
    with pytest.raises(ValueError, match=r"in a cycle: .* -> "):
        Graph({"a": ["c"], "b": ["a"], "c": ["b"]})
    with pytest.raises(ValueError, match="cycle: a -> a"):
        Graph({"a": ["a"]})


def test_a_circle_reads_in_the_direction_of_waiting() -> None:
    with pytest.raises(ValueError, match=r"cycle: (a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c);"):
        Graph({"a": ["b"], "b": ["c"], "c": ["a"], "free": []})
    with pytest.raises(ValueError, match="cycle: a -> a;"):
        Graph({"a": ["a"]})


def test_an_unknown_name_like_no_other_gets_no_guess() -> None:
    with pytest.raises(ValueError, match=r"'a' waits for 'zzz', which is not a task of this run$"):
        Graph({"a": ["zzz"]})


def test_followers_of_a_task_that_failed_are_not_freed_by_the_others() -> None:
    graph = Graph({"bad": [], "good": [], "both": ["bad", "good"], "last": ["both"], "one": ["good"]})
    assert graph.ready() == ["bad", "good"]
    assert graph.done("good") == ["one"]
    assert graph.followers("bad") == ["both"]
    assert graph.followers("both") == ["last"]
    assert graph.order().index("both") < graph.order().index("last")


def test_the_rest_is_the_longest_chain_from_a_task_on() -> None:
    graph = Graph({"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": []})
    assert graph.rest({"a": 1, "b": 5, "c": 2, "d": 1, "e": 3}) == {"a": 7, "b": 6, "c": 3, "d": 1, "e": 3}
    assert graph.rounds() == {"a": 0, "b": 1, "c": 1, "d": 2, "e": 0}


def test_a_barrier_lets_a_round_pass_when_the_one_before_has_ended() -> None:
    barrier = Barrier({"a": 0, "b": 0, "c": 1, "d": 3})
    assert barrier.let_pass(["c", "a", "b"]) == ["a", "b"]
    assert barrier.let_pass(["d"]) == []
    assert barrier.ended("a") == []
    assert barrier.ended("kept") == []
    assert barrier.ended("b") == ["c"]
    assert barrier.ended("c") == ["d"]
    assert barrier.ended("d") == []


def lasts(seconds: float, error: bool = False) -> Behaviour:
    return Behaviour(seconds=seconds, error=ValueError("no") if error else None)


def starts(engine: VirtualEngine) -> dict[str, float]:
    return {name: at for at, _, _, name in engine.log}


def chains(*, fails: bool = False) -> list[Task]:
    """Two chains of three tasks; the first task of one and the last of the other are long."""
    return [
        Task(lasts, 8, name="a-0"),
        Task(lasts, 1, name="a-1", after="a-0"),
        Task(lasts, 1, name="a-2", after="a-1"),
        Task(lasts, 1, fails, name="b-0"),
        Task(lasts, 1, name="b-1", after="b-0"),
        Task(lasts, 8, name="b-2", after="b-1"),
    ]


def test_a_chain_waits_for_its_own_tasks_only_and_a_barrier_for_all(tmp_path: Path) -> None:
    engine = VirtualEngine(2, blocks=True)
    with GPUPool(engine=engine) as pool:
        pool.run(chains(), folder=tmp_path / "free").results(60)
        assert engine.clock.now == 10
        pool.run(chains(), folder=tmp_path / "rounds", by_round=True).results(60)
        assert engine.clock.now == 10 + 8 + 1 + 8
        of_two = {f"{chain}-{n}": n // 2 for chain in "ab" for n in range(3)}
        pool.run(chains(), folder=tmp_path / "two", by_round=of_two).results(60)
        assert engine.clock.now == 27 + 9 + 8


def test_a_round_begins_also_when_a_task_of_the_one_before_failed(tmp_path: Path) -> None:
    engine = VirtualEngine(2, blocks=True)
    with GPUPool(engine=engine) as pool:
        run = pool.run(chains(fails=True), folder=tmp_path / "run", by_round=True)
        run.wait(60)
    statuses = {record.name: record.status for record in run.records}
    assert statuses == dict.fromkeys(("a-0", "a-1", "a-2"), "ok") | {"b-0": "error"} | dict.fromkeys(
        ("b-1", "b-2"), "skipped"
    )


def test_a_run_in_rounds_goes_on_from_its_folder_and_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    with GPUPool(engine=VirtualEngine(2, blocks=True)) as pool:
        tasks = chains()
        pool.run(tasks[:4], folder=tmp_path / "run", by_round=True).results(60)
        again = pool.run(tasks, folder=tmp_path / "run", by_round=True)
        again.results(60)
        assert [record.status for record in again.records] == ["ok"] * 6
        stopped = pool.run(chains(fails=True), folder=tmp_path / "stopped", by_round=True)
        stopped.cancel()
        stopped.wait(60)
        assert len(stopped.records) == 6
        assert not stopped.progress.running


def test_rounds_that_do_not_fit_the_order_are_refused(tmp_path: Path) -> None:
    with GPUPool(engine=VirtualEngine(1, blocks=True)) as pool:
        with pytest.raises(ValueError, match=r"'a-1' of round 0 waits for 'a-0' of round 1"):
            pool.run(chains()[:2], folder=tmp_path / "a", by_round={"a-0": 1, "a-1": 0})
        with pytest.raises(ValueError, match=r"no round for task 'a-1'"):
            pool.run(chains()[:2], folder=tmp_path / "a", by_round={"a-0": 1})
    assert not (tmp_path / "a").exists()


def test_the_critical_path_goes_first_once_durations_are_known(tmp_path: Path) -> None:
    """Four short tasks and a chain of three: the chain alone decides when all is done."""

    def tasks() -> list[Task]:
        short = [Task(lasts, 4, name=f"short-{n}") for n in range(4)]
        chain = [Task(lasts, 3, name=f"c-{n}", after=f"c-{n - 1}" if n else ()) for n in range(3)]
        return [*short, *chain]

    engine = VirtualEngine(2, blocks=True)
    with GPUPool(engine=engine) as pool:
        pool.run(tasks(), folder=tmp_path / "first").results(60)
        before = engine.clock.now
        pool.run(tasks(), folder=tmp_path / "second").results(60)
        assert engine.clock.now - before == 13  # c-0 and the first of the short ones at once
        assert starts(engine)["c-0"] == before


def test_costs_that_are_stated_count_along_the_chain(tmp_path: Path) -> None:
    tasks = [
        Task(lasts, 4, name="alone", cost=4),
        Task(lasts, 1, name="begins", cost=1),
        Task(lasts, 6, name="ends", cost=6, after="begins"),
    ]
    engine = VirtualEngine(1, blocks=True)
    with GPUPool(engine=engine) as pool:
        pool.run(tasks, folder=tmp_path / "run").results(60)
    assert [name for _, _, _, name in engine.log] == ["begins", "ends", "alone"]
