"""What an agent tells of its node, and whether it fits the pool."""

from __future__ import annotations

import os
import platform
import re
import socket
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Any

from ..engines.environment import import_path
from ..engines.protocol import PROTOCOL
from ..hardware.host import cores
from ..version import __version__

__all__ = ["LINK", "Refused", "check_facts", "facts_of_this_node"]

LINK = 2
"""Version of the handshake and of `link`: another number for a change by which one side misreads the other."""

_TYPES: dict[str, type | tuple[type, ...]] = {
    "link": int, "protocol": int, "version": str, "python": str, "torch": str, "cloudpickle": str,
    "node": str, "hostname": str, "pid": int, "cores": int, "time": (float, int), "interpreter": str,
    "path": list, "environment": dict, "slurm": dict,
}  # fmt: skip
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,252}")


_COMPARED = {"version": "mgpu_nb", "python": "Python", "torch": "torch", "cloudpickle": "cloudpickle"}


class Refused(Exception):
    """The pool does not take an agent; the message says why, and what to do."""


def facts_of_this_node(name: str | None = None) -> dict[str, Any]:
    """What an agent tells of its node and of itself; plain data, for JSON.

    Parameters
    ----------
    name
        Name of the node in records and panels. By default that which SLURM gives it, else its short host name.

    Returns
    -------
    dict
        ``link``, ``protocol`` and ``version`` (of this package), ``python``, ``torch`` and ``cloudpickle`` (versions,
        empty for none), ``node``, ``hostname``, ``pid``, ``cores``, ``time`` (seconds since the epoch), ``interpreter``
        (its path), ``path`` (``sys.path``), ``environment`` (its variables) and ``slurm`` (``job`` and ``node``, where
        it runs in a job).
    """
    host = socket.gethostname()
    slurm = {"job": "SLURM_JOB_ID", "node": "SLURM_NODEID"}
    return {
        "link": LINK,
        "protocol": PROTOCOL,
        "version": __version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "cloudpickle": _version("cloudpickle"),
        "node": name or os.environ.get("SLURMD_NODENAME") or host.partition(".")[0],
        "hostname": host,
        "pid": os.getpid(),
        "cores": cores(),
        "time": time.time(),
        "interpreter": sys.executable,
        "path": import_path(),
        "environment": dict(os.environ),
        "slurm": {key: os.environ[name] for key, name in slurm.items() if name in os.environ},
    }


def check_facts(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Check that an agent fits this process; return what differs and does no harm, as sentences.

    Raises
    ------
    Refused
        If either would misread the other.
    """
    ours = f"start it with the mgpu_nb of this process, {__version__}"
    for name, kind in _TYPES.items():
        if not isinstance(facts.get(name), kind) or isinstance(facts[name], bool):
            raise Refused(f"the agent does not tell its {name!r}: {ours}")
    texts = [*facts["path"], *facts["environment"].values(), *facts["slurm"].values()]
    if not all(isinstance(text, str) for text in texts):
        raise Refused(f"what the agent tells is malformed: {ours}")
    node = facts["node"]
    if not _NODE.fullmatch(node):
        raise Refused(f"{node[:80]!r} is no name of a node: letters, digits, '-', '_' and '.', please")
    own = facts_of_this_node()
    same = f"start the agent with the python of {sys.executable}, or one of the same versions"
    for key, what in (("link", "link"), ("protocol", "worker")):
        if facts[key] != own[key]:
            raise Refused(
                f"node {node} has mgpu_nb {facts['version']} ({what} protocol {facts[key]}), this process "
                f"{__version__} ({own[key]}), and they do not understand each other: {same}"
            )
    if _minor(facts["python"]) != _minor(own["python"]):
        raise Refused(
            f"node {node} has Python {facts['python']}, this process {own['python']}: functions travel as bytecode, "
            f"which needs the same minor version; {same}"
        )
    for package, why in (
        ("torch", "tensors travel as its pickles"),
        ("cloudpickle", "functions travel as its pickles"),
    ):
        if _minor(facts[package]) != _minor(own[package]):
            raise Refused(
                f"node {node} has {package} {facts[package] or 'not at all'}, this process "
                f"{own[package] or 'none'}: {why}, which needs the same minor version; {same}"
            )
    return tuple(
        f"Node {node} has {what} {facts[key]}, this process {own[key]}."
        for key, what in _COMPARED.items()
        if facts[key] != own[key]
    )


def _version(package: str) -> str:
    try:
        return version_of(package)
    except PackageNotFoundError:
        return ""


def _minor(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]
