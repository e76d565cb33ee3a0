"""Features and loss of the model."""

import pytest
import torch

from mgpu_nb.workloads.molecules.diffusion import Diffusion, centred, draw_noise
from mgpu_nb.workloads.molecules.egnn import EGNN
from mgpu_nb.workloads.molecules.noise import Schedule


def model(charges: bool = False) -> Diffusion:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Diffusion(EGNN(6 + charges, 32, 2), histogram={3: 1}, schedule=Schedule(50), charges=charges)


WATER = torch.tensor([[8, 1, 1, 0]])
PLACES = torch.tensor([[[0.0, 0.0, 0.12], [0.0, 0.76, -0.47], [0.0, -0.76, -0.47], [0.0, 0.0, 0.0]]])


def test_features_of_elements() -> None:
    plain, charged = model().encode(WATER), model(charges=True).encode(WATER)
    expected = torch.zeros(1, 4, 5)
    expected[0, 0, 3] = expected[0, 1, 0] = expected[0, 2, 0] = 0.25
    assert torch.equal(plain, expected)
    assert torch.equal(charged[..., :5], expected)
    assert torch.allclose(charged[0, :, 5], torch.tensor([0.8, 0.1, 0.1, 0.0]))


def test_elements_outside_the_alphabet() -> None:
    with pytest.raises(ValueError, match=r"\[14, 17\].*H, C, N, O, F"):
        model().encode(torch.tensor([[1, 17, 14, 0]]))


@pytest.mark.parametrize("charges", [False, True])
def test_loss_by_hand(charges: bool) -> None:
    net = model(charges)
    mask, step = WATER != 0, torch.tensor([20])
    noise = torch.randn(1, 4, 3 + net.features, generator=torch.Generator().manual_seed(1))
    got = net.loss_at(PLACES, WATER, mask, step, noise[..., :3], noise[..., 3:])
    alpha, sigma = net.schedule.alpha(step).float(), net.schedule.sigma(step).float()
    noise_x = noise[:, :3, :3] - noise[:, :3, :3].mean(dim=1, keepdim=True)
    places = PLACES[:, :3] - PLACES[:, :3].mean(dim=1, keepdim=True)
    features = alpha * net.encode(WATER)[:, :3] + sigma * noise[:, :3, 3:]
    eps_x, eps_h = net.eps(alpha * places + sigma * noise_x, features, torch.tensor([0.4]), mask[:, :3])
    squares = (eps_x - noise_x).square().sum() + (eps_h - noise[:, :3, 3:]).square().sum()
    assert got.shape == (1,)
    assert torch.allclose(got, squares / (3 * (3 + net.features)), rtol=1e-5)


def test_loss_of_an_untrained_model_is_that_of_no_guess() -> None:
    numbers, places = WATER.expand(256, -1), PLACES.expand(256, -1, -1)
    loss = model().loss(places, numbers, numbers != 0, torch.Generator().manual_seed(0)).mean()
    assert torch.isfinite(loss)
    assert 0.7 < loss < 1.3


def test_loss_depends_on_the_generator_alone() -> None:
    net, numbers = model(), WATER.expand(8, -1)
    once, again = (
        net.loss(PLACES.expand(8, -1, -1), numbers, numbers != 0, torch.Generator().manual_seed(3))
        for _ in "ab"
    )
    assert torch.equal(once, again)


def test_steps_are_spread_over_all_of_the_schedule() -> None:
    steps, noise_x, noise_h = draw_noise(50, 4, 5, Schedule(1000), torch.Generator().manual_seed(0))
    assert (noise_x.shape, noise_h.shape) == ((50, 4, 3), (50, 4, 5))
    assert (steps.diff() >= 0).all()
    assert all(20 * n - 1 <= step <= 20 * n + 21 for n, step in enumerate(steps.tolist()))
    few = torch.cat([draw_noise(8, 1, 1, Schedule(3), torch.Generator().manual_seed(n))[0] for n in range(9)])
    assert sorted(set(few.tolist())) == [0, 1, 2, 3]


def test_centre_of_mass_of_the_atoms_that_are_there() -> None:
    x = centred(torch.randn(5, 4, 3) * 100, mask := torch.tensor([[True, True, True, False]]).expand(5, -1))
    assert x.sum(dim=1).abs().max() < 1e-4
    assert not x[~mask].any()


def test_a_network_of_another_number_of_features() -> None:
    with pytest.raises(ValueError, match="5 elements, charges and the time need 7"):
        Diffusion(EGNN(6, 32, 1), histogram={3: 1}, schedule=Schedule(), charges=True)
    with pytest.raises(ValueError, match="histogram must be the number of molecules"):
        Diffusion(EGNN(6, 32, 1), histogram={}, schedule=Schedule())


def test_steps_can_be_drawn_more_often_where_bonds_form() -> None:
    steps, _, _ = draw_noise(100, 1, 1, Schedule(1000), torch.Generator().manual_seed(0), focus=0.8)
    assert int((steps < 400).sum()) == 80
    assert (steps.diff() >= 0).all()
    assert steps[-1] > 960
