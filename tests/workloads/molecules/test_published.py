"""Models of the published EDM, made here with its names and shapes."""

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mgpu_nb.workloads.molecules.checkpoint import check_n_nodes, load_model
from mgpu_nb.workloads.molecules.noise import Schedule

OPTIONS: dict[str, Any] = {
    "model": "egnn_dynamics",
    "probabilistic_model": "diffusion",
    "diffusion_steps": 100,
    "diffusion_noise_schedule": "polynomial_2",
    "diffusion_noise_precision": 1e-5,
    "diffusion_loss_type": "l2",
    "n_layers": 2,
    "inv_sublayers": 1,
    "nf": 32,
    "tanh": True,
    "attention": True,
    "norm_constant": 1,
    "sin_embedding": False,
    "normalize_factors": [1, 4, 10],
    "include_charges": True,
    "dataset": "qm9",
    "remove_h": False,
    "conditioning": [],
    "context_node_nf": 0,
    "condition_time": True,
    "lr": 1e-4,
}


def published(features: int = 7, nf: int = 32, layers: int = 2, inv_sublayers: int = 1) -> dict[str, Tensor]:
    """A state dict with the names and shapes of EnVariationalDiffusion of the published code."""
    draws = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, out: int, inside: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, inside)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    layer("dynamics.egnn.embedding", nf, features)
    layer("dynamics.egnn.embedding_out", features, nf)
    for n in range(layers):
        block = f"dynamics.egnn.e_block_{n}"
        for k in range(inv_sublayers):
            layer(f"{block}.gcl_{k}.edge_mlp.0", nf, 2 * nf + 2)
            layer(f"{block}.gcl_{k}.edge_mlp.2", nf, nf)
            layer(f"{block}.gcl_{k}.node_mlp.0", nf, 2 * nf)
            layer(f"{block}.gcl_{k}.node_mlp.2", nf, nf)
            layer(f"{block}.gcl_{k}.att_mlp.0", 1, nf)
        layer(f"{block}.gcl_equiv.coord_mlp.0", nf, 2 * nf + 2)
        layer(f"{block}.gcl_equiv.coord_mlp.2", nf, nf)
        layer(f"{block}.gcl_equiv.coord_mlp.4", 1, nf, bias=False)
    state = {name: 0.1 * torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    return {"buffer": torch.zeros(1), "gamma.gamma": Schedule(100).gamma(torch.arange(101)).float(), **state}


def write(folder: Path, state: Any, options: dict[str, Any] | None = None, ema: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / ("generative_model_ema.npy" if ema else "generative_model.npy"))
    (folder / "args.json").write_text(json.dumps({**OPTIONS, **(options or {})}))
    return folder


def reference(
    state: dict[str, Tensor], x: Tensor, h: Tensor, t: Tensor, layers: int = 2, reach: float = 15.0
) -> tuple[Tensor, Tensor]:
    """The published equations for one molecule, a pair at a time."""

    def mlp(name: str, value: Tensor, *layers: int, last: bool = False) -> Tensor:
        for n in layers:
            bias = state.get(f"{name}.{n}.bias")
            value = torch.nn.functional.linear(value, state[f"{name}.{n}.weight"], bias)
            if not (last and n == layers[-1]):
                value = torch.nn.functional.silu(value)
        return value

    atoms = len(x)
    features = torch.cat([h, t.expand(atoms, 1)], dim=1)
    start, egnn = x, "dynamics.egnn"
    nodes = features @ state[f"{egnn}.embedding.weight"].T + state[f"{egnn}.embedding.bias"]
    for n in range(layers):
        block = f"{egnn}.e_block_{n}"
        pairs = [(i, j) for i in range(atoms) for j in range(atoms) if i != j]
        here = {p: (x[p[0]] - x[p[1]]).square().sum()[None] for p in pairs}
        there = {p: (start[p[0]] - start[p[1]]).square().sum()[None] for p in pairs}
        received = [torch.zeros_like(nodes[0])] * atoms
        for i, j in pairs:
            message = mlp(
                f"{block}.gcl_0.edge_mlp", torch.cat([nodes[i], nodes[j], here[i, j], there[i, j]]), 0, 2
            )
            received[i] = (
                received[i] + message * mlp(f"{block}.gcl_0.att_mlp", message, 0, last=True).sigmoid()
            )
        nodes = torch.stack(
            [
                nodes[i] + mlp(f"{block}.gcl_0.node_mlp", torch.cat([nodes[i], received[i]]), 0, 2, last=True)
                for i in range(atoms)
            ]
        )
        moved = list(x)
        for i, j in pairs:
            seen = torch.cat([nodes[i], nodes[j], here[i, j], there[i, j]])
            pull = mlp(f"{block}.gcl_equiv.coord_mlp", seen, 0, 2, 4, last=True).tanh() * reach
            moved[i] = moved[i] + (x[i] - x[j]) / ((here[i, j] + 1e-8).sqrt() + 1) * pull
        x = torch.stack(moved)
    out = nodes @ state[f"{egnn}.embedding_out.weight"].T + state[f"{egnn}.embedding_out.bias"]
    return (x - start) - (x - start).mean(dim=0), out[:, :-1]


def test_a_published_model_gives_what_its_equations_say(tmp_path: Path) -> None:
    state = published()
    net = load_model(write(tmp_path, state))
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(1, 6, 3, generator=draws)
    x, h, t = x - x.mean(dim=1), torch.randn(1, 6, 6, generator=draws), torch.tensor([0.3])
    eps_x, eps_h = net.eps(x, h, t, torch.ones(1, 6, dtype=torch.bool))
    expected_x, expected_h = reference(state, x[0], h[0], t)
    assert torch.allclose(eps_x[0], expected_x, atol=1e-4)
    assert torch.allclose(eps_h[0], expected_h, atol=1e-5)


def test_what_a_published_model_is(tmp_path: Path) -> None:
    net = load_model(write(tmp_path, published()))
    assert net.alphabet == ("H", "C", "N", "O", "F")
    assert (net.charges, net.h_scale, net.charge_scale) == (True, 4.0, 10.0)
    assert net.schedule.steps == 100
    assert (sum(net.histogram.values()), net.histogram[18], max(net.histogram)) == (100000, 13364, 29)
    assert not net.training
    check_n_nodes(net, 27)
    with pytest.raises(ValueError, match=r"n_nodes must be 3 to 29 except 28,.*got 28"):
        check_n_nodes(net, 28)


def test_the_average_is_preferred_and_a_file_is_enough(tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in published().items() if name.startswith("dynamics")}
    write(tmp_path, other, ema=False)
    write(tmp_path, published())
    for path, expected in [(tmp_path, published()), (tmp_path / "generative_model.npy", other)]:
        weight = load_model(path).egnn.embedding.weight
        assert torch.equal(weight, expected["dynamics.egnn.embedding.weight"])


@pytest.mark.parametrize(
    ("options", "features", "alphabet"),
    [
        ({"include_charges": False, "inv_sublayers": 2, "n_layers": 1}, 6, ("H", "C", "N", "O", "F")),
        ({"include_charges": False, "remove_h": True}, 5, ("C", "N", "O", "F")),
        ({"dataset": "mine", "alphabet": ["C", "H"], "histogram": {"5": 2, "8": 1}}, 4, ("C", "H")),
    ],
)
def test_other_options(
    tmp_path: Path, options: dict[str, Any], features: int, alphabet: tuple[str, ...]
) -> None:
    both = {**OPTIONS, **options}
    state = published(features, layers=both["n_layers"], inv_sublayers=both["inv_sublayers"])
    net = load_model(write(tmp_path, state, options))
    assert net.alphabet == alphabet
    assert set(net.histogram) == {"mine": {5, 8}}.get(both["dataset"], set(net.histogram))


def test_pickled_options_need_trust(tmp_path: Path) -> None:
    write(tmp_path, published())
    (tmp_path / "args.json").unlink()
    with pytest.raises(ValueError, match=r"has no options of it; it needs args\.json"):
        load_model(tmp_path)
    (tmp_path / "args.pickle").write_bytes(pickle.dumps(argparse.Namespace(**OPTIONS)))
    with pytest.raises(ValueError, match=r"pickle.*trust=True"):
        load_model(tmp_path)
    assert load_model(tmp_path, trust=True).schedule.steps == 100
    (tmp_path / "args.pickle").write_bytes(b"junk")
    with pytest.raises(
        ValueError, match=r"args\.pickle holds no options.*; write them to .*args\.json: json\.dump"
    ):
        load_model(tmp_path, trust=True)


class Evil:
    def __reduce__(self) -> Any:
        return (Path("was_here").touch, ())


def test_weights_are_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "edm", {"x": Evil()})
    with pytest.raises(
        ValueError, match=r"is no state dict that torch\.save wrote, is cut off, or holds more"
    ):
        load_model(tmp_path / "edm", trust=True)
    assert not Path("was_here").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nf": 64}, r"dynamics.egnn.embedding.weight has shape \[32, 7\], and .* ask for \[64, 7\]"),
        ({"n_layers": 3}, r"has no dynamics.egnn.e_block_2.gcl_0.edge_mlp.0.weight \[32, 66\]"),
        ({"n_layers": 1}, r"has dynamics.egnn.e_block_1.* which the model's options do not ask for"),
        ({"include_charges": False}, r"embedding.weight has shape \[32, 7\], and .* ask for \[32, 6\]"),
        ({"diffusion_steps": 1000}, r"gamma.gamma has shape \[101\], and diffusion_steps asks for \[1001\]"),
        ({"diffusion_noise_precision": 1e-3}, "gamma.gamma is not the noise"),
        ({"diffusion_noise_schedule": "learned"}, "diffusion_noise_schedule='learned' is not known"),
        ({"diffusion_noise_schedule": "cosine"}, "diffusion_noise_schedule='cosine' is not known"),
        ({"sin_embedding": True}, "sin_embedding=True is not known"),
        ({"aggregation_method": "mean"}, "aggregation_method='mean'"),
        ({"conditioning": ["alpha"]}, "conditioning"),
        ({"dataset": "geom"}, "dataset='geom' is not known.*histogram"),
        ({"dataset": "mine", "alphabet": ["C", "Si"], "histogram": {"5": 2}}, r"elements \['Si'\]"),
        ({"normalize_factors": [2, 4, 1]}, "normalize_factors"),
        ({"nf": None}, "nf=None is not an integer of 1 and more"),
        ({"n_layers": -1}, "n_layers=-1 is not an integer"),
        ({"attention": "yes"}, "attention='yes' is not true or false"),
        ({"norm_constant": "1"}, "norm_constant='1' is not a number"),
        ({"diffusion_noise_schedule": "polynomial_x"}, "diffusion_noise_schedule='polynomial_x'"),
        ({"diffusion_noise_precision": 0.7}, r"precision of a schedule must be in \(0, 0.5\)"),
        ({"histogram": [3, 4]}, r"histogram=\[3, 4\] is no object"),
        ({"histogram": {"3": 0}}, "is no object of molecules by number"),
        ({"alphabet": "CH"}, "alphabet='CH' is no list"),
        ({"alphabet": ["C", "C"]}, "is no list of different elements"),
        ({"normalize_factors": [1, 0, 1]}, "normalize_factors"),
        ({"normalize_factors": "[1,4,1]"}, "normalize_factors"),
    ],
)
def test_other_shapes_and_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"(args\.json: |model_ema\.npy).*{message}"):
        load_model(write(tmp_path, published(), options))


@pytest.mark.parametrize("change", [lambda value: value * torch.nan, lambda value: value.to(torch.int8)])
def test_weights_that_are_no_numbers(tmp_path: Path, change: Callable[[Tensor], Tensor]) -> None:
    state = published()
    name = "dynamics.egnn.embedding.weight"
    with pytest.raises(
        ValueError, match=rf"model_ema\.npy: {name} has weights that are no finite floating-point"
    ):
        load_model(write(tmp_path, {**state, name: change(state[name])}))


def test_missing_options_and_files(tmp_path: Path) -> None:
    folder = write(tmp_path, published())
    options = dict(OPTIONS)
    del options["nf"]
    (folder / "args.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match=r"args\.json: there is no 'nf'"):
        load_model(folder)
    for text, message in [
        (b'{\n"nf" 3}', r"args\.json is no JSON: .*line 2 column 6"),
        (b"\xff", r"args\.json is no JSON"),
        (b"[]", r"args\.json must hold an object of options, not a list"),
    ]:
        (folder / "args.json").write_bytes(text)
        with pytest.raises(ValueError, match=rf"{message}.*; json\.dump"):
            load_model(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has neither generative_model_ema\.npy nor"):
        load_model(tmp_path / "empty")
    with pytest.raises(ValueError, match="does not exist"):
        load_model(tmp_path / "nowhere")
