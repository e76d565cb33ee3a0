"""`CANet`: a small equivariant network that gives the velocity of C-alpha traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

__all__ = ["WEIGHTS", "CANet", "load_ca_net"]

WEIGHTS = Path(__file__).with_name("ca_net.safetensors")
"""The shipped weights. Their metadata state seed, configuration and versions of the training."""

_DATA_SCALE = 0.7  # standard deviation of a coordinate of a fold of some 50 residues, nm
_REACH = 4  # residues to either side whose positions a residue sees exactly
_WINDOW = 16  # residues further apart along the chain share one embedding
_RADII = 8  # radial basis functions, evenly spaced in log distance from 0.15 to 4 nm
_PAIR = 16  # features of a pair of residues
_BOND, _CONTACT = 0.38, 0.45  # nm; residues three and more apart along the chain come no nearer
_RELAX_FROM, _RELAX_ROUNDS = 0.8, 30


class CANet(nn.Module):
    """Equivariant graph network over the residues of a chain.

    Messages and updates are those of an E(n)-equivariant network (Satorras et al., 2021, eq. 3-6, all pairs
    of residues connected). Such a network cannot tell a fold from its mirror image and would make
    left-handed
    helices as often as right-handed ones; so each residue also sees the triple product of its bonds and may
    move along their cross product. Hence it is equivariant to rotations and, its input being centred, to
    translations, but not to reflections.

    The output is ``v = a(t) x + c(t) f``, with `a` the best linear guess for data of standard deviation s and
    `c` the standard deviation that this guess leaves: ``a = (t s^2 - (1-t)) / V``, ``c = s / sqrt(V)``,
    ``V = (1-t)^2 + t^2 s^2`` (the preconditioning of Karras et al., 2022, for the linear interpolant).

    A network of this size leaves a fourth of the bonds out of 3.6 to 4.0 angstrom. So, but for training, the data that
    it expects from t = 0.8 on, ``x + (1-t) v``, are projected onto chains: bonds of 3.8 angstrom and no clashes.

    Parameters
    ----------
    hidden
        Features per residue.
    layers
        Rounds of messages.
    """

    def __init__(self, hidden: int = 80, layers: int = 4) -> None:
        super().__init__()
        self.hidden, self.num_layers = hidden, layers
        self.embed = nn.Sequential(nn.Linear(12, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.layers = nn.ModuleList(_Layer(hidden) for _ in range(layers))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity at `x`.

        Parameters
        ----------
        x
            [B, L, 3] C-alpha positions in nm, L >= 4.
        t
            [B] times, 0 noise and 1 data.

        Returns
        -------
        Tensor [B, L, 3]
            In nm per unit of t, with zero centre of mass.
        """
        x = x - x.mean(dim=-2, keepdim=True)
        time = t[:, None, None]
        variance = (1 - time) ** 2 + (time * _DATA_SCALE) ** 2
        nodes = self.embed(_node_features(t, x.shape[1], x.dtype))
        offsets = torch.arange(x.shape[1], device=x.device)
        offsets = (offsets[None, :] - offsets[:, None]).clamp(-_WINDOW, _WINDOW) + _WINDOW  # [L, L]
        # Layers walk from the interpolant towards the fold that it hides.
        start = x * (_DATA_SCALE / variance.sqrt())
        moved = start
        for layer in self.layers:
            nodes, moved = layer(nodes, moved, offsets)
        linear = (time * _DATA_SCALE**2 - (1 - time)) / variance * x
        v = linear + (moved - start) / variance.sqrt()
        velocity: Tensor = v - v.mean(dim=-2, keepdim=True)
        late = t >= _RELAX_FROM
        if self.training or not bool(late.any()):
            return velocity
        left = (1 - time).clamp_min(1e-3)
        projected = (_relaxed(x + left * velocity) - x) / left
        return torch.where(late[:, None, None], projected, velocity)


class _Layer(nn.Module):
    radii: Tensor

    def __init__(self, hidden: int) -> None:
        super().__init__()
        around = 2 * _REACH
        self.receive = nn.Linear(hidden, _PAIR)
        self.send = nn.Linear(hidden, _PAIR, bias=False)
        self.distance = nn.Linear(_RADII, _PAIR, bias=False)
        self.offset = nn.Embedding(2 * _WINDOW + 1, _PAIR)
        self.message = nn.Linear(_PAIR, _PAIR)
        self.pull = nn.Linear(_PAIR, 1, bias=False)
        self.chain = nn.Conv1d(hidden, hidden, 5, padding=2, groups=hidden)
        self.update = nn.Sequential(
            nn.Linear(2 * hidden + _PAIR + around * (around + 3) // 2, 2 * hidden),
            nn.SiLU(),
            nn.Linear(2 * hidden, hidden),
        )
        self.norm = nn.LayerNorm(hidden)
        self.frame = nn.Linear(hidden, around + 1)
        for last in (self.pull, self.frame):  # an untrained network gives the linear guess
            nn.init.zeros_(last.weight)
        nn.init.zeros_(self.frame.bias)
        self.register_buffer("radii", torch.linspace(-1.9, 1.4, _RADII), persistent=False)

    def forward(self, nodes: Tensor, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        apart = x[:, None, :, :] - x[:, :, None, :]  # [B, L, L, 3], from i to j
        squared = apart.square().sum(-1, keepdim=True) + 1e-4
        radial = torch.exp(-((0.5 * squared.log() - self.radii) / 0.4).square())
        mixed = self.receive(nodes)[:, :, None] + self.send(nodes)[:, None] + self.offset(offsets)
        pairs = silu(self.message(silu(mixed + self.distance(radial))))  # [B, L, L, P]
        vectors, scalars = _surroundings(x)
        seen = [nodes, self.chain(nodes.mT).mT, pairs.mean(dim=2), scalars]
        nodes = self.norm(nodes + self.update(torch.cat(seen, dim=-1)))
        pulled = (self.pull(pairs) / (1.0 + squared.sqrt()) * apart).mean(dim=2)
        return nodes, x + pulled + (self.frame(nodes)[..., None] * vectors).sum(dim=-2)


def _relaxed(x: Tensor) -> Tensor:
    """Chains [B, L, 3] with bonds of 3.8 and contacts of 4.5 angstrom or more, each round moving both ends alike."""
    places = torch.arange(x.shape[1], device=x.device)
    far = ((places[:, None] - places).abs() > 2)[..., None]
    for _ in range(_RELAX_ROUNDS):
        step = x[:, 1:] - x[:, :-1]
        length = step.norm(dim=-1, keepdim=True).clamp_min(1e-3)
        pull = 0.35 * (length - _BOND) / length * step
        apart = x[:, :, None] - x[:, None]  # [B, L, L, 3], from j to i
        distance = apart.norm(dim=-1, keepdim=True).clamp_min(1e-3)
        push = (0.25 * (_CONTACT - distance).clamp_min(0) / distance * far * apart).sum(dim=2)
        x = x + push + nn.functional.pad(pull, (0, 0, 0, 1)) - nn.functional.pad(pull, (0, 0, 1, 0))
    return x


def _surroundings(x: Tensor) -> tuple[Tensor, Tensor]:
    """Give what a residue sees of its neighbours along the chain.

    Vectors [B, L, 2 r + 1, 3] that turn with the chain, to the r residues on either side (zero beyond
    the ends) and the cross product of the two bonds, and their scalar products [B, L, r (2 r + 3)]: those of
    the first 2 r with each other and, the sign of these tells the hand, with the cross product.
    """
    length = x.shape[1]
    places = torch.arange(length, device=x.device)
    steps = torch.tensor([n for n in range(-_REACH, _REACH + 1) if n], device=x.device)
    neighbours = places[:, None] + steps  # [L, 2 r]
    inside = ((neighbours >= 0) & (neighbours < length)).to(x.dtype)[..., None]
    around = (x[:, neighbours.clamp(0, length - 1)] - x[:, :, None]) * inside
    normal = torch.linalg.cross(around[:, :, _REACH - 1], around[:, :, _REACH], dim=-1)[:, :, None]
    normal = normal / (normal.square().sum(-1, keepdim=True) + 1e-2).sqrt()
    first, second = torch.triu_indices(2 * _REACH, 2 * _REACH, device=x.device)
    products = (around @ around.mT)[:, :, first, second]
    scalars = torch.cat([products, (around @ normal.mT)[..., 0]], dim=-1) * 4.0
    return torch.cat([around, normal], dim=-2), scalars / (1.0 + scalars.abs()).sqrt()


def _node_features(t: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Time, place in the chain and length of the chain [B, L, 12]."""
    place = torch.linspace(-1.0, 1.0, length, device=t.device, dtype=dtype)
    waves = [torch.cos(k * torch.pi * place) for k in (0.5, 1, 2, 3)]
    waves += [torch.sin(k * torch.pi * place) for k in (0.5, 1, 2)]
    chain = torch.stack([*waves, torch.full_like(place, length / 50.0)], dim=-1)  # [L, 8]
    clock = torch.stack([t, t**2, torch.cos(torch.pi * t), torch.sin(torch.pi * t)], dim=-1).to(
        dtype
    )  # [B, 4]
    return torch.cat([chain.expand(len(t), -1, -1), clock[:, None].expand(-1, length, -1)], dim=-1)


def load_ca_net(path: str | Path = WEIGHTS) -> CANet:
    """Load a network that `train` has written.

    Raises
    ------
    ValueError
        If the file is no safetensors file of a CANet.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            stated: dict[str, Any] = json.loads((file.metadata() or {}).get("config", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        net = CANet(hidden=stated["hidden"], layers=stated["layers"])
        net.load_state_dict(weights)
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path} holds no weights of ca_net ({reason}); train some with `mgpu-nb protein train`"
        ) from error
    return net.eval().requires_grad_(False)
