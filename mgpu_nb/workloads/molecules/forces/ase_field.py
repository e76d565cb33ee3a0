"""Any calculator of ASE, or any force field, by its import path."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from ....signature import parameters, refusal
from ....tasks import import_path
from .base import ForceField, check_extra

__all__ = ["AseField", "import_factory", "load_path"]

_CALLED = (
    "it is called without arguments, or with device= if it takes that: "
    "give a function of your own that sets the others"
)


def import_factory(path: str, option: str = "mlff_model") -> Any:
    """What an import path ``package.module:name`` stands for.

    Raises
    ------
    ValueError
        If it does not import; the message names the option and the reason.
    """
    name = path.partition(":")[0]
    if name == "ase" or name.startswith("ase."):
        check_extra("ase", f"{option}={path!r}")
    try:
        found: Any = import_path(path)
    except ValueError as error:
        extra, cause = "", error.__cause__
        if isinstance(cause, ImportError) and (cause.name or name).partition(".")[0] in ("ase", "tblite"):
            extra = '; it comes with pip install "mgpu-nb[molecules]"'
        raise ValueError(f"{option}={error}{extra}") from error
    if not (callable(found) or _is_field(found) or _is_calculator(found)):
        raise ValueError(
            f"{option}={path!r} is a {type(found).__name__}; give an ASE calculator, a force field, or a class or "
            "function that makes one"
        )
    if _is_factory(found) and (reason := refusal(found, **_arguments(found))):
        raise ValueError(f"{option}={path!r} cannot be called ({reason}); {_CALLED}")
    return found


def load_path(path: str, device: str = "cpu", option: str = "mlff_model") -> ForceField:
    """Force field of an import path; see `load_field`.

    Raises
    ------
    ValueError
        If it does not import, raises when it is made, or is neither a force field nor a calculator.
    """
    found = made = import_factory(path, option)
    if _is_factory(found):
        try:
            made = found(**_arguments(found, device))
        except Exception as error:
            raise ValueError(
                f"{option}={path!r} could not be made ({type(error).__name__}: {error}); {_CALLED}"
            ) from error
    if _is_field(made):
        field: ForceField = made
        return field
    if not _is_calculator(made):
        raise ValueError(
            f"{option}={path!r} made a {type(made).__name__}, which is neither an ASE calculator "
            "(get_potential_energy, get_forces) nor a force field (name, forces(numbers, positions))"
        )
    check_extra("ase", f"{option}={path!r}")
    return AseField(made, path)


def _is_factory(found: Any) -> bool:
    return isinstance(found, type) or not (_is_field(found) or _is_calculator(found))


def _arguments(factory: Any, device: str = "cpu") -> dict[str, str]:
    """What a factory is called with: its device if that is a parameter by name.

    Many calculators swallow any keyword, and would fail on it later.
    """
    return {"device": device} if "device" in parameters(factory).keywords else {}


def _is_field(found: object) -> bool:
    return callable(getattr(found, "forces", None)) and isinstance(getattr(found, "name", None), str)


def _is_calculator(found: object) -> bool:
    return callable(getattr(found, "get_potential_energy", None)) and callable(
        getattr(found, "get_forces", None)
    )


class AseField:
    """A calculator of ASE; energies in eV and forces in eV/A, as ASE has them.

    Parameters
    ----------
    calculator
        The calculator, not used yet.
    name
        Name of the field.
    """

    def __init__(self, calculator: Any, name: str) -> None:
        self.name = name
        self.calculator = calculator
        self._threads = ThreadpoolController()

    def forces(
        self, numbers: NDArray[np.int64], positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Energy in eV and forces in eV/A of one molecule, see `ForceField`.

        Each call begins with the calculator as it was made: many start from what they found last (TBLite from its
        wave function), and the last digits would depend on the molecules before. Small matrices take one thread.
        """
        from ase import Atoms

        atoms = Atoms(numbers, positions)
        atoms.info.update(charge=0, spin=1 + int(numbers.sum()) % 2)  # those that ask know the multiplicity
        atoms.calc = copy.copy(self.calculator)
        if hasattr(atoms.calc, "reset"):
            atoms.calc.reset()
        with self._threads.limit(limits=1):
            forces = np.array(atoms.get_forces(), dtype=np.float64)
            return float(atoms.get_potential_energy()), forces
