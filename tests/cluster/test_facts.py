"""What an agent tells, and whom a pool takes."""

import json
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb.cluster.facts import LINK, Refused, check_facts, facts_of_this_node
from mgpu_nb.engines.protocol import PROTOCOL
from mgpu_nb.version import __version__


def facts(**changed: Any) -> dict[str, Any]:
    """Facts of this node as they come over the wire, some of them changed; `...` leaves one out."""
    found = {**facts_of_this_node("n2"), **changed}
    sent: dict[str, Any] = json.loads(json.dumps({k: v for k, v in found.items() if v is not ...}))
    return sent


def test_an_agent_of_the_same_installation_fits() -> None:
    assert check_facts(facts()) == ()


def test_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-03")
    monkeypatch.setenv("ODD", "\udcff")  # a byte that is no text
    found = facts_of_this_node()
    assert found["node"] == "gpu-03"
    assert found["slurm"] == {"job": "17", "node": "1"}
    assert (found["pid"], found["interpreter"]) == (os.getpid(), sys.executable)
    assert (found["link"], found["protocol"], found["version"]) == (LINK, PROTOCOL, __version__)
    assert found["python"] == platform.python_version()
    assert abs(found["time"] - time.time()) < 60
    assert found["cores"] >= 1
    assert found["path"] == [entry or str(Path.cwd()) for entry in sys.path]
    assert json.loads(json.dumps(found)) == found
    assert found["environment"] == dict(os.environ)
    monkeypatch.delenv("SLURMD_NODENAME")
    monkeypatch.setattr("socket.gethostname", lambda: "n7.cluster.example")
    assert facts_of_this_node()["node"] == "n7"
    assert facts_of_this_node()["hostname"] == "n7.cluster.example"


def minor_changed(version: str) -> str:
    first, second, *rest = version.split(".")
    return ".".join([first, str(int(second) + 1), *rest])


def test_another_minor_python_is_refused_and_it_is_said_why() -> None:
    with pytest.raises(Refused) as raised:
        check_facts(facts(python="3.10.4"))
    said = str(raised.value)
    assert said.startswith(f"node n2 has Python 3.10.4, this process {platform.python_version()}: functions")
    assert f"start the agent with the python of {sys.executable}" in said


@pytest.mark.parametrize("package", ["torch", "cloudpickle"])
def test_another_minor_version_of_what_pickles_is_refused(package: str) -> None:
    other = minor_changed(facts()[package])
    with pytest.raises(Refused, match=re.escape(f"node n2 has {package} {other}, this process")):
        check_facts(facts(**{package: other}))
    with pytest.raises(Refused, match=f"node n2 has {package} not at all"):
        check_facts(facts(**{package: ""}))


@pytest.mark.parametrize("key", ["link", "protocol"])
def test_another_protocol_is_refused(key: str) -> None:
    with pytest.raises(Refused, match=r"node n2 has mgpu_nb 9.9 .*do not understand each other"):
        check_facts(facts(**{key: 99, "version": "9.9"}))


def test_what_differs_and_does_no_harm_is_a_note() -> None:
    first, second = facts()["torch"].split("+")[0].split(".")[:2]
    notes = check_facts(facts(torch=f"{first}.{second}.99+cu99", version="9.9"))
    assert [note.partition(", this process")[0] for note in notes] == [
        "Node n2 has mgpu_nb 9.9",
        f"Node n2 has torch {first}.{second}.99+cu99",
    ]
    major, minor = sys.version_info[:2]
    assert len(check_facts(facts(python=f"{major}.{minor}.99"))) == 1


@pytest.mark.parametrize("key", list(facts_of_this_node()))
def test_what_is_missing_or_of_another_type_is_refused(key: str) -> None:
    for wrong in (..., None, True, [1] if key != "path" else "text"):
        with pytest.raises(Refused, match=f"does not tell its '{key}'"):
            check_facts(facts(**{key: wrong}))


@pytest.mark.parametrize(
    "changed", [{"path": [1]}, {"environment": {"A": 1}}, {"slurm": {"job": None}}, {"slurm": {"job": []}}]
)
def test_parts_of_another_type_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="malformed"):
        check_facts(facts(**changed))


@pytest.mark.parametrize("name", ["", "-x", "a b", "a\n", "a/b", "a" * 254, "\x1b[31m", "\u00e9"])
def test_what_is_no_name_of_a_node_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="no name of a node") as raised:
        check_facts(facts(node=name))
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("name", ["n1", "gpu-03.cluster.example", "a_b", "10.0.0.7", "N"])
def test_names_of_nodes(name: str) -> None:
    assert check_facts(facts(node=name)) == ()
