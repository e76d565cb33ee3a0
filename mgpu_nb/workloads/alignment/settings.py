"""Settings of an alignment: the keys of ``conf/config.yaml`` as checked, plain data."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ...options import (
    AtLeast,
    Between,
    Matches,
    NonEmpty,
    NonNegativeFloat,
    NonNegativeInt,
    OptionTypeError,
    PositiveFloat,
    PositiveInt,
    Unique,
    check_choice,
    check_options,
    check_value,
)
from .layers import Choices, merged, split_override
from .schema import Checked, Section, Where, section_of
from .sources import DATASETS, DatasetSettings, Gsm8kData, ImdbData, ModelPair, Split, SumsData, TableData

__all__ = [
    "ALGOS",
    "DATASETS",
    "DPO",
    "GRPO",
    "GRPOHF",
    "AlgoSettings",
    "DataCollection",
    "DatasetSettings",
    "Evaluation",
    "Experiment",
    "Generation",
    "Gsm8kData",
    "ImdbData",
    "ModelPair",
    "Settings",
    "SumsData",
    "System",
    "TableData",
    "Training",
    "ValueGuided",
    "check_override",
    "from_plain",
    "load_settings",
]

Name = Annotated[
    str,
    Matches(
        re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"),
        "a name of at most 64 letters, digits, '-' and '_' that begins with a letter or digit",
    ),
]
TopP = Annotated[float, Between(0, 1, low_open=True)]


@dataclass(frozen=True)
class Experiment(Checked):
    """What the run is called."""

    name: Name = "alignment"
    """Names the run's folder, ``outputs/<name>/seed_<seed>``."""


@dataclass(frozen=True)
class Generation(Checked):
    """How completions are sampled while data are collected."""

    max_new_tokens: PositiveInt
    """Longest completion, tokens; a data set may have its own."""
    temperature: PositiveFloat = 0.8
    """Logits are divided by it."""
    top_p: TopP = 0.9
    """Mass of the most probable tokens that are sampled from."""
    batch_size: PositiveInt = 8
    """Prompts that a slot generates for at once."""


@dataclass(frozen=True)
class Training(Checked):
    """How a training uses the memory of a card."""

    micro_batch_size: PositiveInt = 4
    """Examples of a forward and backward pass; divides the batch size of each algorithm, to which gradients add up."""
    gradient_checkpointing: bool = True
    """Compute activations twice rather than keep them."""


@dataclass(frozen=True)
class DataCollection(Checked):
    """What is generated in a round, and how it is scored."""

    samples_per_example: PositiveInt = 4
    """Samples of an example per round."""
    max_examples: PositiveInt | None = None
    """Number of training examples of a data set; None for all."""
    reward_batch_size: PositiveInt = 32
    """Largest number of texts that a reward gets in one call."""
    bradley_terry_sampling: bool = True
    """Draw which completion is preferred; otherwise it is the one with the larger reward."""
    beta: NonNegativeFloat = 1.0
    """The first is preferred with probability sigmoid(beta (r_a - r_b))."""
    examples_per_task: PositiveInt = 16
    """Examples of a task of data generation. It does not depend on the number of slots, and so data do not either."""


@dataclass(frozen=True)
class Evaluation(Checked):
    """How the policies are compared with the reference."""

    etas: Annotated[tuple[NonNegativeFloat, ...], NonEmpty(), Unique()]
    """Strengths at which a value-guided policy is evaluated; at 0 it is the reference."""
    samples_per_example: PositiveInt = 8
    """Samples of a test example: k of maj@k."""
    max_examples: PositiveInt | None = None
    """Number of test examples of a data set; None for all."""
    temperature: PositiveFloat = 1.0
    """Logits are divided by it."""
    top_p: TopP = 1.0
    """Mass of the most probable tokens that are sampled from."""


@dataclass(frozen=True)
class System(Checked):
    """How the machine is used."""

    attn_impl: Literal["eager", "sdpa", "flash_attention_2"] = "eager"
    """Attention of the models, as transformers names it."""
    clear_cache_interval: NonNegativeInt = 10
    """Steps between two calls of torch.cuda.empty_cache; 0 for none."""
    use_parallel_execution: bool = True
    """Whether jobs share all slots; otherwise there is one slot, and one job after the other."""
    by_round: bool = False
    """Begin a round when every job of the round before has ended, as a barrier would."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attn_impl == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
            raise ValueError(
                "system.attn_impl=flash_attention_2 needs the package flash-attn, which is not installed: "
                "give system.attn_impl=eager or sdpa"
            )


@dataclass(frozen=True, kw_only=True)
class AlgoSettings(Checked):
    """What all algorithms have."""

    enabled: bool = True
    """Whether it runs."""
    batch_size: PositiveInt
    """Examples of a step of the optimiser."""
    num_workers: NonNegativeInt = 0
    """Processes that load data for a training; with 0 it does so itself."""
    learning_rate: PositiveFloat
    """Largest step size of the optimiser."""
    epochs: PositiveInt
    """Passes over the data of a round."""


@dataclass(frozen=True, kw_only=True)
class ValueGuided(AlgoSettings):
    """PITA and QSharp: a value model guides the reference."""

    eta: NonNegativeFloat
    """Strength at which data of later rounds are generated."""
    top_k: PositiveInt = 20
    """Number of the reference's most probable tokens that the values change."""
    value_penalty: NonNegativeFloat
    """Weight of half the sum of their squared values in the loss of a token, which keeps those without data at 0."""
    law: Literal["bernoulli", "categorical"] = "bernoulli"
    """Law of the reward after a token: of success, or over `atoms` values from 0 to 1. PITA has the first alone."""
    atoms: Annotated[int, AtLeast(2)] = 11
    """Values of the categorical law."""


@dataclass(frozen=True, kw_only=True)
class DPO(AlgoSettings):
    """Direct preference optimisation."""

    beta: PositiveFloat
    """Weight of the log-ratios, the inverse of eta."""
    sft_weight: NonNegativeFloat
    """Weight of the mean negative log-likelihood of the chosen completion; 0 for none."""


@dataclass(frozen=True, kw_only=True)
class GRPO(AlgoSettings):
    """Group relative policy optimisation on completions that the policy draws meanwhile, ``batch_size`` of them a step.

    They are drawn from the policy as it is, at temperature 1 and from all tokens, for its ratio and divergence are of
    these probabilities.
    """

    steps: PositiveInt
    """Batches of prompts of an epoch that completions are drawn for, each in turn."""
    prompts_per_step: PositiveInt
    """Prompts of such a batch."""
    group_size: Annotated[int, AtLeast(2)]
    """Completions of a prompt, which are compared with each other."""
    clip: Annotated[float, Between(0, 1, low_open=True, high_open=True)] = 0.2
    """The ratio of probabilities counts from 1 - clip to 1 + clip."""
    beta: NonNegativeFloat
    """Weight of the divergence from the reference."""
    iterations: PositiveInt
    """Passes over the completions of a batch of prompts."""


@dataclass(frozen=True, kw_only=True)
class GRPOHF(GRPO):
    """GRPO on the scores of a reward model, which is fitted to pairs in the same batch size."""

    reward_learning_rate: PositiveFloat
    """Largest step size while the reward model is fitted."""
    reward_epochs: PositiveInt
    """Passes over the pairs of all rounds."""


ALGOS: dict[str, type[AlgoSettings]] = {
    "PITA": ValueGuided,
    "QSharp": ValueGuided,
    "DPO": DPO,
    "GRPO": GRPO,
    "GRPO-HF": GRPOHF,
}
"""Settings of each algorithm."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings; mappings hold what is enabled alone, in the order of the YAML.

    Raises
    ------
    ValueError
        If two settings do not fit each other, or nothing is enabled.
    """

    experiment: Experiment
    rounds_of_training: PositiveInt
    system: System
    generation: Generation
    training: Training
    data_collection: DataCollection
    evaluation: Evaluation
    models: Mapping[str, ModelPair]
    datasets: Mapping[str, DatasetSettings]
    algos: Mapping[str, AlgoSettings]

    def __post_init__(self) -> None:
        check_options(self)
        for group, remedy in _REMEDIES.items():
            if not getattr(self, group):
                raise ValueError(f"{group} has none that is enabled: give {remedy}")
        micro = self.training.micro_batch_size
        for name, algo in self.algos.items():
            if algo.batch_size % micro:
                raise ValueError(
                    f"training.micro_batch_size must divide algos.{name}.batch_size, {algo.batch_size}, got {micro}: "
                    f"give {' or '.join(str(n) for n in _divisors(algo.batch_size, micro))}"
                )
            if name != "QSharp" and getattr(algo, "law", "bernoulli") != "bernoulli":
                raise ValueError(
                    f"algos.{name}.law must be bernoulli, for preferences are won or lost; "
                    "algos.QSharp.law may be categorical"
                )
            of_probabilities = [key for key, data in self.datasets.items() if data.kind == "imdb"]
            if name == "QSharp" and of_probabilities and getattr(algo, "law", "") == "bernoulli":
                raise ValueError(
                    f"algos.{name}.law=bernoulli takes rewards of 0 and 1, and those of "
                    f"datasets.{of_probabilities[0]} are probabilities: give algos.{name}.law=categorical"
                )
        for order in ("{data}_{family}", "{family}_{data}"):  # in files and in jobs
            names = [
                order.format(data=data, family=family) for data in self.datasets for family in self.models
            ]
            counts = Counter(name.casefold() for name in names)
            if clash := next((name for name, count in counts.items() if count > 1), None):
                raise ValueError(f"two pairs of models and data sets have the name {clash}: rename one")

    def generation_for(self, dataset: str) -> Generation:
        """How completions are sampled for a data set, which may have a length of its own."""
        own = self.datasets[dataset].max_new_tokens
        return self.generation if own is None else dataclasses.replace(self.generation, max_new_tokens=own)

    @property
    def limits(self) -> dict[Split, int | None]:
        """Largest number of examples of each split of a data set; None for all."""
        return {"train": self.data_collection.max_examples, "test": self.evaluation.max_examples}

    def plain(self) -> dict[str, Any]:
        """The settings as values of JSON, for `from_plain`."""
        return dataclasses.asdict(self)


_REMEDIES = {
    "algos": "algos.PITA.enabled=true, say",
    "models": "models.llama.reference=/folder/of/a/model, say, or leave models.gpt2=null out",
    "datasets": "datasets.gsm8k.train=... and datasets.gsm8k.test=..., say, or leave datasets.sums=null out",
}


def _divisors(batch: int, micro: int) -> list[int]:
    """The nearest divisors of a batch size, below and above."""
    every = [n for n in range(1, batch + 1) if batch % n == 0]
    below, above = [n for n in every if n < micro], [n for n in every if n > micro]
    return below[-1:] + above[:1]


_PAIR = section_of(ModelPair)
_DATASET = Section.union([section_of(kind) for kind in DATASETS.values()])
SCHEMA = section_of(Settings).with_sections(
    models=Section(sections=dict.fromkeys(("gpt2", "llama", "gemma", "phi"), _PAIR), other=_PAIR),
    datasets=Section(sections=dict.fromkeys(("sums", "gsm8k", "imdb"), _DATASET), other=_DATASET),
    algos=Section(sections={name: section_of(kind) for name, kind in ALGOS.items()}),
)
"""Every key that there is."""

DEFINES = {"models": "reference", "datasets": "kind"}
"""Key that an entry of another name must have."""


def load_settings(config: Choices) -> Settings:
    """Settings of ``conf/config.yaml``, profiles, the user's YAML and overrides, each over those before.

    Raises
    ------
    ValueError, TypeError
        If a key is unknown, a value invalid or missing, or a file no YAML; the message names the key and the file, the
        value, what is accepted and the nearest key.
    OSError
        If a file cannot be read.
    ImportError
        If OmegaConf is not installed.
    """
    plain, where = merged(config, SCHEMA, DEFINES)
    return from_plain(plain, where)


def check_override(override: str) -> None:
    """Check that an override is ``key=value`` of a key that there is.

    Raises
    ------
    ValueError
        If it is not; the message names the nearest key.
    """
    split_override(override, SCHEMA)


def from_plain(plain: Mapping[str, Any], where: Where = lambda key: "") -> Settings:
    """Settings of plain values, as YAML and JSON have them.

    Parameters
    ----------
    plain
        Values by key.
    where
        What a message has behind the value of a dotted key, where it comes from.

    Raises
    ------
    ValueError, TypeError
        If a value is invalid or missing.
    """
    made: dict[str, Any] = {}
    for name, section in SCHEMA.sections.items():
        if section.kind is not None:
            made[name] = section.make(name, plain.get(name), where)
    for name in SCHEMA.leaves:
        made[name] = SCHEMA.value(name, name, plain.get(name), where)
    for group, kind_of in (("models", _pair), ("datasets", _dataset), ("algos", _algo)):
        made[group] = _entries(group, plain.get(group), where, kind_of)
    return Settings(**made)


_Entry = tuple[type[Any], dict[str, Any]]


def _entries(
    group: str, entries: object, where: Where, kind_of: Callable[[str, str, dict[str, Any]], _Entry | None]
) -> dict[str, Any]:
    """Entries of a group that are enabled, by name; `kind_of` gives the class of an entry and its values."""
    if not isinstance(entries, Mapping):
        raise OptionTypeError(f"{group} must be a mapping of names, got {entries!r}{where(group)}")
    found = {}
    for name, entry in entries.items():
        key = f"{group}.{name}"
        if entry is None:
            continue
        check_value(f"a name in {group}", name, Name)
        if not isinstance(entry, Mapping):
            raise OptionTypeError(
                f"{key} must be a mapping, or null to leave it out, got {entry!r}{where(key)}"
            )
        if (kind := kind_of(key, name, dict(entry))) is not None:
            made = section_of(kind[0]).make(key, kind[1], where)
            if made.enabled:
                found[name] = made
    return found


def _algo(key: str, name: str, entry: dict[str, Any]) -> _Entry:
    return ALGOS[check_choice(name, ALGOS, "a name in algos")], entry


def _pair(key: str, name: str, entry: dict[str, Any]) -> _Entry | None:
    """Pair of an entry; None if it has no reference, and nobody asks for it."""
    if entry.get("reference") is None and entry.get("guide") is None and not entry.get("enabled"):
        return None
    return ModelPair, {**entry, "guide": entry.get("guide") or entry.get("reference")}


def _dataset(key: str, name: str, entry: dict[str, Any]) -> _Entry | None:
    """Data set of an entry; None if it has nothing of what it needs, and nobody asks for it."""
    kind = DATASETS[check_choice(entry.get("kind"), DATASETS, f"{key}.kind")]
    needed = [each.name for each in dataclasses.fields(kind) if each.default is dataclasses.MISSING]
    if needed and not entry.get("enabled") and all(entry.get(option) is None for option in needed):
        return None
    return kind, entry
