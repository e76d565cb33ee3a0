"""The order that `after` asks for."""

import pytest

from mgpu_nb.runs.graph import Graph


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
