"""Tasks are checked when they are made."""

import dataclasses
import functools
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest

from mgpu_nb import Record, Task
from mgpu_nb.tasks import check_name, derive_seed, import_path


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cost": -1}, "finite number"), ({"cost": float("nan")}, "finite number"), ({"cost": "1"}, "finite number"),
        ({"memory": 0}, "integer >= 1 or None"), ({"memory": 1.5}, "integer >= 1 or None"),
        ({"devices": 0}, "integer >= 1, got 0"), ({"devices": True}, "integer >= 1, got True"),
        ({"timeout": 0}, "number > 0 or None"), ({"retries": -1}, "integer >= 0, got -1"),
        ({"seed": -1}, "integer >= 0 and <= 9223372036854775807"), ({"seed": 2**63}, "got 9223372036854775808"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Task(abs, 1, **wrong)


def test_functions_and_names_that_cannot_be() -> None:
    with pytest.raises(TypeError, match="function or an import path"):
        Task(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"package\.module:function"):
        Task("math.sqrt", 4)
    with pytest.raises(TypeError, match=r"after\[0\] must be a string"):
        Task(abs, 1, after=[Task(abs, 1)])  # type: ignore[list-item]
    for name, error in (
        ("", ValueError),
        ("..", ValueError),
        ("a/b", ValueError),
        ("a\\b", ValueError),
        (3, TypeError),
    ):
        with pytest.raises(error, match="name must be"):
            check_name(name)


def test_a_task_is_frozen_and_knows_its_kind() -> None:
    task = Task(abs, -1, name="x", after="y")
    assert (task.kind, task.after, task.args) == ("builtins:abs", ("y",), (-1,))
    with pytest.raises(AttributeError):
        task.name = "z"  # type: ignore[misc]


def test_import_paths() -> None:
    assert import_path("os.path:join")("a", "b") == "a/b"
    for path in ("no_such_module:f", "os:no_such_name", "os.path:join.x"):
        with pytest.raises(ValueError, match="does not import"):
            import_path(path)


def test_seeds_follow_the_item_alone() -> None:
    seeds = [derive_seed(run, item) for run in range(20) for item in range(20)]
    assert len({*seeds}) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, 0) == 7689419447139100721  # for ever, or old runs could not be resumed


def test_a_partial_is_looked_through_and_nothing_else() -> None:
    class Proxy:
        depth = 0

        def __call__(self) -> None:
            pass

        @property
        def func(self) -> Any:
            assert self.depth < 1, "looked through what is no partial"
            proxy = Proxy()
            proxy.depth = self.depth + 1
            return proxy

    assert Task(functools.partial(abs, 1)).kind == "builtins:abs"
    assert Task(Proxy()).kind.endswith("Proxy")


@pytest.mark.parametrize(
    "wrong",
    [
        {"cost": float("inf")}, {"cost": True}, {"memory": True}, {"memory": -1}, {"devices": 1.0},
        {"timeout": float("nan")}, {"timeout": "3"}, {"timeout": -1}, {"retries": 1.0}, {"retries": True},
        {"seed": 0.0}, {"seed": True}, {"after": 5}, {"after": [5]}, {"after": [b"a"]}, {"name": 5},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_parameter_is_called_by_its_name(wrong: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        Task(abs, 1, **wrong)


def test_numbers_of_numpy_are_numbers() -> None:
    numbers: dict[str, Any] = {
        "cost": np.float32(2), "memory": np.int64(3), "devices": np.int8(1), "seed": np.uint64(4)
    }  # fmt: skip
    task = Task(abs, 1, timeout=0.5, **numbers)
    assert (task.cost, task.memory, task.devices, task.seed) == (2, 3, 1, 4)


@pytest.mark.parametrize("name", ["", " ", "\t\n", ".", "..", "a/b", "a\\b", "a\0b"])
def test_a_name_that_cannot_name_a_file_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="run must be"):
        check_name(name, "run")


@pytest.mark.parametrize("name", ["a", "grüße 1", "...", "lr=0.1,wd=0", "x" * 300])
def test_a_name_that_can_is_returned(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("path", ["no_such.module:f", "os:", "os.path", "os:path.no", ".relative:f"])
def test_a_path_that_does_not_import_is_shown_with_the_reason(path: str) -> None:
    with pytest.raises(ValueError, match="does not import"):
        import_path(path)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import no_such_thing",
            r"ModuleNotFoundError: No module named 'no_such_thing', in .*broken_module.py, line 2",
        ),
        ("raise RuntimeError('boom')", r"RuntimeError: boom, in .*broken_module.py, line 2"),
        ("def (:", r"SyntaxError: invalid syntax \(broken_module.py, line 2\)"),
        ("import sys; sys.exit(3)", r"SystemExit: 3, in .*broken_module.py, line 2"),
        ("import json; json.loads('{')", r"JSONDecodeError: .*, in .*broken_module.py, line 2"),
    ],
)
def test_a_module_that_raises_is_shown_with_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)
    (tmp_path / "broken_module.py").write_text(f"# a comment\n{code}\n")
    with pytest.raises(ValueError, match=rf"'broken_module:f' does not import \({words}\): mend the module"):
        import_path("broken_module:f")


def test_a_path_may_name_what_a_class_holds() -> None:
    assert import_path("collections:OrderedDict.fromkeys")("ab") == {"a": None, "b": None}


class Called:
    def __call__(self) -> Any:
        return 1


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (jobs.add, "jobs:add"),
        ("jobs:add", "jobs:add"),
        (functools.partial(functools.partial(jobs.add, 1), b=2), "jobs:add"),
        (Called(), f"{__name__}:Called"),
        (Called, f"{__name__}:Called"),
    ],
    ids=["function", "path", "partial", "object", "class"],
)
def test_kind_is_the_import_path(fn: Any, kind: str) -> None:
    assert Task(fn).kind == kind


def test_a_task_survives_pickling_and_stays_frozen() -> None:
    task = Task(jobs.add, 1, b=2, name="x", after=["y", "z"], seed=5)
    back = pickle.loads(pickle.dumps(task))
    assert back == task
    with pytest.raises(dataclasses.FrozenInstanceError):
        back.seed = 6


def test_a_record_is_a_table_in_a_notebook() -> None:
    record = Record(
        name="<b>", index=0, kind="m:f", status="ok", arguments={"lr": 0.1}, value={"loss": 0.25, "net": object()},
        seconds=1.5, device="cuda:1", peak_memory=3 * 2**29, metrics={"step": 7}, attempt=2, notes=("a & b",),
    )  # fmt: skip
    html = record._repr_html_()
    cells = re.findall(r">([^<>]+)</t[hd]>", html)
    assert cells == [
        "task", "&lt;b&gt;", "status", "ok", "lr", "0.1", "value: loss", "0.25", "value: net", "&lt;object&gt;",
        "reported: step", "7", "device", "cuda:1", "time", "1.50 s", "attempts", "2", "peak memory", "1.50 GiB",
        "notes", "a &amp; b",
    ]  # fmt: skip
    failed = Record(name="a", index=0, kind="m:f", status="error", error="ValueError: <no>")._repr_html_()
    assert '<span class="e">✗ error</span>' in failed
    assert "ValueError: &lt;no&gt;" in failed
    assert len(Record(name="a", index=0, kind="k", status="ok", value=["x" * 10**6])._repr_html_()) < 3_000
