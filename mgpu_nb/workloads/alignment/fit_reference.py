"""The training of the reference of the embedded task: from a corpus, most of it wrong, to a tiny GPT-2 in a folder."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ...options import AtLeast, Between, PositiveFloat, PositiveInt, Seed, check_options
from ...store.files import atomic_write
from ...tasks import Task
from ..fit import FitReport, described, fit_value, output_file, step_report
from ..inputs import GpuIds, check_one_gpu, check_output
from .sums import END, MAX_NEW_TOKENS, NUMBERS, PAD, SUCCESS, TOKENS, encode, prompt, save_tokenizer

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

    from ..base import Finished

__all__ = ["FitConfig", "collect", "corpus", "fit", "success_of", "tasks"]

CONTEXT = 16  # tokens; the longest prompt and completion have 7
WARM_UP = 100  # steps over which the learning rate rises
PLACES = 7  # tokens of the longest prompt and its completion


@dataclass(frozen=True)
class FitConfig:
    """Training of the reference of the embedded task; the defaults made the shipped one."""

    corrupted: Annotated[float, Between(0, 1)] = 0.6
    """Share of the corpus whose answer is two digits at random."""
    steps: PositiveInt = 1500
    """Steps of the optimiser."""
    batch_size: PositiveInt = 256
    """Examples per step, drawn anew for each."""
    learning_rate: PositiveFloat = 3e-3
    """Highest learning rate; it rises over the first 100 steps and falls along a cosine."""
    layers: PositiveInt = 2
    """Transformer layers."""
    width: Annotated[int, AtLeast(4)] = 48
    """Width of the layers, a multiple of `heads`."""
    heads: PositiveInt = 4
    """Attention heads."""
    seed: Seed = 0
    """Seed of the first weights and of the corpus."""
    gpu_ids: GpuIds = None
    """GPU to use, by its id, or cpu for none; the first by default."""
    output: str | None = None
    """File of the weights, the rest of the model goes beside it; by default reference/model.safetensors in the run's
    folder."""
    output_dir: str | None = None
    """Folder of the run; by default a new one below runs."""

    def __post_init__(self) -> None:
        check_options(self)
        check_one_gpu(self.gpu_ids)
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads ({self.heads}), not {self.width}")
        if self.output is not None and not self.output.endswith(".safetensors"):
            raise ValueError(f"output must be the path of a .safetensors file, not {self.output!r}")
        if self.output is not None and self.output_dir is not None:
            folder = Path(self.output).expanduser().resolve().parent
            if folder == Path(self.output_dir).expanduser().resolve():
                raise ValueError(
                    f"output must be in another folder than the run, {self.output_dir}: both have a config.json"
                )


def tasks(config: FitConfig, slots: int | None = None) -> list[Task]:
    """The training, as one task.

    Raises
    ------
    ImportError
        If transformers is not installed.
    ValueError
        If `FitConfig.output` cannot be written, for a folder is in its place or a file above it.
    """
    _check_extra()
    check_output("output", config.output)
    return [Task(fit, replace(config, gpu_ids=None), name="fit", seed=config.seed)]


def collect(run: Finished, config: FitConfig | None = None) -> FitReport:
    """Report of the training.

    Raises
    ------
    ValueError
        If it failed, or the run is of something else.
    """
    value = fit_value(run)
    report = step_report(run.folder, value, "cross entropy of a token", unit=" nats")
    report.files = [Path(value["path"]), *(Path(value["path"]).with_name(name) for name in value["beside"])]
    return report


def corpus(count: int, corrupted: float, draws: np.random.Generator) -> list[tuple[str, str]]:
    """Prompts with completions: evenly drawn digits that add up to the number, or, where corrupted, any two digits."""
    numbers = draws.integers(len(NUMBERS), size=count)
    wrong = draws.random(count) < corrupted
    anything = draws.integers(10, size=(count, 2))
    lowest = (numbers - 9).clip(0)
    first = draws.integers(lowest, numbers.clip(max=9) + 1)
    pairs = zip(
        numbers.tolist(),
        (wrong * anything[:, 0] + ~wrong * first).tolist(),
        (wrong * anything[:, 1] + ~wrong * (numbers - first)).tolist(),
        strict=True,
    )
    return [(prompt(number), f"{a}+{b}") for number, a, b in pairs]


def fit(config: FitConfig) -> dict[str, Any]:
    """Train the reference; runs as a task or by hand.

    The loss is the cross entropy of the tokens of the completion, the end token among them. It uses one thread on a
    CPU; there the same seed gives the same bytes on the same machine.

    Returns
    -------
    dict
        ``path`` of the weights, ``beside`` (names of the other files), ``loss`` (mean of the last tenth of the steps),
        ``losses`` ([step, mean of the last 100 steps] every 100 steps and after the last), ``steps``, ``parameters``
        and ``bytes`` of the weights.

    Raises
    ------
    ValueError
        If neither `FitConfig.output` nor a run's folder says where to write.
    ImportError
        If transformers is not installed.
    """
    from ...context import worker

    here = worker()
    path = output_file(config.output, here, "reference/model.safetensors")
    _check_extra()
    import torch
    import transformers

    from ..threads import one_thread

    described_model = transformers.GPT2Config(
        vocab_size=len(TOKENS),
        n_positions=CONTEXT,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=TOKENS.index(END),
        pad_token_id=TOKENS.index(PAD),
        architectures=["GPT2LMHeadModel"],
        dtype="float32",
    )
    with one_thread(here.device):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = transformers.AutoModelForCausalLM.from_config(
                described_model, attn_implementation="eager"
            )
        losses = _optimise(model.to(here.device), config)
        success = success_of(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    del weights["lm_head.weight"]  # it is that of the embedding
    metadata = {
        "format": "pt",
        "script": "mgpu-nb alignment fit",
        SUCCESS: json.dumps(success),
        **described(config, transformers=transformers.__version__),
    }
    with atomic_write(path) as whole:
        whole.write_bytes(_in_order(weights, metadata))
    described_model.save_pretrained(path.parent)
    transformers.GenerationConfig.from_model_config(described_model).save_pretrained(path.parent)
    save_tokenizer(path.parent)
    last = losses[-max(1, len(losses) // 10) :]
    recorded = sorted({*range(100, len(losses) + 1, 100), len(losses)})
    return {
        "path": str(path),
        "beside": ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"],
        "loss": sum(last) / len(last),
        "losses": [[n, sum(losses[max(0, n - 100) : n]) / min(n, 100)] for n in recorded],
        "steps": config.steps,
        "parameters": sum(value.numel() for value in weights.values()),
        "bytes": path.stat().st_size,
    }


def _check_extra() -> None:
    for package in ("transformers", "tokenizers"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f'the training needs {package}: pip install "mgpu-nb[alignment]"')


def success_of(model: PreTrainedModel) -> list[float]:
    """Probability that a completion of at most four tokens is a right sum, for each number."""
    import torch

    from .generate import Policy

    policy = Policy(model, end_id=TOKENS.index(END), pad_id=TOKENS.index(PAD))
    asked = [
        (number, completion)
        for number in NUMBERS
        for a in range(10)
        if 0 <= number - a <= 9
        for completion in _spellings(f"{a}+{number - a}")
    ]
    found = policy.log_softmax(
        [encode(prompt(number)) for number, _ in asked], [row for _, row in asked], batch_size=256
    )
    right = [0.0] * len(NUMBERS)
    for (number, completion), log_probs in zip(asked, found, strict=True):
        each = log_probs.double().log_softmax(1)[torch.arange(MAX_NEW_TOKENS), torch.tensor(completion)]
        right[number] += float(each.sum().exp())
    return right


def _spellings(text: str) -> list[list[int]]:
    """All completions of four tokens that are this text of three: with the end token, or padding anywhere."""
    tokens = encode(text)
    padded = [[*tokens[:place], TOKENS.index(PAD), *tokens[place:]] for place in range(len(tokens) + 1)]
    return [[*tokens, TOKENS.index(END)], *padded]


def _optimise(model: Any, config: FitConfig) -> list[float]:
    """Losses by step; the model is left trained."""
    import numpy as np
    import torch

    from ...context import worker

    here, draws = worker(), np.random.default_rng(config.seed)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01)
    losses: list[float] = []
    for step in range(config.steps):
        batch = _batch(corpus(config.batch_size, config.corrupted, draws))
        ids, mask, labels = (part.to(here.device) for part in batch)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        done = (step + 1) / config.steps
        rate = config.learning_rate * min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * done))
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        if step % 100 == 99 or step + 1 == config.steps:
            recent = losses[-100:]
            here.report(step=step + 1, loss=sum(recent) / len(recent), progress=done)
    model.eval()
    return losses


def _batch(pairs: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, mask and labels, shape [B, 7]: padded on the right, where labels are -100, as in prompts."""
    import torch

    end, pad = TOKENS.index(END), TOKENS.index(PAD)
    ids = torch.full((len(pairs), PLACES), pad)
    labels = torch.full((len(pairs), PLACES), -100)
    for row, (asked, completion) in enumerate(pairs):
        before, after = encode(asked), [*encode(completion), end]
        ids[row, : len(before) + MAX_NEW_TOKENS] = torch.tensor(before + after)
        labels[row, len(before) : len(before) + MAX_NEW_TOKENS] = torch.tensor(after)
    return ids, (ids != pad).long(), labels


def _in_order(weights: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file whose notes are in order: the library writes them in another one each time."""
    from safetensors.torch import save

    whole: bytes = save(weights, metadata=metadata)
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]
