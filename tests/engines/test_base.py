"""How an engine is found by its name, among ours and those of other packages."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from outside import Site

from mgpu_nb import GPUPool
from mgpu_nb.engines.base import ENGINES, GROUP, make_engine
from mgpu_nb.engines.local import LocalEngine

ENGINE = """
class Engine:
    def __init__(self, **options):
        self.options = options
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs packages with engines for this process."""
    site = Site(tmp_path)
    monkeypatch.syspath_prepend(site.path)

    def add(distribution: str, points: dict[str, str], **modules: str) -> None:
        site.add(distribution, {GROUP: points}, **modules)

    return add


def test_the_engines_of_the_table_are_made_with_their_options() -> None:
    for name in ENGINES:
        engine = make_engine(name, preload=["json"], start_method="spawn", env={"A": "b"})
        assert isinstance(engine, LocalEngine)
        assert engine.preload[-1] == "json"
        assert (engine.method, engine.env) == ("spawn", {"A": "b"})


@pytest.mark.parametrize(("name", "nearest"), [("locla", "local"), ("remot_lab", "remote_lab")])
def test_an_unknown_name_gives_the_nearest(outside: Callable[..., None], name: str, nearest: str) -> None:
    outside("lab", {"remote_lab": "lab_engine:Engine"}, lab_engine=ENGINE)
    text = f"engine must be one of local, remote_lab, got '{name}'; did you mean '{nearest}'?"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        GPUPool(engine=name)


def test_an_entry_point_adds_an_engine(outside: Callable[..., None]) -> None:
    outside("lab", {"remote_lab": "lab_engine:Engine"}, lab_engine=ENGINE)
    engine = make_engine("remote_lab", preload=["json"], start_method="fork", env={"A": "b"})
    assert type(engine).__module__ == "lab_engine"
    assert vars(engine)["options"] == {"preload": ("json",), "start_method": "fork", "env": {"A": "b"}}


@pytest.mark.parametrize(
    ("value", "source", "reason"),
    [
        ("weeds_engine:Engine", "import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("weeds_engine:Engine", "raise RuntimeError('licence')\n", "RuntimeError: licence"),
        ("weeds_engine:Egine", ENGINE, "AttributeError: .*Egine"),
    ],
)  # fmt: skip
def test_a_broken_entry_point_names_its_distribution(
    outside: Callable[..., None], monkeypatch: pytest.MonkeyPatch, value: str, source: str, reason: str
) -> None:
    monkeypatch.delitem(sys.modules, "weeds_engine", raising=False)
    outside("weeds", {"weedy": value}, weeds_engine=source)
    with pytest.raises(ValueError, match=f"^engine 'weedy' of weeds cannot be made: {reason}"):
        GPUPool(engine="weedy")
    assert isinstance(make_engine("local"), LocalEngine)  # the others work


def test_our_names_are_ours(outside: Callable[..., None]) -> None:
    outside("twins", {"local": "no_such_module:Engine"})
    assert isinstance(make_engine("local"), LocalEngine)
