"""A single point of tight binding by tblite, and the process that computes many of them with one thread.

Imports neither torch nor what does: a process of these starts in a third of a second.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from typing import IO

import numpy as np
from numpy.typing import NDArray

__all__ = ["METHODS", "main", "read_answer", "single_point", "write_question"]

METHODS = {"gfn2": "GFN2-xTB", "gfn1": "GFN1-xTB"}
# CODATA 2018, the values that tblite has inside (Tiesinga et al., 2021).
BOHR = 0.529177210903
"""Bohr radius in A."""
HARTREE = 27.211386245988
"""Hartree energy in eV."""

_PR_SET_PDEATHSIG = 1
_LENGTH = struct.Struct("<q")  # atoms of a question or an answer; negative: bytes of what failed


def single_point(
    name: str, numbers: NDArray[np.int64], positions: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Energy in eV and forces in eV/A of a neutral molecule, a doublet if its electrons are odd, else a singlet.

    Raises
    ------
    RuntimeError
        If the electrons do not converge, atoms coincide, or an element is unknown.
    """
    from tblite.interface import Calculator

    calculator = Calculator(METHODS[name], numbers, positions / BOHR, uhf=int(numbers.sum()) % 2)
    calculator.set("verbosity", 0)
    result = calculator.singlepoint()
    return float(result["energy"]) * HARTREE, -result["gradient"] * (HARTREE / BOHR)


def main() -> None:
    """Answer questions on stdin until it closes. Arguments: name of the method, process that owns this one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != int(sys.argv[2]):  # it died before that
            return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter interrupts the whole group; the owner decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints gets among the answers
    while (question := _read_question(sys.stdin.buffer)) is not None:
        try:
            energy, forces = single_point(sys.argv[1], *question)
            answer = _LENGTH.pack(len(forces)) + struct.pack("<d", energy) + forces.tobytes()
        except Exception as error:  # whatever it is, it is the answer
            text = f"{type(error).__name__}: {error}".encode()
            answer = _LENGTH.pack(-len(text)) + text
        answers.write(answer)
        answers.flush()


def write_question(to: IO[bytes], numbers: NDArray[np.int64], positions: NDArray[np.float64]) -> None:
    """Ask a process for a molecule."""
    to.write(_LENGTH.pack(len(numbers)) + numbers.tobytes() + positions.tobytes())
    to.flush()


def _read_question(source: IO[bytes]) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    if len(head := source.read(_LENGTH.size)) < _LENGTH.size:
        return None
    (atoms,) = _LENGTH.unpack(head)
    if len(body := source.read(32 * atoms)) < 32 * atoms:
        return None
    positions = np.frombuffer(body, np.float64, offset=8 * atoms).reshape(atoms, 3)
    return np.frombuffer(body, np.int64, atoms), positions


def read_answer(source: IO[bytes]) -> tuple[float, NDArray[np.float64]] | str:
    """Energy and forces, or what failed.

    Raises
    ------
    EOFError
        If the process has ended.
    """
    head = source.read(_LENGTH.size)
    (atoms,) = _LENGTH.unpack(head) if len(head) == _LENGTH.size else (0,)
    size = -atoms if atoms < 0 else 8 + 24 * atoms
    body = source.read(size) if atoms else b""
    if not atoms or len(body) < size:
        raise EOFError
    if atoms < 0:
        return body.decode()
    return struct.unpack("<d", body[:8])[0], np.frombuffer(body, np.float64, offset=8).reshape(atoms, 3)
