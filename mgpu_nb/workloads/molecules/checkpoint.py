"""Weights of `Diffusion` in files: those that ship, those of a training of ours, those of the published EDM."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...store.files import atomic_write
from .diffusion import Diffusion
from .egnn import EGNN
from .molecule import NUMBERS
from .noise import Schedule
from .process import Denoiser

__all__ = ["SMILES", "WEIGHTS", "check_n_nodes", "known_smiles", "load_model", "save_model"]

WEIGHTS = Path(__file__).with_name("edm_small.safetensors")
"""The shipped weights. Their metadata state how they were made: ``mgpu-nb molecules train``, see `TrainConfig`."""

SMILES = "smiles"
"""Name in the metadata of what `known_smiles` reads, a JSON list."""

_STATES = ("generative_model_ema.npy", "generative_model.npy")  # of torch.save, in spite of the name
_OPTIONS = ("args.json", "config.json")
_PICKLED = "args.pickle"
# Molecules of QM9 by number of atoms, with and without hydrogen: the training sets of the published models.
_QM9 = {
    3: 1, 4: 4, 5: 5, 6: 9, 7: 16, 8: 49, 9: 124, 10: 362, 11: 807, 12: 1689, 13: 3060, 14: 5136, 15: 7796,
    16: 10644, 17: 13025, 18: 13364, 19: 13832, 20: 9482, 21: 9970, 22: 3393, 23: 4848, 24: 539, 25: 1506,
    26: 48, 27: 266, 29: 25,
}  # fmt: skip
_QM9_HEAVY = {1: 2, 2: 5, 3: 7, 4: 25, 5: 91, 6: 475, 7: 2404, 8: 13625, 9: 83366}
# Options of the published code that have one value here, and what they are if a file lacks them.
_FIXED: dict[str, Any] = {
    "model": "egnn_dynamics",
    "probabilistic_model": "diffusion",
    "condition_time": True,
    "sin_embedding": False,
    "context_node_nf": 0,
    "aggregation_method": "sum",
}


def load_model(path: str | Path | None = None, *, trust: bool = False, device: str = "cpu") -> Diffusion:
    """Load a model, ready to evaluate.

    Parameters
    ----------
    path
        A .safetensors file that `train` has written, by default the shipped one; or a folder of the published EDM, or
        a state dict in one: ``generative_model_ema.npy`` or ``generative_model.npy``, with its options in
        ``args.json`` or ``config.json`` (an object with the names of its command line, and ``histogram``, the
        molecules by number of atoms, where the dataset is not QM9) or in ``args.pickle``.
    trust
        Whether ``args.pickle`` may be unpickled, which runs whatever code it holds. Weights are never unpickled.
    device
        Where to put the model.

    Raises
    ------
    ValueError
        If a file is missing or of another kind, an option is one that is not known here, or a weight has another
        shape than the options ask for.
    """
    path = WEIGHTS if path is None else Path(path).expanduser()
    if not path.exists():
        raise ValueError(
            f"model_path={str(path)!r} does not exist; give a .safetensors file or a folder of EDM"
        )
    model = _load_ours(path) if path.suffix == ".safetensors" else _load_published(path, trust)
    return model.to(device).eval().requires_grad_(False)


def save_model(model: Diffusion, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write a model as a safetensors file, at once.

    Parameters
    ----------
    model
        The model.
    path
        The file; its folder is created.
    metadata
        What else to write into the header: how the model came about. The model's own options are added.
    """
    from safetensors.torch import save_file

    described = {
        "network": model.egnn.options,
        "alphabet": model.alphabet,
        "charges": model.charges,
        "h_scale": model.h_scale,
        "charge_scale": model.charge_scale,
        "histogram": model.histogram,
        "schedule": {
            "steps": model.schedule.steps,
            "precision": model.schedule.precision,
            "power": model.schedule.power,
        },
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_write(Path(path)) as part:
        save_file(weights, part, metadata={**metadata, "model": json.dumps(described)})


def known_smiles(path: str | Path | None = None) -> frozenset[str] | None:
    """SMILES, as `canonical_smiles` has them, of the molecules that a model of ours was trained on.

    Parameters
    ----------
    path
        As `load_model` takes it.

    Returns
    -------
    frozenset of str
        None if the file does not say, as those of the published EDM.
    """
    from safetensors import SafetensorError, safe_open

    path = WEIGHTS if path is None else Path(path).expanduser()
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            stated = json.loads((file.metadata() or {}).get(SMILES, "null"))
    except (SafetensorError, OSError, json.JSONDecodeError):
        return None  # the model may have gone since it was sampled
    return frozenset(map(str, stated)) if isinstance(stated, list) else None


def check_n_nodes(model: Denoiser, n_nodes: int) -> None:
    """Check that the model was trained on molecules of so many atoms.

    Raises
    ------
    ValueError
        If none of its histogram has; the message names the sizes that it has.
    """
    if n_nodes not in model.histogram:
        sizes = sorted(model.histogram)
        missing = [n for n in range(sizes[0], sizes[-1]) if n not in model.histogram]
        but = f" except {', '.join(map(str, missing))}" if missing else ""
        raise ValueError(
            f"n_nodes must be {sizes[0]} to {sizes[-1]}{but}, the sizes of the model's training molecules, "
            f"got {n_nodes}"
        )


def _load_ours(path: Path) -> Diffusion:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            described: dict[str, Any] = json.loads((file.metadata() or {})["model"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        model = Diffusion(
            EGNN(**described["network"]),
            histogram={int(size): count for size, count in described["histogram"].items()},
            schedule=Schedule(**described["schedule"]),
            alphabet=tuple(described["alphabet"]),
            charges=described["charges"],
            h_scale=described["h_scale"],
            charge_scale=described["charge_scale"],
        )
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} holds no model of molecules ({type(error).__name__}: {error}); "
            "train one with `mgpu-nb molecules train`"
        ) from error
    _fill(model, state, path)
    return model


def _load_published(path: Path, trust: bool) -> Diffusion:
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        states = [folder / name for name in _STATES if (folder / name).is_file()]
        if not states:
            raise ValueError(
                f"{folder} has neither {' nor '.join(_STATES)}; is it a folder that EDM has written?"
            )
        path = states[0]
    model = _published(_options(folder, trust), folder)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler's errors, which torch.load lets through
        raise ValueError(
            f"{path} is no state dict of torch.save, and nothing else is loaded: {error}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict; save model.state_dict()")
    gamma = state.pop("gamma.gamma", None)
    state.pop("buffer", None)
    if gamma is not None:
        expected = model.schedule.gamma(torch.arange(model.schedule.steps + 1))
        if gamma.shape != expected.shape:
            raise ValueError(
                f"{path}: gamma.gamma has shape [{_shape(gamma)}], "
                f"and diffusion_steps asks for [{_shape(expected)}]"
            )
        if not torch.allclose(gamma.double(), expected, atol=1e-3):
            raise ValueError(
                f"{path}: gamma.gamma is not the noise of diffusion_noise_schedule and _precision"
            )
    _fill(model, state, path)
    return model


def _options(folder: Path, trust: bool) -> dict[str, Any]:
    """Options that a published model was trained with, by name."""
    for name in _OPTIONS:
        if (folder / name).is_file():
            try:
                read = json.loads((folder / name).read_text(encoding="utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{folder / name} is no JSON: {error}") from error
            if not isinstance(read, dict):
                raise ValueError(
                    f"{folder / name} must hold an object of options, not a {type(read).__name__}"
                )
            return read
    file = folder / _PICKLED
    if not file.is_file():
        raise ValueError(
            f"{folder} has no options of the model; it needs {', '.join(_OPTIONS)} or {_PICKLED}"
        )
    if not trust:
        raise ValueError(
            f"{file} is a pickle, which can run any code when it is read: give trust=True (--trust) if you know where "
            f"it comes from, or write its options to {folder / _OPTIONS[0]}"
        )
    try:
        with file.open("rb") as stream:
            return dict(vars(pickle.load(stream)))
    except Exception as error:  # whatever a pickle raises
        raise ValueError(f"{file} holds no options: {type(error).__name__}: {error}") from error


def _published(options: dict[str, Any], folder: Path) -> Diffusion:
    """Untrained model by the options of the published code."""
    for name, wanted in _FIXED.items():
        if (value := options.get(name, wanted)) != wanted:
            raise ValueError(f"{folder}: {name}={value!r} is not known here, only {wanted!r}")
    if options.get("conditioning"):
        raise ValueError(f"{folder}: conditioning={options['conditioning']!r} is not known here, only none")
    try:
        kind, _, power = str(options["diffusion_noise_schedule"]).partition("_")
        if kind != "polynomial" or not power:
            raise ValueError(
                f"{folder}: diffusion_noise_schedule={options['diffusion_noise_schedule']!r} is not known here, "
                "only polynomial_2 and other powers"
            )
        schedule = Schedule(
            int(options["diffusion_steps"]), float(options["diffusion_noise_precision"]), float(power)
        )
        alphabet, histogram = _dataset(options, folder)
        charges = bool(options["include_charges"])
        factors = [float(factor) for factor in options.get("normalize_factors", (1, 4, 1))]
        if len(factors) != 3 or factors[0] != 1:
            raise ValueError(
                f"{folder}: normalize_factors={options['normalize_factors']!r} is not known here: three, the first 1"
            )
        egnn = EGNN(
            len(alphabet) + charges + 1,
            int(options["nf"]),
            int(options["n_layers"]),
            inv_sublayers=int(options["inv_sublayers"]),
            attention=bool(options["attention"]),
            tanh=bool(options["tanh"]),
            norm_constant=float(options["norm_constant"]),
            normalization_factor=float(options.get("normalization_factor", 1)),
        )
    except KeyError as error:
        raise ValueError(f"{folder}: the options have no {error}, which the model needs") from error
    except TypeError as error:
        raise ValueError(f"{folder}: an option is of another kind: {error}") from error
    return Diffusion(
        egnn,
        histogram=histogram,
        schedule=schedule,
        alphabet=alphabet,
        charges=charges,
        h_scale=factors[1],
        charge_scale=factors[2],
    )


def _dataset(options: dict[str, Any], folder: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Elements and histogram of the molecules that a published model was trained on."""
    heavy = bool(options.get("remove_h", False))
    is_qm9 = options["dataset"] == "qm9"
    alphabet = tuple(options.get("alphabet", ("C", "N", "O", "F") if heavy else ("H", "C", "N", "O", "F")))
    if not is_qm9 and not {"alphabet", "histogram"} <= options.keys():
        raise ValueError(
            f"{folder}: dataset={options['dataset']!r} is not known here, only 'qm9'; say its elements in `alphabet` "
            f"and its molecules by number of atoms in `histogram`, in {_OPTIONS[0]}"
        )
    if unknown := [symbol for symbol in alphabet if symbol not in NUMBERS]:
        raise ValueError(f"{folder}: elements {unknown} are not known here, only {', '.join(NUMBERS)}")
    stated = options.get("histogram", _QM9_HEAVY if heavy else _QM9)
    return alphabet, {int(size): int(count) for size, count in stated.items()}


def _fill(model: Diffusion, state: dict[str, Tensor], path: Path) -> None:
    """Copy weights into a model.

    Raises
    ------
    ValueError
        If names or shapes differ; the message names the first and both shapes.
    """
    wanted = model.state_dict()
    for name, value in wanted.items():
        if name not in state:
            raise ValueError(
                f"{path} has no {name} [{_shape(value)}]; its options say that the model needs it"
            )
        if state[name].shape != value.shape:
            raise ValueError(
                f"{path}: {name} has shape [{_shape(state[name])}], and the model's options ask for [{_shape(value)}]"
            )
    if more := sorted(state.keys() - wanted.keys()):
        raise ValueError(
            f"{path} has {more[0]} [{_shape(state[more[0]])}], which the model's options do not ask for"
        )
    model.load_state_dict(state)


def _shape(value: Tensor) -> str:
    return ", ".join(map(str, value.shape))
