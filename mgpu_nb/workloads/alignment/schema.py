"""Keys of a tree of settings: which there are, which is nearest to one that is none, what their values must be."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...options import Check, OptionTypeError, check_options, checks_of
from ...output import safe

__all__ = ["Checked", "Section", "Where", "nearest", "section_of"]

Where = Callable[[str], str]
"""What a message has behind the value of a dotted key: `` (in settings.yaml)``."""

# Keys that others have, with what took their place here.
_MOVED = {
    "num_samples": (
        "data_collection.samples_per_example says how many samples an example has, "
        "data_collection.examples_per_task how many examples a task has: fewer make more tasks"
    ),
    "data_collection.num_samples": "data_collection.samples_per_example is its name",
    "evaluation.num_samples": "evaluation.samples_per_example is its name",
    "training.batch_size": "each algorithm has its own, algos.PITA.batch_size say",
    "training.num_workers": "each algorithm has its own, algos.PITA.num_workers say",
    "data_collection.batch_size": "generation.batch_size or data_collection.reward_batch_size",
    "seed": "it is an option beside the settings: give seed=1",
    "slots": "it is an option beside the settings: give slots=2",
    "gpu_ids": "it is an option beside the settings: give gpu_ids=(0, 1)",
    "output_dir": "it is an option beside the settings: give output_dir='out'",
    "config": "it is an option beside the settings: give config='mine.yaml'",
    "profile": "it is an option beside the settings: give profile=('40gb', '2gpus')",
    "hydra": "Hydra is not used: settings are those of mgpu_nb/workloads/alignment/conf/config.yaml",
}
_MISSING = dataclasses.MISSING


@dataclass(frozen=True)
class Checked:
    """Plain values that are checked when they are made."""

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Section:
    """Keys below a key.

    Attributes
    ----------
    kind
        Dataclass that `make` makes of their values; None for a group.
    leaves
        Check of a value by its key.
    sections
        Sections by key.
    other
        Section of any other key; None where there are no others.
    """

    kind: type[Any] | None = None
    leaves: Mapping[str, Check] = field(default_factory=dict)
    sections: Mapping[str, Section] = field(default_factory=dict)
    other: Section | None = None

    @classmethod
    def union(cls, sections: Sequence[Section]) -> Section:
        """Section with the keys of several."""
        return cls(leaves={name: check for each in sections for name, check in each.leaves.items()})

    def with_sections(self, **sections: Section) -> Section:
        """The same with further sections."""
        return replace(self, sections={**self.sections, **sections})

    def below(self, name: str) -> Section | None:
        """Section of a key; None for a value or an unknown key."""
        return self.sections.get(name, self.other)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Dotted keys of all values."""
        for name in self.leaves:
            yield prefix + name
        for name, section in self.sections.items():
            yield from section.keys(f"{prefix}{name}.")

    def find(self, key: str, where: str = "") -> Section | Check:
        """What a dotted key names.

        Raises
        ------
        ValueError
            If there is none of this name; the message names the nearest.
        """
        section, parts = self, key.split(".")
        for n, part in enumerate(parts):
            if part in section.leaves and n == len(parts) - 1:
                return section.leaves[part]
            if part in section.leaves:
                raise ValueError(
                    f"{'.'.join(parts[: n + 1])} is a value: nothing is below it, got {key}{where}"
                )
            if (below := section.below(part)) is None:
                raise ValueError(f"there is no setting {safe(key)}{where}; {self._near(section, parts, n)}")
            section = below
        return section

    def _near(self, section: Section, parts: Sequence[str], n: int) -> str:
        """Hint for a key whose part `n` is not in a section."""
        key = ".".join(parts)
        for known, hint in _MOVED.items():
            if key == known or key.startswith(f"{known}."):
                return hint
        names = [*section.leaves, *section.sections]
        if near := nearest(parts[n], names):
            return f"did you mean {'.'.join([*parts[:n], near, *parts[n + 1 :]])}?"
        elsewhere = [known for known in self.keys() if known.rpartition(".")[2] == parts[-1]]
        if elsewhere and (n == 0 or not section.sections):
            return f"did you mean {' or '.join(elsewhere[:3])}?"
        if n == 0 and (near := nearest(key, list(self.keys()))):
            return f"did you mean {near}?"
        return f"{'.'.join(parts[:n]) or 'the settings'} has {', '.join(names)}"

    def value(self, name: str, key: str, value: Any, where: Where) -> Any:
        """Plain value of a key of this section, which is named `key` in messages.

        Raises
        ------
        ValueError, TypeError
            If it is invalid.
        """
        try:
            return self.leaves[name].apply(key, value)
        except OptionTypeError as error:
            raise OptionTypeError(f"{error}{where(key)}") from None
        except ValueError as error:
            raise ValueError(f"{error}{where(key)}") from None

    def make(self, key: str, values: object, where: Where) -> Any:
        """Dataclass of the values of this section, which is named `key` in messages.

        Raises
        ------
        ValueError, TypeError
            If a value is invalid or missing, or its key is unknown.
        """
        assert self.kind is not None  # noqa: S101 (groups are not made)
        if not isinstance(values, Mapping):
            raise OptionTypeError(
                f"{key} must be a mapping of {', '.join(self.leaves)}, got {values!r}{where(key)}"
            )
        for name in values:
            if name not in self.leaves:
                hint = f"it has {', '.join(self.leaves)}"
                raise ValueError(f"{key} has no setting {name}{where(f'{key}.{name}')}; {hint}")
        for each in dataclasses.fields(self.kind):
            needed = each.default is _MISSING and each.default_factory is _MISSING
            if needed and values.get(each.name) is None:
                name = f"{key}.{each.name}"
                raise ValueError(
                    f"{name} is missing{where(name)}: it must be {self.leaves[each.name].wanted}"
                )
        return self.kind(
            **{name: self.value(name, f"{key}.{name}", each, where) for name, each in values.items()}
        )


def nearest(name: str, names: Sequence[str], cutoff: float = 0.6) -> str | None:
    """Name that is most like another, whatever its case; None if none is."""
    folded = {each.casefold(): each for each in names}
    found = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=cutoff)
    return folded[found[0]] if found else None


def section_of(kind: type[Any]) -> Section:
    """Section of a dataclass; a field of a dataclass is a section of it."""
    hints = typing.get_type_hints(kind)
    names = [each.name for each in dataclasses.fields(kind)]
    owner: Any = kind  # typeshed: a class is not Hashable
    checks = checks_of(owner)
    return Section(
        kind,
        {name: checks[name] for name in names if name in checks},
        {name: section_of(hints[name]) for name in names if dataclasses.is_dataclass(hints[name])},
    )
