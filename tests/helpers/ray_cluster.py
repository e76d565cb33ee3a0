"""A Ray cluster of this machine for tests: a head and two nodes of one core each, none of them a child of ours."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}


class RayCluster:
    """Up when it is made, gone after `stop`, or with this process."""

    def __init__(self) -> None:
        environ = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        environ.pop("RAY_ADDRESS", None)
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environ,
        )
        self._process.wait()  # its child is nobody's
        self.address: str = self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def _ask(self, *words: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        return self._read()

    def workers(self) -> list[str]:
        """Ids of the nodes beside the head."""
        ids: list[str] = self._ask("workers")
        return ids

    def add(self) -> None:
        """Add a node."""
        self._ask("add")

    def remove(self, node: str) -> None:
        """Kill a node."""
        self._ask("remove", node)

    def stop(self) -> None:
        """End all nodes."""
        with contextlib.suppress(OSError):
            self._ask("stop")
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def ray_here() -> Iterator[RayCluster]:
    """A Ray cluster; skips the test where Ray is not installed."""
    pytest.importorskip("ray", reason="Ray is not installed here: pip install 'mgpu_nb[ray]'")
    cluster = RayCluster()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        try:
            yield cluster
        finally:
            cluster.stop()


def _main() -> None:
    if os.fork():
        os._exit(0)
    os.setsid()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # of Ray
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short, for names of sockets
    # It writes its address there, not over that of a cluster of this machine, and makes no folder for it.
    os.environ["RAY_TMPDIR"] = folder
    (Path(folder) / "ray").mkdir()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "temp_dir": folder})
    try:
        for _ in range(2):
            cluster.add_node(**NODE)
        print(json.dumps(cluster.address), file=out, flush=True)
        for line in sys.stdin:
            what, *words = line.split()
            answer: Any = None
            if what == "workers":
                answer = [node.node_id for node in cluster.worker_nodes]
            elif what == "add":
                cluster.add_node(**NODE)
            elif what == "remove":
                (node,) = [node for node in cluster.worker_nodes if node.node_id == words[0]]
                cluster.remove_node(node, allow_graceful=False)
            elif what == "stop":
                break
            print(json.dumps(answer), file=out, flush=True)
    finally:
        with contextlib.suppress(Exception):
            cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(None), file=out, flush=True)


if __name__ == "__main__":
    _main()
