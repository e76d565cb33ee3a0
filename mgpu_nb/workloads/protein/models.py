"""Choosing a model and loading its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...signature import refusal
from ..inputs import check_imports
from .config import WORKER_IMPORTS, Config
from .functions import load_function

if TYPE_CHECKING:
    import torch

__all__ = ["check_model", "load_checkpoint", "load_model"]

_FACTORY = "a factory is a callable without arguments that returns an nn.Module"


def check_model(model: str, checkpoint: str | None, python: str | None = None) -> None:
    """Check that a model can be had, without building it; `python` is the interpreter of the workers.

    Raises
    ------
    TypeError, ValueError
        If a factory does not import or wants arguments, a checkpoint is no file or none of ca_net, or packages or
        weights of a known model are missing; the message says which.
    """
    if checkpoint is not None and not Path(checkpoint).expanduser().is_file():
        raise ValueError(
            f"checkpoint={checkpoint!r} is no file; give a .safetensors file or one that torch.save wrote"
        )
    if model == "foldflow2":
        from .foldflow2 import check

        check(checkpoint, python)
    elif python is not None:
        needed = [*WORKER_IMPORTS, model.partition(":")[0]] if ":" in model else WORKER_IMPORTS
        check_imports(python, needed, f"model={model!r}", "Install there what is missing")
    elif ":" in model:
        factory = load_function(model, "model", _FACTORY)
        if reason := refusal(factory):
            raise TypeError(f"model={model!r} cannot be called ({reason}): {_FACTORY}")
    elif model == "ca_net" and checkpoint is not None:
        from .ca_net import load_ca_net

        load_ca_net(Path(checkpoint).expanduser())


def load_model(config: Config, device: str) -> torch.nn.Module:
    """Build the model of a run, with its weights, on `device` and ready to evaluate.

    Raises
    ------
    TypeError, ValueError
        If a factory gives no nn.Module, or weights do not fit.
    """
    import torch

    model: object
    if config.model == "mixture":
        from .mixture import Mixture
        from .structures import reference_folds

        model = Mixture(torch.from_numpy(reference_folds(config).positions))
    elif config.model == "ca_net":
        from .ca_net import WEIGHTS, load_ca_net

        model = load_ca_net(config.checkpoint or WEIGHTS)
    elif config.model == "foldflow2":
        from .foldflow2 import foldflow2

        model = foldflow2(config.checkpoint)
    else:
        model = load_function(config.model, "model", _FACTORY)()
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"model={config.model!r} made a {type(model).__name__}; a factory must return an nn.Module"
        )
    if config.checkpoint is not None and ":" in config.model:
        load_checkpoint(model, config.checkpoint)
    return model.to(device).eval().requires_grad_(False)


def load_checkpoint(model: torch.nn.Module, path: str | Path) -> None:
    """Load weights into `model`; nothing of the file is executed.

    Parameters
    ----------
    model
        Takes all weights of the file, and needs no other.
    path
        A .safetensors file, or one of `torch.save` with a state dict, bare or under the key ``state_dict``
        or ``model``.

    Raises
    ------
    TypeError, ValueError
        If the file is not of these kinds or its names and shapes are not those of the model.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path).expanduser()
    try:
        state: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error}") from error
    except Exception as error:  # the unpickler's errors, which torch.load lets through
        wanted = "save model.state_dict(), or use safetensors"
        raise ValueError(
            f"checkpoint {path} holds more than weights, and nothing else is loaded; {wanted}: {error}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise TypeError(
            f"checkpoint {path} holds a {type(state).__name__}, not a state dict; save model.state_dict()"
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"checkpoint {path} does not fit {type(model).__name__}: {error}") from error
