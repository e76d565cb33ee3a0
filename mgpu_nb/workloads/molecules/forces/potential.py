"""The default guide: a fast reactive potential for H, C, N, O and F, fitted to GFN1-xTB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ....output import one_line
from ..molecule import ALPHABET
from .moments import INDEX, MomentNet

__all__ = ["PARAMETERS", "Potential"]

PARAMETERS = Path(__file__).parent / "potential.safetensors"
"""The parameters that `fit` made with its defaults."""


class Potential:
    """Energies and forces of molecules, whole or half formed, by `MomentNet`.

    It stands in for GFN1-xTB where a molecule is drawn: fitted to forces on molecules displaced by up to 0.45 A and in
    states of diffusion. Overlapping atoms push each other apart with a bounded force. The zero of the energy is
    arbitrary for each element.

    Parameters
    ----------
    path
        Parameters, a file of `fit`.
    device
        torch's name of the device.

    Raises
    ------
    ValueError
        If the file cannot be read or holds something else.
    """

    name = "potential"

    def __init__(self, path: str | Path = PARAMETERS, device: str = "cpu") -> None:
        self.device = torch.device(device)
        with torch.inference_mode(False):
            self._nets = {
                dtype: _read(Path(path).expanduser()).to(self.device, dtype)
                for dtype in (torch.float32, torch.float64)
            }
        # By atomic number; the last two are for numbers beyond the table, and for -1.
        known = [kind if kind or number == 0 else -1 for number, kind in enumerate(INDEX)]
        self._kinds = torch.tensor([*known, -1, -1], device=self.device)

    def forces(
        self, numbers: NDArray[np.int64], positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Energy in eV and forces in eV/A of one molecule, see `ForceField`.

        Raises
        ------
        ValueError
            If an element is none of H, C, N, O and F.
        """
        energy, forces = self.batch(
            torch.as_tensor(np.asarray(numbers, dtype=np.int64))[None],
            torch.as_tensor(np.asarray(positions, dtype=np.float64))[None],
        )
        return float(energy[0]), forces[0].cpu().numpy()

    def batch(self, numbers: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies in eV and forces in eV/A of many molecules, of the type of the positions, see `BatchedForceField`.

        With one thread of a CPU what a molecule gets is the same, bit for bit, in any batch, with any number of places
        for no atom. The energies can be differentiated by the positions, once.

        Raises
        ------
        ValueError
            If an element is none of H, C, N, O and F.
        """
        kinds = self._known(numbers.to(self.device))
        net = self._nets.get(positions.dtype, self._nets[torch.float32])
        found: tuple[Tensor, Tensor] = _Evaluation.apply(positions, kinds, net)  # type: ignore[no-untyped-call]
        return found

    def _known(self, numbers: Tensor) -> Tensor:
        """Places of the elements in the tables of the network."""
        kinds = self._kinds[numbers.clamp(-1, len(INDEX))]
        if bool((kinds < 0).any()):
            unknown = kinds < 0
            others = ", ".join(_symbol(number) for number in sorted(set(numbers[unknown].tolist())))
            raise ValueError(
                f"the potential knows {', '.join(ALPHABET)}, not {others}; take another force field, gfn2 say"
            )
        return kinds


class _Evaluation(torch.autograd.Function):
    """Energies [B], with their derivative by the positions, and forces [B, N, 3], which have none."""

    @staticmethod
    def forward(ctx: Any, positions: Tensor, kinds: Tensor, net: MomentNet) -> tuple[Tensor, Tensor]:
        at = positions.detach().to(net.centers)
        energy, forces = (value.to(positions) for value in net(kinds, at))
        ctx.mark_non_differentiable(forces)
        ctx.save_for_backward(forces)
        return energy, forces

    @staticmethod
    def backward(ctx: Any, energy: Tensor, _forces: Tensor) -> tuple[Tensor, None, None]:
        (forces,) = ctx.saved_tensors
        return -forces * energy[:, None, None], None, None


def _read(path: Path) -> MomentNet:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        net = MomentNet(
            bumps=len(state["centers"]),
            weights=state["element"].shape[1] // len(state["centers"]),
            channels=state["mix.0"].shape[1],
            hidden=state["layers.1"].shape[1],
        )
        net.load_state_dict(state)
        if not all(bool(value.isfinite().all()) for value in state.values()):
            raise ValueError("they are not finite numbers")  # noqa: TRY301
    except (OSError, SafetensorError, KeyError, IndexError, RuntimeError, ValueError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else one_line(str(error))
        raise ValueError(
            f"{path} holds no parameters of the potential: {why}; give a file that `mgpu-nb molecules fit` has written"
        ) from error
    return net.eval().requires_grad_(False)


def _symbol(number: int) -> str:
    """Symbol of an element; its number where ASE is not installed, or there is none."""
    try:
        from ase.data import chemical_symbols

        return str(chemical_symbols[number]) if number > 0 else f"the atomic number {number}"
    except (ImportError, IndexError):
        return f"the atomic number {number}"
