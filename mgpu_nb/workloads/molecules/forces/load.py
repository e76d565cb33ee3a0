"""How a force field is loaded by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ....options import OneOf, check_value
from ...inputs import files_digest
from .base import ForceField

__all__ = ["FIELDS", "check_field", "load_field", "weights_digest"]

FIELDS = ("potential", "gfn2", "gfn1", "uma-s-1p1")
"""Names that `load_field` knows beside import paths: the default guide, the default judge, two others."""

Name = Annotated[str, OneOf(FIELDS, or_path="force field or an ASE calculator")]


def check_field(name: str, option: str = "mlff_model") -> None:
    """Check that a force field can be loaded, without loading it: in the caller's process, before a worker starts.

    Parameters
    ----------
    name
        As `load_field` takes it.
    option
        Name of the option that it comes from, for the message.

    Raises
    ------
    OptionTypeError, ValueError
        If the name is unknown, does not import, or stands for something that is not installed; the message says
        what to do.
    """
    if isinstance(name, str) and name.startswith("uma-"):
        from .fairchem_field import check_uma

        return check_uma(name, option)
    check_value(option, name, Name)
    if name in ("gfn1", "gfn2"):
        from .tblite_field import check_tblite

        check_tblite(name, option)
    elif ":" in name:
        from .ase_field import import_factory

        import_factory(name, option)
    return None


def load_field(name: str, device: str = "cpu") -> ForceField:
    """Load a force field.

    Parameters
    ----------
    name
        ``"potential"``, a fast torch potential for H, C, N, O and F, the default guide; ``"gfn2"``, the default
        judge, or ``"gfn1"``, tight binding by tblite; ``"uma-s-1p1"`` or another ``uma-`` model of fairchem, with
        the file of its weights after a colon if it is not to be fetched; or ``"package.module:name"`` of a force
        field, of an ASE calculator, or of a class or function that makes one, without arguments or with `device`.
    device
        torch's name of the device, for those that can use it; tblite computes on the CPU.

    Raises
    ------
    OptionTypeError, ValueError
        As `check_field`, and if what is loaded is no force field.
    """
    check_field(name)
    if name == "potential":
        from .potential import Potential

        return Potential(device=device)
    if name in ("gfn1", "gfn2"):
        from .tblite_field import TBLiteField

        return TBLiteField(name)
    if name.startswith("uma-"):
        from .fairchem_field import load_uma

        return load_uma(name, device)
    from .ase_field import load_path

    return load_path(name, device)


def weights_digest(name: str) -> str:
    """Digest of the file of weights that a force field reads; empty if it has none that is known.

    Parameters
    ----------
    name
        As `load_field` takes it.

    Raises
    ------
    FileNotFoundError
        If the name holds a file that does not exist.
    """
    if name == "potential":
        from . import potential

        return files_digest([potential.PARAMETERS])
    model, _, file = name.partition(":")
    return files_digest([Path(file).expanduser()]) if file and model.startswith("uma-") else ""
