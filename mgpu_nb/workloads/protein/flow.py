"""The flow: interpolant, score, and the steps that move samples from noise (t = 0) to data (t = 1).

Coordinates are in nm here: those of the folds, in angstrom, times `NM_PER_ANGSTROM`. Noise is N(0, I) in
these units, with zero centre of mass.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .frames import positions, rotate, rotations, with_rotations

__all__ = [
    "NM_PER_ANGSTROM",
    "Flow",
    "antisymmetric_field",
    "centre",
    "interpolate",
    "projection_field",
    "score",
]

NM_PER_ANGSTROM = 0.1


def centre(x: Tensor) -> Tensor:
    """`x` [..., L, 3] with zero centre of mass; of a state with frames [..., L, 12] its positions."""
    if x.shape[-1] == 3:
        return x - x.mean(dim=-2, keepdim=True)
    return torch.cat([centre(positions(x)), x[..., 3:]], dim=-1)


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """Linear interpolant ``x_t = (1 - t) e + t x1`` of noise and data [B, L, 3] at times [B]."""
    t = t[:, None, None]
    return (1 - t) * noise + t * data


def score(x: Tensor, v: Tensor, t: float) -> Tensor:
    """Gradient of log p_t at `x`, from the velocity there: ``s = -(x - t v) / (1 - t)``.

    ``x - t v`` is the expected noise given x; dividing by the noise's scale is Tweedie's formula, exact for
    the linear interpolant with Gaussian noise. Any shape; t in [0, 1).
    """
    return -(x - t * v) / (1 - t)


def antisymmetric_field(s: Tensor, t: float, draw: Tensor) -> Tensor:
    """``w = (1 - t) A s``, ``A = (G - G^T) / sqrt(2 L)`` over residues: ``div(p_t w) = 0``, exactly.

    As A is antisymmetric, ``w.s = 0``; as the Jacobian of s is symmetric too, ``div w = 0``. The
    factor (1 - t) keeps the step bounded where s grows, near t = 1.

    Parameters
    ----------
    s
        Scores [..., L, 3].
    t
        Time.
    draw
        G [..., L, L], standard normal.
    """
    a = (draw - draw.mT) / math.sqrt(2 * s.shape[-2])
    return (1 - t) * (a @ s)


def projection_field(s: Tensor, draw: Tensor) -> Tensor:
    """Noise `draw` [..., L, 3] without its part along the scores `s`: ``w = e - (e.s) s / ||s||^2``.

    Gives ``w.s = 0`` only; ``div w`` is left, so the distribution changes somewhat.
    """
    along = (draw * s).sum((-1, -2), keepdim=True) / s.square().sum((-1, -2), keepdim=True).clamp_min(1e-12)
    return draw - along * s


class Flow:
    """A velocity model and the steps of its integration over t = 0, 1/steps, ..., 1.

    States are [..., L, 3] in nm; all leading dimensions go through the model in one call [B, L, 3]. Those of a model
    with frames are [..., L, 12] (see `frames`): noise and fields move the positions, rotations follow the ODE.

    Parameters
    ----------
    model
        Gives the velocity [B, L, 3] at x [B, L, 3], t [B]. With an attribute ``frames`` that is true it gives [B, L, 6]
        at [B, L, 12]: the velocity of the positions, then the angular velocity of each residue in its own frame, in
        radians per unit of t.
    steps
        Euler steps from noise to data.
    on_call
        Called after each call of the model, with this flow.

    Attributes
    ----------
    evaluations
        Network evaluations so far: a call with B states counts B.
    """

    def __init__(
        self,
        model: Callable[[Tensor, Tensor], Tensor],
        steps: int,
        on_call: Callable[[Flow], None] | None = None,
    ) -> None:
        self.model, self.steps, self.on_call = model, steps, on_call
        self.evaluations = 0
        self.frames = bool(getattr(model, "frames", False))

    def velocity(self, x: Tensor, step: int) -> Tensor:
        """Velocity at `x` before step number `step`: [..., L, 3], or [..., L, 6] with frames."""
        flat = x.reshape(-1, *x.shape[-2:])
        v = self.model(flat, flat.new_full((len(flat),), step / self.steps))
        wanted = [*flat.shape[:2], 6 if self.frames else 3]
        if not isinstance(v, Tensor) or list(v.shape) != wanted:
            given = list(v.shape) if isinstance(v, Tensor) else type(v).__name__
            raise ValueError(f"the model returned {given} for x {list(flat.shape)}: it must return {wanted}")
        self.evaluations += len(flat)
        if self.on_call is not None:
            self.on_call(self)
        return v.reshape(*x.shape[:-1], wanted[-1]).to(x.dtype)

    def ode_step(self, x: Tensor, step: int) -> Tensor:
        """``x += v dt``, recentred."""
        v = self.velocity(x, step)
        return self._moved(x, v, v[..., :3] / self.steps)

    def sde_step(self, x: Tensor, step: int, draw: Tensor, noise_scale: float) -> Tensor:
        """Marginal-preserving Euler-Maruyama: ``x += (v + g^2/2 s) dt + g sqrt(dt) xi``, recentred.

        `draw` is xi, standard normal in the shape of `x`; g is `noise_scale`, in nm per sqrt(t), and near data as much
        less as it takes for the noise of the step, ``g sqrt(dt)``, not to exceed the noise that belongs to its end,
        ``1 - t - dt``: the score grows with 1 / (1 - t) there, and steps of a constant g would overshoot and leave
        noise in the data that no later step removes. Any g(t) keeps the marginals: its noise broadens the
        distribution exactly as fast as the score term narrows it. The last step so is one of the ODE.
        """
        v, dt = self.velocity(x, step), 1 / self.steps
        g = min(noise_scale, (self.steps - step - 1) * math.sqrt(dt))
        drift = v[..., :3] + 0.5 * g**2 * score(positions(x), v[..., :3], step * dt)
        return self._moved(x, v, drift * dt + g * math.sqrt(dt) * draw)

    def divergence_free_step(self, x: Tensor, step: int, draw: Tensor, scale: float, kind: str) -> Tensor:
        """``x += (v + lambda w) dt``, recentred; `kind` is ``antisymmetric`` or ``projection``."""
        v, t = self.velocity(x, step), step / self.steps
        s = score(positions(x), v[..., :3], t)
        field = (
            antisymmetric_field(s, t, draw) if kind == "antisymmetric" else projection_field(s, centre(draw))
        )
        return self._moved(x, v, (v[..., :3] + scale * field) / self.steps)

    def _moved(self, x: Tensor, v: Tensor, shift: Tensor) -> Tensor:
        """State after a step: positions by a shift [..., L, 3], recentred; rotations by their angular velocity."""
        moved = centre(positions(x) + shift)
        return with_rotations(moved, rotate(rotations(x), v[..., 3:] / self.steps)) if self.frames else moved

    def complete(self, x: Tensor, step: int) -> Tensor:
        """`x` at t = 1, by the plain ODE from step number `step`."""
        for following in range(step, self.steps) if x.numel() else ():
            x = self.ode_step(x, following)
        return x
