"""The value model: the small guide with a head that predicts the reward behind each token, and the policy it guides."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...store.files import atomic_write
from .batches import Tokens, new_cache, run_model
from .laws import Law, law_named

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

__all__ = ["Guided", "ValueModel"]

WEIGHTS, ABOUT = "value.safetensors", "value.json"
SCALE = 100.0
"""What the head is multiplied by. Under Adam, whose steps have one size, it learns so many times as fast as the body:
it begins at nothing, and the body has most of what it needs. On the embedded task round 1 of Q# is at .88, not .62.
"""
GATHERED = 1 << 24
"""Most numbers of the head that are gathered at a time."""


class ValueModel(nn.Module):
    """Body of a causal language model, and a head that is zero at first: values of all next tokens.

    Parameters
    ----------
    backbone
        Model without its language head (``model.base_model``): hidden states [B, T, H].
    vocabulary
        V, tokens of the reference model.
    law
        Law of a value; its atoms A are the numbers per token.
    """

    def __init__(self, backbone: PreTrainedModel, vocabulary: int, law: Law) -> None:
        super().__init__()
        self.backbone, self.vocabulary, self.law = backbone, vocabulary, law
        like = {"device": backbone.device, "dtype": torch.float32}
        self.weight = nn.Parameter(torch.zeros(vocabulary, law.atoms, backbone.config.hidden_size, **like))
        self.bias = nn.Parameter(torch.zeros(vocabulary, law.atoms, **like))

    def forward(self, tokens: Tokens) -> Tensor:
        """Values of all tokens after each token of a batch, float32 [B, T, V, A]."""
        return self.values(self.features(tokens, None, tokens.ids.shape[1]))

    def features(self, tokens: Tokens, cache: Cache | None, keep: int) -> Tensor:
        """Hidden states that `values` takes.

        Parameters
        ----------
        tokens
            The batch; with a cache its mask also covers what is in the cache.
        cache
            Keys and values of what came before, extended in place; None for a pass without.
        keep
            For how many of the last columns.

        Returns
        -------
        Tensor
            float32 [B, keep, H].
        """
        states: Tensor = run_model(self.backbone, tokens, cache).last_hidden_state
        return states[:, states.shape[1] - keep :].float()

    def values(self, features: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Values of tokens after hidden states.

        Parameters
        ----------
        features
            Hidden states [..., H].
        tokens
            Tokens of each [..., K], whose rows of the head alone are multiplied; by default all, in one product.

        Returns
        -------
        Tensor
            Values [..., K or V, A].
        """
        if tokens is None:
            flat = nn.functional.linear(features, self.weight.flatten(0, 1), self.bias.flatten())
            return flat.view(*features.shape[:-1], *self.bias.shape) * SCALE
        states, chosen = features.reshape(-1, features.shape[-1]), tokens.reshape(-1, tokens.shape[-1])
        count = max(1, GATHERED // (chosen.shape[-1] * self.weight[0].numel()))
        parts = [
            torch.einsum("nh,nkah->nka", state, self.weight[token]) + self.bias[token]
            for state, token in zip(states.split(count), chosen.split(count), strict=True)
        ]
        return torch.cat(parts).view(*tokens.shape, -1) * SCALE

    def save(self, folder: Path) -> None:
        """Write weights as safetensors, the configuration of the body, and what the head is, as JSON."""
        self.backbone.config.save_pretrained(folder)
        about = {"law": self.law.name, "atoms": self.law.atoms, "vocabulary": self.vocabulary}
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with atomic_write(folder / WEIGHTS) as path:
            save_file(weights, path)
        with atomic_write(folder / ABOUT) as path:
            path.write_text(json.dumps(about))

    @classmethod
    def load(cls, folder: Path, device: torch.device | str, attn_impl: str = "eager") -> Self:
        """Value model that `save` wrote, in eval mode.

        Raises
        ------
        ValueError
            If the folder holds none, or one that is damaged.
        """
        from transformers import AutoConfig, AutoModel

        try:
            about = json.loads((folder / ABOUT).read_text())
            law = law_named(about["law"], about["atoms"])
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            weights = load_file(folder / WEIGHTS)
            kept = [weight.dtype for name, weight in weights.items() if name.startswith("backbone.")]
            with torch.random.fork_rng(devices=[]):  # first weights are drawn, and replaced
                backbone = AutoModel.from_config(config, attn_implementation=attn_impl, dtype=kept[0])
            model = cls(backbone, about["vocabulary"], law)
            model.load_state_dict(weights)
        except Exception as error:
            raise ValueError(
                f"{str(folder)!r} holds no value model that can be read ({type(error).__name__}: {error}); "
                "train its round again"
            ) from error
        return model.to(device).eval()


class Guided:
    """Guidance of a policy: ``pi(a | s) ~ ref(a | s) exp(offset(a | s))`` with the offset of the value model.

    Offsets are added to the `top_k` likeliest tokens of the reference; the logits of others stay. That is still one
    policy with the support of the reference, sampled and evaluated alike: others have the offset 0, which is that of
    sure failure by the Bernoulli and the categorical law, and that of an even preference by PITA's. So they are never
    raised, their share falls as eta grows, KL is finite, and at eta 0 the policy is the reference.

    Parameters
    ----------
    model
        The value model.
    eta
        Strength, >= 0: 0 leaves logits as they are, bit for bit.
    top_k
        Tokens that are guided, >= 1; as many as there are if it is more.

    Raises
    ------
    ValueError
        If a number is out of its range.
    """

    def __init__(self, model: ValueModel, eta: float, top_k: int) -> None:
        if not (math.isfinite(eta) and eta >= 0):
            raise ValueError(f"eta must be a finite number >= 0, got {eta!r}")
        if top_k < 1:
            raise ValueError(f"top_k must be >= 1, got {top_k!r}")
        self.model, self.eta, self.top_k = model, eta, top_k

    def new_cache(self) -> Cache:
        """Empty keys and values for `values`."""
        return new_cache(self.model.backbone)

    def values(self, tokens: Tokens, cache: Cache | None, keep: int) -> Tensor:
        """What `adjust` makes values of: hidden states of the guide, float32 [B, keep, H].

        So the head is applied to the tokens alone that are guided. Parameters as those of `ValueModel.features`.
        """
        return self.model.features(tokens, cache, keep)

    def adjust(self, logits: Tensor, values: Tensor) -> Tensor:
        """Logits of the guided policy.

        Parameters
        ----------
        logits
            Those of the reference [N, V].
        values
            Hidden states of the guide at the same places [N, H], of `values`.
        """
        if self.eta == 0:
            return logits
        if self.top_k >= self.model.vocabulary:
            offset = self.model.law.offset(self.model.values(values), self.eta)
            return logits + offset.to(logits.dtype)
        top = logits.topk(self.top_k).indices
        offset = self.model.law.offset(self.model.values(values, top), self.eta)
        return logits.scatter_add(-1, top, offset.to(logits.dtype))
