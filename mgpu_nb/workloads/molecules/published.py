"""Models of the published EDM: a state dict of torch.save, and the options that it was trained with."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...output import one_line
from .diffusion import Diffusion
from .egnn import EGNN
from .molecule import NUMBERS
from .noise import Schedule

__all__ = ["FILES", "fill", "load_published"]

Kind = TypeVar("Kind", int, float, bool, str)

_STATES = ("generative_model_ema.npy", "generative_model.npy")  # of torch.save, in spite of the name
_OPTIONS = ("args.json", "config.json")
_PICKLED = "args.pickle"
FILES = (*_STATES, *_OPTIONS, _PICKLED)
"""Files that a published model may be read from."""
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


def load_published(path: Path, trust: bool) -> Diffusion:
    """Load a model of the published EDM.

    Parameters
    ----------
    path
        Its folder, or a state dict in it.
    trust
        Whether its options may be unpickled.

    Raises
    ------
    ValueError
        If a file is missing or of another kind, an option is one that is not known here, or a weight has another
        shape than the options ask for.
    """
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        states = [folder / name for name in _STATES if (folder / name).is_file()]
        if not states:
            raise ValueError(
                f"{folder} has neither {' nor '.join(_STATES)}; give a folder that EDM has written, or a .safetensors "
                "file"
            )
        path = states[0]
    model = _published(*_options(folder, trust, path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler's errors, which torch.load lets through
        # Not what it says: it advises to load the file with weights_only=False, which would run its code.
        raise ValueError(
            f"{path} is no state dict that torch.save wrote, is cut off, or holds more than tensors; save "
            "model.state_dict(), or copy it again"
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
    fill(model, state, path)
    return model


def _options(folder: Path, trust: bool, state: Path) -> tuple[dict[str, Any], Path]:
    """Options that a published model was trained with, by name, and their file."""
    for name in _OPTIONS:
        if (folder / name).is_file():
            try:
                read = json.loads((folder / name).read_text(encoding="utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{folder / name} is no JSON: {error}; {_WRITE}") from error
            if not isinstance(read, dict):
                raise ValueError(
                    f"{folder / name} must hold an object of options, not a {type(read).__name__}; {_WRITE}"
                )
            return read, folder / name
    file = folder / _PICKLED
    if not file.is_file():
        raise ValueError(
            f"{state} is read as a model of EDM, and {folder} has no options of it; it needs {', '.join(_OPTIONS)} or "
            f"{_PICKLED} there. What `mgpu-nb molecules train` has written is a .safetensors file"
        )
    if not trust:
        raise ValueError(
            f"{file} is a pickle, which can run any code when it is read: give trust=True (--trust) if you know where "
            f"it comes from, or write its options to {folder / _OPTIONS[0]}"
        )
    try:
        with file.open("rb") as stream:
            return dict(vars(pickle.load(stream))), file
    except Exception as error:  # whatever a pickle raises
        raise ValueError(
            f"{file} holds no options: {type(error).__name__}: {one_line(str(error))}; write them to "
            f"{folder / _OPTIONS[0]}: {_WRITE}"
        ) from error


def _published(options: dict[str, Any], file: Path) -> Diffusion:
    """Untrained model by the options of the published code."""
    for name, wanted in _FIXED.items():
        if (value := options.get(name, wanted)) != wanted:
            raise ValueError(f"{file}: {name}={value!r} is not known here, only {wanted!r}")
    if options.get("conditioning"):
        raise ValueError(f"{file}: conditioning={options['conditioning']!r} is not known here, only none")
    form = _read(options, "diffusion_noise_schedule", str, file)
    kind, _, power = form.partition("_")
    if kind != "polynomial" or not power.replace(".", "", 1).isdigit():
        raise ValueError(
            f"{file}: diffusion_noise_schedule={form!r} is not known here, only polynomial_2 and other powers"
        )
    steps = _read(options, "diffusion_steps", int, file)
    precision = _read(options, "diffusion_noise_precision", float, file)
    try:
        schedule = Schedule(steps, precision, float(power))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    alphabet, histogram = _dataset(options, file)
    charges = _read(options, "include_charges", bool, file)
    factors = options.get("normalize_factors", (1, 4, 1))
    if not _are_numbers(factors) or len(factors) != 3 or factors[0] != 1 or not all(factors):
        raise ValueError(f"{file}: normalize_factors={factors!r} is not known here: three, the first 1")
    with_default = {"normalization_factor": 1.0, **options}
    egnn = EGNN(
        len(alphabet) + charges + 1,
        _read(options, "nf", int, file),
        _read(options, "n_layers", int, file),
        inv_sublayers=_read(options, "inv_sublayers", int, file),
        attention=_read(options, "attention", bool, file),
        tanh=_read(options, "tanh", bool, file),
        norm_constant=_read(options, "norm_constant", float, file),
        normalization_factor=_read(with_default, "normalization_factor", float, file),
    )
    return Diffusion(
        egnn,
        histogram=histogram,
        schedule=schedule,
        alphabet=alphabet,
        charges=charges,
        h_scale=float(factors[1]),
        charge_scale=float(factors[2]),
    )


_ONE = "give weights and options of one training"
_WRITE = "json.dump(vars(args), file) writes them"
_WORDS = {int: "an integer of 1 and more", float: "a number", bool: "true or false", str: "a string"}


def _read(options: dict[str, Any], name: str, kind: type[Kind], file: Path) -> Kind:
    """Option of the published code, of one kind.

    Raises
    ------
    ValueError
        If it is missing or of another kind.
    """
    if name not in options:
        raise ValueError(f"{file}: there is no {name!r}, which the model needs: add what it was trained with")
    value = options[name]
    whole = isinstance(value, int) and not isinstance(value, bool)
    fits = {
        int: whole and value >= 1,
        float: _are_numbers([value]),
        bool: isinstance(value, bool),
        str: isinstance(value, str),
    }
    if not fits[kind]:
        raise ValueError(f"{file}: {name}={value!r} is not {_WORDS[kind]}")
    return kind(value)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        for value in values
    )


def _dataset(options: dict[str, Any], file: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Elements and histogram of the molecules that a published model was trained on."""
    heavy = _read({"remove_h": False, **options}, "remove_h", bool, file)
    dataset = _read(options, "dataset", str, file)
    if dataset != "qm9" and not {"alphabet", "histogram"} <= options.keys():
        raise ValueError(
            f"{file}: dataset={dataset!r} is not known here, only 'qm9'; say its elements in `alphabet` "
            f"and its molecules by number of atoms in `histogram`, in {_OPTIONS[0]}"
        )
    alphabet = options.get("alphabet", ("C", "N", "O", "F") if heavy else ("H", "C", "N", "O", "F"))
    if (
        not isinstance(alphabet, (list, tuple))
        or not alphabet
        or len(set(map(str, alphabet))) < len(alphabet)
    ):
        raise ValueError(f"{file}: alphabet={alphabet!r} is no list of different elements")
    if unknown := [symbol for symbol in map(str, alphabet) if symbol not in NUMBERS]:
        raise ValueError(f"{file}: elements {unknown} are not known here, only {', '.join(NUMBERS)}")
    stated = options.get("histogram", _QM9_HEAVY if heavy else _QM9)
    try:
        histogram = {int(size): int(count) for size, count in stated.items()}
    except (AttributeError, TypeError, ValueError):
        histogram = {}
    if not histogram or min(histogram) < 1 or min(histogram.values()) < 0 or not any(histogram.values()):
        raise ValueError(f"{file}: histogram={stated!r} is no object of molecules by number of atoms")
    return tuple(map(str, alphabet)), histogram


def fill(model: Diffusion, state: dict[str, Tensor], path: Path) -> None:
    """Copy weights into a model.

    Raises
    ------
    ValueError
        If names or shapes differ, or a weight is not finite; the message names the first, and both shapes.
    """
    wanted = model.state_dict()
    for name, value in wanted.items():
        if name not in state:
            raise ValueError(
                f"{path} has no {name} [{_shape(value)}]; its options say that the model needs it; {_ONE}"
            )
        if state[name].shape != value.shape:
            raise ValueError(
                f"{path}: {name} has shape [{_shape(state[name])}], and the model's options ask for [{_shape(value)}]; "
                f"{_ONE}"
            )
        if not state[name].is_floating_point() or not state[name].isfinite().all():
            raise ValueError(
                f"{path}: {name} has weights that are no finite floating-point numbers; take an earlier file"
            )
    if more := sorted(state.keys() - wanted.keys()):
        raise ValueError(
            f"{path} has {one_line(more[0])} [{_shape(state[more[0]])}], which the model's options do not ask for; "
            f"{_ONE}"
        )
    model.load_state_dict(state)


def _shape(value: Tensor) -> str:
    return ", ".join(map(str, value.shape))
