"""The UMA models of fairchem (Wood et al., 2025): neither the package nor its gated weights come with this one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["UmaField", "check_uma", "load_uma"]

_PAGE = "https://huggingface.co/facebook/UMA"


def check_uma(name: str, option: str = "mlff_model") -> None:
    """Check that fairchem and the weights of a model can be had, without importing fairchem or loading anything.

    Parameters
    ----------
    name
        ``uma-s-1p1``, say, or ``uma-s-1p1:FILE`` with the file of its weights.
    option
        Name of the option that it comes from, for the message.

    Raises
    ------
    ValueError
        If something is missing: names each, and how to get it.
    """
    model, colon, file = name.partition(":")
    missing = []
    if not _installed("fairchem"):
        missing.append("the package fairchem-core (pip install fairchem-core)")
    if not _installed("ase"):
        missing.append('the package ase (pip install "mgpu-nb[molecules]")')
    if colon and not Path(file).expanduser().is_file():
        missing.append(f"the weights: {file!r} is no file; give the path of {model}.pt of {_PAGE}")
    elif not colon and not _fetchable(model):
        missing.append(
            f"its weights, which are gated: accept the licence at {_PAGE}, then log in (huggingface-cli login) or set "
            f"HF_TOKEN to a token that may read gated repositories; or download {model}.pt there and give "
            f"{option}='{model}:/path/to/{model}.pt'"
        )
    if missing:
        raise ValueError(f"{option}={name!r} needs {'; '.join(missing)}")


def _installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


def _fetchable(model: str) -> bool:
    """Whether the weights are in fairchem's cache, or a token is there to fetch them with."""
    if not _installed("huggingface_hub"):
        return False
    import os

    import huggingface_hub

    cache = os.environ.get("FAIRCHEM_CACHE_DIR") or Path("~/.cache/fairchem").expanduser()
    cached = huggingface_hub.try_to_load_from_cache(
        "facebook/UMA", f"checkpoints/{model}.pt", cache_dir=cache
    )
    return isinstance(cached, str) or huggingface_hub.get_token() is not None


def load_uma(name: str, device: str = "cpu") -> UmaField:
    """Load a UMA model for molecules (its task ``omol``).

    Parameters
    ----------
    name
        ``uma-s-1p1``, say, fetched from Hugging Face if need be, or ``uma-s-1p1:FILE``. fairchem unpickles a file of
        weights, and so may run what is in it: give one that comes from facebook/UMA.
    device
        ``cpu`` or ``cuda``; fairchem takes the first GPU that the process sees.

    Raises
    ------
    ValueError
        If something is missing, see `check_uma`, or fairchem cannot load it.
    """
    check_uma(name)
    model, _, file = name.partition(":")
    try:
        from fairchem.core import pretrained_mlip
        from fairchem.core.units.mlip_unit.api.inference import InferenceSettings

        # The default merges the experts for one composition and compiles; a batch has many compositions.
        settings = InferenceSettings(tf32=False, merge_mole=False, compile=False, external_graph_gen=False)
        unit = pretrained_mlip.get_predict_unit(
            str(Path(file).expanduser()) if file else model,
            inference_settings=settings,
            device=device.partition(":")[0],
        )
    except Exception as error:  # of fairchem, Hugging Face, requests or torch
        raise ValueError(
            f"fairchem cannot load {name!r} ({type(error).__name__}: {error}); its licence has to be accepted "
            f"at {_PAGE}, and fairchem-core be new enough to know the model"
        ) from error
    return UmaField(model, unit)


class UmaField:
    """A UMA model as a force field of neutral molecules; an odd number of electrons is a doublet, else a singlet.

    Parameters
    ----------
    name
        Name of the model.
    unit
        fairchem's MLIPPredictUnit.
    """

    def __init__(self, name: str, unit: Any) -> None:
        self.name = name
        self.unit = unit

    def forces(
        self, numbers: NDArray[np.int64], positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Energy in eV and forces in eV/A of one molecule, see `ForceField`."""
        energy, forces = self._predict([(numbers, positions)])
        return float(energy[0]), forces.cpu().numpy()

    def batch(self, numbers: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies in eV and forces in eV/A of many molecules, see `BatchedForceField`."""
        mask = numbers > 0
        on_host, atoms = numbers.cpu().numpy(), mask.cpu().numpy()
        coordinates = positions.detach().double().cpu().numpy()
        energy, flat = self._predict(
            [(row[has], xyz[has]) for row, xyz, has in zip(on_host, coordinates, atoms, strict=True)]
        )
        forces = torch.zeros(positions.shape, dtype=torch.float64, device=positions.device)
        forces[mask] = flat.to(forces)
        return energy.to(forces), forces

    def _predict(
        self, molecules: list[tuple[NDArray[np.int64], NDArray[np.float64]]]
    ) -> tuple[Tensor, Tensor]:
        """Energies [B], and forces [atoms of all, 3]."""
        from ase import Atoms
        from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch

        data = []
        for numbers, positions in molecules:
            atoms = Atoms(numbers, positions)
            atoms.info.update(charge=0, spin=1 + int(numbers.sum()) % 2)
            # Charge and multiplicity are read only where they are asked for by name; both are 0 otherwise.
            data.append(AtomicData.from_ase(atoms, task_name="omol", r_data_keys=["spin", "charge"]))
        predicted = self.unit.predict(atomicdata_list_to_batch(data))
        return predicted["energy"].detach().reshape(-1), predicted["forces"].detach().reshape(-1, 3)
