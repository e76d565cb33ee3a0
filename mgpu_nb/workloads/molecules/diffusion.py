"""`Diffusion`: the denoising network of EDM with its schedule, its features and its loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from .egnn import EGNN
from .molecule import ALPHABET, NUMBERS
from .noise import Schedule

__all__ = ["FOCUSED", "Diffusion", "centred", "draw_noise"]

FOCUSED = 0.4
"""Share of 0 .. T, from 0 on, in which distances become those of bonds."""


class Diffusion(nn.Module):
    """An E(3)-equivariant diffusion model of molecules (EDM, Hoogeboom et al., 2022).

    A molecule is ``z = [x, h]``: positions with zero centre of mass, and features ``h = one_hot / h_scale``, with
    `charges` also the atomic number over `charge_scale`. The network gives the noise in
    ``z_t = alpha_t z + sigma_t eps``.

    Parameters
    ----------
    egnn
        The network, of as many features as h has and one more, the time.
    alphabet
        Symbols of the elements, in the order of the one-hot features.
    histogram
        Number of training molecules by number of atoms.
    schedule
        The noise by step.
    charges
        Whether h has the atomic number as well.
    h_scale, charge_scale
        What one-hot features and atomic numbers are divided by.

    Raises
    ------
    ValueError
        If the network has another number of features, an element is unknown, or the histogram or a divisor is none.
    """

    def __init__(
        self,
        egnn: EGNN,
        *,
        histogram: Mapping[int, int],
        schedule: Schedule,
        alphabet: tuple[str, ...] = ALPHABET,
        charges: bool = False,
        h_scale: float = 4.0,
        charge_scale: float = 10.0,
    ) -> None:
        super().__init__()
        self.alphabet, self.charges = tuple(alphabet), charges
        self.features = len(self.alphabet) + charges
        if egnn.embedding.in_features != self.features + 1:
            raise ValueError(
                f"the network has {egnn.embedding.in_features} features, and {len(self.alphabet)} elements"
                f"{', charges' if charges else ''} and the time need {self.features + 1}"
            )
        if unknown := [symbol for symbol in self.alphabet if symbol not in NUMBERS]:
            raise ValueError(f"elements {unknown} are not known here, only {', '.join(NUMBERS)}")
        if not histogram or min(histogram) < 1 or min(histogram.values()) < 0 or not any(histogram.values()):
            raise ValueError(
                f"histogram must be the number of molecules by number of atoms, got {dict(histogram)}"
            )
        if not all(math.isfinite(scale) and scale for scale in (h_scale, charge_scale)):
            raise ValueError(
                f"h_scale and charge_scale must be finite and not 0, got {h_scale} and {charge_scale}"
            )
        self.histogram = dict(sorted(histogram.items()))
        self.schedule = schedule
        self.h_scale, self.charge_scale = h_scale, charge_scale
        self.numbers = torch.tensor([NUMBERS[symbol] for symbol in self.alphabet])
        self.dynamics = nn.ModuleDict({"egnn": egnn})  # the name that it has in published state dicts

    @property
    def egnn(self) -> EGNN:
        """The network."""
        return cast(EGNN, self.dynamics["egnn"])

    def eps(self, x: Tensor, h: Tensor, t: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Noise in noisy molecules, as the network sees it.

        Parameters
        ----------
        x
            [B, N, 3] positions in angstrom with zero centre of mass, zero where masked.
        h
            [B, N, features], zero where masked.
        t
            [B] times: step / T, 0 data and 1 noise.
        mask
            [B, N], True where there is an atom.

        Returns
        -------
        tuple of Tensor
            Of positions [B, N, 3], with zero centre of mass, and of features [B, N, features]; zero where masked.
        """
        time = t.to(h.dtype)[:, None, None].expand(-1, h.shape[1], 1)
        atoms = mask[..., None]
        out, moved = self.egnn(torch.cat([h, time], dim=-1) * atoms, x, mask)
        return centred(moved - x, mask), out[..., :-1].float() * atoms

    def encode(self, numbers: Tensor) -> Tensor:
        """Features h [B, N, features] of atomic numbers [B, N]; zero where the number is 0, no atom.

        Raises
        ------
        ValueError
            If an atom is not in the alphabet.
        """
        known = self.numbers.to(numbers.device)
        one_hot = (numbers[..., None] == known).float()
        if bool((one_hot.sum(-1) != (numbers != 0)).any()):
            strange = sorted(set(numbers.unique().tolist()) - {0, *known.tolist()})
            raise ValueError(
                f"atomic numbers {strange} are not of the model's elements {', '.join(self.alphabet)}"
            )
        h = one_hot / self.h_scale
        return torch.cat([h, numbers[..., None] / self.charge_scale], dim=-1) if self.charges else h

    def loss(self, x: Tensor, numbers: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Squared error of the noise, by molecule [B], at steps and with noise drawn from `generator` on the CPU.

        Steps are stratified: each of B equal parts of 0 .. T has one.

        Parameters
        ----------
        x
            [B, N, 3] positions in angstrom.
        numbers
            [B, N] atomic numbers, 0 where masked.
        mask
            [B, N], True where there is an atom.
        generator
            Generator of the CPU.
        """
        step, noise_x, noise_h = draw_noise(len(x), x.shape[1], self.features, self.schedule, generator)
        device = x.device
        return self.loss_at(x, numbers, mask, step.to(device), noise_x.to(device), noise_h.to(device))

    def loss_at(
        self, x: Tensor, numbers: Tensor, mask: Tensor, step: Tensor, noise_x: Tensor, noise_h: Tensor
    ) -> Tensor:
        """Squared error of the noise, by molecule [B]: mean over its atoms, coordinates and features.

        Parameters
        ----------
        x, numbers, mask
            As `loss` takes them.
        step
            [B] steps, 0 .. T.
        noise_x, noise_h
            [B, N, 3] and [B, N, features], normal; the centre of mass is taken away here.
        """
        atoms = mask[..., None].float()
        noise_x, noise_h = centred(noise_x, mask), noise_h * atoms
        alpha = self.schedule.alpha(step).float()[:, None, None]
        sigma = self.schedule.sigma(step).float()[:, None, None]
        noisy_x = alpha * centred(x, mask) + sigma * noise_x
        noisy_h = alpha * self.encode(numbers) + sigma * noise_h
        eps_x, eps_h = self.eps(noisy_x, noisy_h, step.float() / self.schedule.steps, mask)
        error = (eps_x - noise_x).square().sum(dim=(1, 2)) + (eps_h - noise_h).square().sum(dim=(1, 2))
        return error / (mask.sum(dim=1) * (3 + self.features))


def draw_noise(
    batch: int,
    atoms: int,
    features: int,
    schedule: Schedule,
    generator: torch.Generator,
    focus: float = FOCUSED,
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps [B], stratified over 0 .. T, and normal noise [B, N, 3] and [B, N, features], on the CPU.

    A share `focus` of the steps, in (0, 1), is of the first `FOCUSED` of 0 .. T.
    """
    spread = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    later = FOCUSED + (spread - focus) / (1 - focus) * (1 - FOCUSED)
    spread = torch.where(spread < focus, spread / focus * FOCUSED, later)
    step = (spread * (schedule.steps + 1)).long().clamp(max=schedule.steps)
    noise = torch.randn(batch, atoms, 3 + features, generator=generator)
    return step, noise[..., :3], noise[..., 3:]


def centred(x: Tensor, mask: Tensor) -> Tensor:
    """Positions [B, N, 3] with zero centre of mass, zero where masked."""
    atoms = mask[..., None].to(x.dtype)
    x = x * atoms
    return (x - x.sum(dim=1, keepdim=True) / atoms.sum(dim=1, keepdim=True)) * atoms
