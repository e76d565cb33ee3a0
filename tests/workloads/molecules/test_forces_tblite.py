"""Tight binding: with one thread each, here or in processes that end with their owner."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from mgpu_nb.workloads.molecules.forces.base import evaluate
from mgpu_nb.workloads.molecules.forces.tblite_field import TBLiteField
from mgpu_nb.workloads.molecules.forces.tight_binding import BOHR, HARTREE

WATER = torch.tensor([[0.0, 0.0, 0.12], [0.0, 0.78, -0.48], [0.0, -0.78, -0.48]], dtype=torch.float64)


def waters(count: int) -> tuple[Tensor, Tensor]:
    """Water, displaced, and in every tenth place two atoms in one."""
    draws = torch.Generator().manual_seed(0)
    positions = WATER + 0.05 * torch.randn(count, 3, 3, dtype=torch.float64, generator=draws)
    positions[9::10, 1] = positions[9::10, 2]
    return torch.tensor([8, 1, 1]).repeat(count, 1), positions


@pytest.fixture
def two() -> Iterator[TBLiteField]:
    field = TBLiteField("gfn2", processes=2)
    yield field
    field.close()


def test_units_are_those_of_codata() -> None:
    from ase.units import Bohr, Hartree

    assert abs(BOHR / Bohr - 1) < 1e-7
    assert abs(HARTREE / Hartree - 1) < 1e-7


def test_an_odd_number_of_electrons_is_a_doublet() -> None:
    from tblite.interface import Calculator

    numbers, positions = np.array([6, 1, 1, 1]), np.zeros((4, 3))
    angles = np.arange(3) * 2 * np.pi / 3
    positions[1:, 0], positions[1:, 1] = 1.08 * np.cos(angles), 1.08 * np.sin(angles)
    doublet = Calculator("GFN2-xTB", numbers, positions / BOHR, uhf=1)
    doublet.set("verbosity", 0)
    assert TBLiteField().forces(numbers, positions)[0] == doublet.singlepoint()["energy"] * HARTREE


def test_what_does_not_converge_fails_and_says_nothing_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    found = evaluate(TBLiteField(), *waters(10))
    assert found.ok.tolist() == [True] * 9 + [False]
    assert "Too close" in str(found.error)
    assert capfd.readouterr() == ("", "")


def test_threads_of_others_are_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        TBLiteField().batch(*waters(2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_a_call_takes_one_thread() -> None:
    """In a process of its own, whose OpenMP was not told how many threads there are."""
    code = (
        "import os, numpy as np\n"
        "from mgpu_nb.workloads.molecules.forces.tblite_field import TBLiteField\n"
        "field, before = TBLiteField(), None\n"
        "for n in range(3):\n"
        "    before = len(os.listdir('/proc/self/task')) if n == 1 else before\n"
        "    field.forces(np.array([8, 1, 1]), np.array([[0, 0, .12], [0, .78, -.48], [0, -.78, -.48]]))\n"
        "from threadpoolctl import threadpool_info\n"
        "assert len(os.listdir('/proc/self/task')) == before\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    environment |= {"OMP_NUM_THREADS": "4", "PYTHONPATH": os.pathsep.join(sys.path)}
    if sys.platform != "linux":
        pytest.skip("threads are counted in /proc")
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


@pytest.mark.slow
def test_processes_give_the_same_bits_in_order(two: TBLiteField) -> None:
    numbers, positions = waters(120)
    here = evaluate(TBLiteField("gfn2", processes=1), numbers, positions)
    assert here.failed == 12
    for _ in range(2):
        found = evaluate(two, numbers, positions)
        assert len(psutil.Process().children()) >= 2
        assert torch.equal(found.ok, here.ok)
        assert torch.equal(found.energy[found.ok], here.energy[found.ok])
        assert torch.equal(found.forces, here.forces)
        assert "Too close" in str(found.error)


def test_a_few_molecules_start_no_process(two: TBLiteField) -> None:
    evaluate(two, *waters(20))
    assert two._pool.processes == []


@pytest.mark.slow
def test_a_process_that_dies_fails_one_molecule(two: TBLiteField) -> None:
    two.batch(*waters(120))
    for process in two._pool.processes:
        os.kill(process.pid, signal.SIGSTOP)  # each has one question when it is killed
    for process in two._pool.processes:
        os.kill(process.pid, signal.SIGKILL)
    numbers, positions = waters(8)
    found = evaluate(two, numbers, positions)
    assert found.failed <= 2
    assert evaluate(two, numbers, positions).failed == 0


@pytest.mark.slow
def test_processes_end_with_the_field() -> None:
    field = TBLiteField("gfn2", processes=2)
    field.batch(*waters(120))
    children = [psutil.Process(process.pid) for process in field._pool.processes]
    assert len(children) == 2
    del field
    assert not psutil.wait_procs(children, timeout=60)[1]


@pytest.mark.slow
def test_processes_end_with_an_owner_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import time, torch\n"
        "from test_forces_tblite import waters\n"
        "from mgpu_nb.workloads.molecules.forces.tblite_field import TBLiteField\n"
        "field = TBLiteField('gfn2', processes=2)\n"
        "field.batch(*waters(120))\n"
        "print(*[process.pid for process in field._pool.processes], flush=True)\n"
        "time.sleep(600)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as owner:
        assert owner.stdout is not None
        children = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
        assert len(children) == 2
        owner.kill()
    end = time.monotonic() + 60
    while any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_a_fork_leaves_the_processes_of_its_parent_alone(two: TBLiteField) -> None:
    two.batch(*waters(120))
    kept = [process.pid for process in two._pool.processes]
    if (pid := os.fork()) == 0:
        two.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert evaluate(two, *waters(8)).failed == 0
    assert [process.pid for process in two._pool.processes] == kept
