"""After every test: no process is left but the server, which lives as long as the kernel."""

import sys
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))


def living(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    from mgpu_nb.engines import local

    servers = {server.process.pid for server in local._servers.values()}
    left = [child for child in living(psutil.Process()) if child.pid not in servers]
    _, alive = psutil.wait_procs(left, timeout=5)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="session", autouse=True)
def server_ends():
    yield
    from mgpu_nb.engines import local

    local.stop_servers()
    assert not living(psutil.Process())
