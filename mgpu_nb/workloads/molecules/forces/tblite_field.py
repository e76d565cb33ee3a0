"""GFN1-xTB and GFN2-xTB, extended tight binding, by tblite: no weights to fetch, milliseconds a molecule."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import weakref
from collections.abc import Sequence
from typing import IO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .base import check_extra
from .tight_binding import METHODS, read_answer, single_point, write_question

__all__ = ["TBLiteField", "check_tblite"]

Molecules = Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]]
Answer = tuple[float, NDArray[np.float64]] | str

_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv.pop()); "
    "from mgpu_nb.workloads.molecules.forces.tight_binding import main; main()"
)
_ENOUGH = 100  # molecules after which processes have paid for their start


def check_tblite(name: str, option: str = "mlff_model") -> None:
    """Check that tblite is installed.

    Raises
    ------
    ValueError
        If it is not; the message says how to get it.
    """
    check_extra("tblite", f"{option}={name!r}")


class TBLiteField:
    """Tight binding of neutral molecules: one that has an odd number of electrons is a doublet, others are singlets.

    A large batch goes to processes with one thread each, as many as this process has threads of torch: in a worker of
    a pool its share of the cores. They end with the field, and with the process that owns it, however that ends. One
    molecule, and any batch where there is one thread, is computed here. The results are the same.

    Parameters
    ----------
    name
        ``"gfn2"`` (Bannwarth, Ehlert, Grimme, 2019) or ``"gfn1"`` (Grimme, Bannwarth, Shushkov, 2017).
    processes
        Number of processes; by default as above.

    Attributes
    ----------
    error
        What the first molecule of the last batch said that failed; None if none did.
    """

    def __init__(self, name: str = "gfn2", processes: int | None = None) -> None:
        import tblite.interface  # noqa: F401  # its OpenMP has to be there when threads are counted
        from threadpoolctl import ThreadpoolController

        if name not in METHODS:
            raise ValueError(f"name must be one of {', '.join(METHODS)}, got {name!r}")
        self.name = name
        self.processes = processes
        self.error: str | None = None
        self._asked = 0
        self._threads = ThreadpoolController()
        self._pool = _Pool(name)
        weakref.finalize(self, self._pool.close)

    def forces(
        self, numbers: NDArray[np.int64], positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Energy in eV and forces in eV/A of one molecule, see `ForceField`.

        Raises
        ------
        RuntimeError
            If the electrons do not converge, atoms coincide, or an element is unknown.
        """
        # With two threads a call takes up to a thousand times as long as with one. The count of OpenMP belongs to the
        # calling thread, so it is set for each call, and given back.
        with self._threads.limit(limits=1):
            return single_point(self.name, numbers, positions)

    def batch(self, numbers: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies in eV and forces in eV/A of many molecules, float64, see `BatchedForceField`."""
        mask = numbers > 0
        on_host, coordinates = numbers.cpu().numpy(), positions.detach().double().cpu().numpy()
        molecules = [
            (row[has], xyz[has])
            for row, xyz, has in zip(on_host, coordinates, mask.cpu().numpy(), strict=True)
        ]
        self._asked += len(molecules)
        processes = min(self._processes(), len(molecules))
        answers = (
            self._pool.ask(molecules, processes)
            if processes > 1 and self._asked >= _ENOUGH
            else [self._answer(molecule) for molecule in molecules]
        )
        self.error = next((answer for answer in answers if isinstance(answer, str)), None)
        energy = torch.full((len(molecules),), torch.nan, dtype=torch.float64)
        forces = torch.zeros(positions.shape, dtype=torch.float64)
        atoms = mask.cpu()
        for n, answer in enumerate(answers):
            if not isinstance(answer, str):
                energy[n] = answer[0]
                forces[n, atoms[n]] = torch.from_numpy(answer[1].copy())
        return energy.to(positions.device), forces.to(positions.device)

    def close(self) -> None:
        """End the processes; a later batch starts new ones."""
        self._pool.close()

    def _answer(self, molecule: tuple[NDArray[np.int64], NDArray[np.float64]]) -> Answer:
        try:
            return self.forces(*molecule)
        except RuntimeError as error:
            return f"{type(error).__name__}: {error}"

    def _processes(self) -> int:
        if self.processes is not None:
            return self.processes
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(torch.get_num_threads(), cores)


class _Pool:
    """Processes of `tight_binding.main`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.owner = os.getpid()
        self.processes: list[subprocess.Popen[bytes]] = []

    def ask(self, molecules: Molecules, processes: int) -> list[Answer]:
        """Answers in the order of the molecules; a process that dies fails the one it had."""
        if self.owner != os.getpid():  # a fork: the processes are those of its parent
            self.owner, self.processes = os.getpid(), []
        answers: list[Answer] = ["not asked"] * len(molecules)
        waiting = list(enumerate(molecules))[::-1]
        busy: dict[subprocess.Popen[bytes], int] = {}
        try:
            with selectors.DefaultSelector() as selector:
                while waiting or busy:
                    self._keep(processes)
                    for process in self.processes[:processes]:
                        if process not in busy and waiting:
                            busy[process], molecule = waiting.pop()
                            selector.register(cast(IO[bytes], process.stdout), selectors.EVENT_READ, process)
                            _send(process, molecule)
                    for key, _ in selector.select():
                        process = key.data
                        selector.unregister(key.fileobj)
                        answers[busy.pop(process)] = _receive(process)
        except BaseException:  # the rest of an answer would be taken for the next
            self.close()
            raise
        return answers

    def _keep(self, count: int) -> None:
        """Have so many living processes."""
        self.processes = [process for process in self.processes if process.poll() is None]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        while len(self.processes) < count:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", _BOOT, self.name, str(os.getpid()), json.dumps(sys.path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                )
            )

    def close(self) -> None:
        """End the processes, if they are this one's."""
        if self.owner == os.getpid():
            for process in self.processes:
                process.kill()
                process.communicate()
        self.processes = []


def _send(process: subprocess.Popen[bytes], molecule: tuple[NDArray[np.int64], NDArray[np.float64]]) -> None:
    try:
        write_question(cast(IO[bytes], process.stdin), *molecule)
    except BrokenPipeError:  # its end is read next
        return


def _receive(process: subprocess.Popen[bytes]) -> Answer:
    try:
        return read_answer(cast(IO[bytes], process.stdout))
    except EOFError:
        process.kill()
        return f"the process of tblite ended with {process.wait()}"
