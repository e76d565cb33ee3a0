"""Weights of `Diffusion` in files: those that ship, those of a training of ours, those of the published EDM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...output import one_line
from ...store.files import atomic_write
from .diffusion import Diffusion
from .egnn import EGNN
from .noise import Schedule
from .process import Denoiser
from .published import fill, load_published

__all__ = ["SMILES", "WEIGHTS", "check_n_nodes", "known_smiles", "load_model", "model_place", "save_model"]

WEIGHTS = Path(__file__).with_name("edm_small.safetensors")
"""The shipped weights, of `TrainConfig`'s defaults, as their metadata state: ``mgpu-nb molecules train`` made them in
60 minutes with one thread of an Intel Xeon with AVX-512. Of 256 samples (seed 42) 93 % are stable and 97 % valid with
ddpm of 200 steps."""

SMILES = "smiles"
"""Name in the metadata of what `known_smiles` reads, a JSON list."""


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
    path = model_place(path)
    ours = path.suffix == ".safetensors" and path.is_file()
    model = _load_ours(path) if ours else load_published(path, trust)
    return model.to(device).eval().requires_grad_(False)


def model_place(path: str | Path | None) -> Path:
    """File or folder of a model, as `load_model` takes it.

    Raises
    ------
    ValueError
        If there is none.
    """
    place = WEIGHTS if path is None else Path(path).expanduser()
    if not place.exists():
        raise ValueError(
            f"model_path={str(path)!r} does not exist; give a .safetensors file or a folder of EDM"
        )
    return place


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
            metadata = file.metadata() or {}
            if "model" not in metadata:
                raise ValueError("its metadata has no 'model'")  # noqa: TRY301
            described: dict[str, Any] = json.loads(metadata["model"])
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
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} holds no model of molecules ({type(error).__name__}: {one_line(str(error))}); copy it again if it "
            "is cut off, or train one with `mgpu-nb molecules train`"
        ) from error
    fill(model, state, path)
    return model
