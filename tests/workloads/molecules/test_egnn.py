"""The network: its symmetries, its mask, and the bits of a molecule whatever stands beside it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mgpu_nb.workloads.molecules.diffusion import Diffusion, centred
from mgpu_nb.workloads.molecules.egnn import EGNN
from mgpu_nb.workloads.molecules.noise import Schedule

VARIANTS: list[dict[str, Any]] = [
    {},
    {"attention": False, "tanh": False, "inv_sublayers": 2, "normalization_factor": 10.0},
]


def model(seed: int = 0, hidden: int = 32, **options: Any) -> Diffusion:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Diffusion(
            EGNN(6, hidden, 3, **options),
            histogram=dict.fromkeys(range(2, 26), 1),
            schedule=Schedule(),
        )
        for name, value in net.named_parameters():
            if "coord_mlp.4" in name:  # as large as after a training
                value.data.normal_(std=0.05 if "tanh" in options else 0.05 / 15)
    return net.eval().requires_grad_(False)


def molecules(batch: int, atoms: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, atoms, dtype=torch.bool)
    x = centred(1.5 * torch.randn(batch, atoms, 3, generator=draws), mask)
    return x, torch.randn(batch, atoms, 5, generator=draws), torch.rand(batch, generator=draws), mask


def orthogonal(seed: int, reflects: bool) -> Tensor:
    q: Tensor = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)))[0]
    return q if bool(torch.det(q) < 0) == reflects else -q


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("reflects", [False, True])
def test_noise_turns_and_is_mirrored_with_the_molecule(options: dict[str, Any], reflects: bool) -> None:
    net, (x, h, t, mask) = model(**options), molecules(4, 9)
    q = orthogonal(1, reflects)
    eps_x, eps_h = net.eps(x, h, t, mask)
    turned_x, turned_h = net.eps(x @ q, h, t, mask)
    assert eps_x.abs().max() > 0.03
    assert torch.allclose(turned_x, eps_x @ q, atol=1e-5)
    assert torch.allclose(turned_h, eps_h, atol=1e-5)


def test_a_shift_changes_nothing_and_the_centre_of_mass_stays() -> None:
    net, (x, h, t, mask) = model(), molecules(4, 9)
    eps_x, eps_h = net.eps(x, h, t, mask)
    shifted_x, shifted_h = net.eps(x + torch.tensor([3.0, -2.0, 1.0]), h, t, mask)
    assert torch.allclose(shifted_x, eps_x, atol=1e-5)
    assert torch.allclose(shifted_h, eps_h, atol=1e-5)
    assert eps_x.mean(dim=1).abs().max() < 1e-5


def test_atoms_in_another_order() -> None:
    net, (x, h, t, mask) = model(), molecules(4, 9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    eps_x, eps_h = net.eps(x, h, t, mask)
    other_x, other_h = net.eps(x[:, order], h[:, order], t, mask)
    assert torch.allclose(other_x, eps_x[:, order], atol=1e-5)
    assert torch.allclose(other_h, eps_h[:, order], atol=1e-5)


@pytest.mark.parametrize("options", VARIANTS)
def test_padding_is_not_seen(options: dict[str, Any]) -> None:
    net, (x, h, t, mask) = model(**options), molecules(4, 9)
    eps_x, eps_h = net.eps(x, h, t, mask)
    more = torch.nn.functional.pad(mask, (0, 6))
    wide = [torch.nn.functional.pad(value, (0, 0, 0, 6)) for value in (x, h)]
    wide_x, wide_h = net.eps(wide[0], wide[1], t, more)
    assert torch.allclose(wide_x[:, :9], eps_x, atol=1e-5)
    assert torch.allclose(wide_h[:, :9], eps_h, atol=1e-5)
    assert not wide_x[:, 9:].any()
    assert not wide_h[:, 9:].any()


def test_gradients_change_nothing_beyond_rounding() -> None:
    net, (x, h, t, mask) = model(), molecules(4, 9)
    plain = net.eps(x, h, t, mask)
    with torch.no_grad():
        without = net.eps(x, h, t, mask)
    for one, other in zip(plain, without, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("atoms", [2, 7, 8, pytest.param(25, marks=pytest.mark.slow)])
def test_a_molecule_has_the_same_bits_in_any_batch(atoms: int, one_thread: None) -> None:
    net, (x, h, t, mask) = model(hidden=64), molecules(50, atoms)
    with torch.no_grad():
        alone = [net.eps(x[i : i + 1], h[i : i + 1], t[i : i + 1], mask[i : i + 1]) for i in range(50)]
        for begin, end in [(0, 2), (3, 6), (7, 12), (12, 25), (25, 32), (17, 50), (0, 50)]:
            part = slice(begin, end)
            eps_x, eps_h = net.eps(x[part], h[part], t[part], mask[part])
            for i in range(begin, end):
                assert torch.equal(eps_x[i - begin], alone[i][0][0]), (atoms, begin, end, i)
                assert torch.equal(eps_h[i - begin], alone[i][1][0]), (atoms, begin, end, i)
