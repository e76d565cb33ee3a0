"""Settings from several sources, one over the other, by OmegaConf: YAML files and overrides ``a.b=value``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ...options import Check, OptionTypeError
from ...output import safe
from .rows import decoded
from .schema import Section, nearest

__all__ = ["Choices", "merged", "split_override"]

CONF = Path(__file__).parent / "conf"
_REMEDY = "write KEY: VALUE in each line, rounds_of_training: 3 say, as conf/config.yaml of this package does"


class Choices(Protocol):
    """Where settings come from."""

    @property
    def profile(self) -> tuple[str, ...]:
        """Names of files in ``conf/profiles``, a later one over those before."""

    @property
    def config(self) -> str | None:
        """YAML file of the user."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """``key=value`` each."""


class _Layer(NamedTuple):
    content: dict[str, Any]
    file: Path | None = None
    lines: Mapping[str, int] = {}  # by dotted key

    def where(self, key: str) -> str:
        """What a message has behind the value of a key, or of the nearest one above it: `` (in mine.yaml, line 3)``."""
        if self.file is None:
            return ""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return f" (in {self.file}{f', line {self.lines[key]}' if key else ''})"


def merged(
    choices: Choices, schema: Section, defines: Mapping[str, str]
) -> tuple[dict[str, Any], Callable[[str], str]]:
    """Values of all sources, interpolations resolved, and a function that says where that of a key is from.

    Parameters
    ----------
    choices
        The sources.
    schema
        The keys that there are.
    defines
        Groups to which entries can be added, each with the key that a new entry must have.

    Raises
    ------
    ValueError, TypeError, OSError, ImportError
        See `settings.load_settings`.
    """
    layers = [_own("config.yaml"), *(_own(f"profiles/{name}.yaml") for name in choices.profile)]
    layers += [] if choices.config is None else [_file(Path(choices.config).expanduser())]
    layers += [_override(override, schema) for override in choices.overrides]
    whole, origins, missing = dict[str, Any](), dict[str, str](), dict[str, str]()
    for layer in layers:
        for key, value in _values(layer.content, layer.where):
            found, origin = schema.find(key, layer.where(key)), layer.where(key)
            if isinstance(found, Check) and isinstance(value, Mapping):
                raise OptionTypeError(f"{key} must be {found.wanted}, got a mapping{origin}")
            origins[key] = origin
            missing.pop(key, None)
            if value == "???":
                missing[key] = origin
        whole = _laid_over(whole, layer.content)
    if missing:
        key, source = next(iter(missing.items()))
        raise ValueError(f"{key} is missing, ???{source}: give {key}=...")

    def where(key: str) -> str:
        return next((origins[k] for k in (key, key.rpartition(".")[0]) if k in origins), "")

    plain = _resolved(whole, where)
    for group, needed in defines.items():
        _check_added(group, plain[group], list(schema.sections[group].sections), needed, where)
    return plain, where


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values of both; those of `above` where both have one, unless both are mappings."""
    both = {
        key: _laid_over(below[key], value)
        for key, value in above.items()
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
    }
    return {**below, **above, **both}


def _resolved(whole: dict[str, Any], where: Callable[[str], str]) -> dict[str, Any]:
    """Values with their interpolations resolved; `where` says of which source that of a key is."""
    conf = _omegaconf()
    if not any(isinstance(value, str) and "${" in value for _, value in _values(whole, lambda key: "")):
        return whole
    try:
        found: dict[str, Any] = conf.to_container(conf.create(whole), resolve=True)
    except _error() as error:
        key = getattr(error, "full_key", None) or "settings"
        raise ValueError(f"{key}: {_first_line(error)}{where(key)}") from error
    return found


def _omegaconf() -> Any:
    try:
        from omegaconf import OmegaConf
    except ImportError as error:
        raise ImportError(
            "alignment reads its settings by OmegaConf, which is not installed: "
            'pip install "mgpu-nb[alignment]"'
        ) from error
    return OmegaConf


def _read(text: str) -> Any:
    """Content of YAML text; tags that make objects of Python are errors."""
    conf = _omegaconf()
    return conf.to_container(conf.create(text), resolve=False)


@functools.cache
def _own(name: str) -> _Layer:
    """A file of this package."""
    return _file(CONF / name)


def _file(path: Path) -> _Layer:
    from yaml import YAMLError

    try:
        data = path.read_bytes()
    except OSError as error:
        raise type(error)(
            f"config={str(path)!r} cannot be read, {error.strerror}: give the path of a YAML file of settings"
        ) from error
    text = decoded(data, path)
    try:
        content = _read(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(
            f"{path}{line}: no valid YAML: {safe(problem)}; mend the line: keys are indented by blanks, KEY: VALUE"
        ) from error
    except (AssertionError, RecursionError, _error()) as error:
        raise ValueError(f"{path} holds no settings: {_first_line(error)}; {_REMEDY}") from error
    if not isinstance(content, dict):
        raise OptionTypeError(
            f"{path} must hold a mapping of settings, not a {type(content).__name__}; {_REMEDY}"
        )
    return _Layer(content, path, dict(_lines(text)))


def _lines(text: str) -> Iterator[tuple[str, int]]:
    """Dotted keys of valid YAML and their lines."""
    import yaml

    def below(node: Any, prefix: str) -> Iterator[tuple[str, int]]:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            yield f"{prefix}{key.value}", key.start_mark.line + 1
            yield from below(value, f"{prefix}{key.value}.")

    return below(yaml.compose(text, Loader=yaml.SafeLoader), "")


def split_override(override: str, schema: Section) -> tuple[str, str]:
    """Key, which must be one of the schema, and value of ``key=value``.

    Raises
    ------
    ValueError
        If it is no such text, or there is no such key; the message names the nearest.
    """
    key, equals, value = override.partition("=")
    key = key.strip()
    if not equals or not value.strip():
        what = "has no value" if equals else "is no setting"
        near = nearest(key, list(schema.keys()))
        hint = f"{near}=VALUE" if near else "KEY=VALUE, rounds_of_training=3 say"
        raise ValueError(f"{override!r} {what}: give {hint}")
    if key.startswith(("+", "~", "-")):
        raise ValueError(f"{override!r}: give {key.lstrip('+~-')}={value}, without the {key[0]}")
    if "[" in key or not all(key.split(".")):
        raise ValueError(f"{override!r}: a key is names with dots between them; of a list give all of it")
    schema.find(key)
    return key, value.strip()


def _override(override: str, schema: Section) -> _Layer:
    from yaml import YAMLError

    key, text = split_override(override, schema)
    found = schema.find(key)
    try:
        read = _read(f"value: {text}")
        value = read.pop("value")
        problem = "it has more than one" if read else ""
    except (YAMLError, _error()) as error:
        value, problem = text, _first_line(error)
    if _takes_text(found, text) and (problem or not (value is None or text[0] in "\"'")):
        value = text  # 007, a prompt with a colon or a hash
    elif problem:
        raise ValueError(f"{override!r}: the value is no valid YAML: {problem}")
    for part in reversed(key.split(".")):
        value = {part: value}
    return _Layer(value)


def _takes_text(found: Section | Check, text: str) -> bool:
    if isinstance(found, Section):
        return False
    try:
        found.apply("", text)
    except OptionTypeError:
        return False
    except ValueError:
        pass  # text, but not this one
    return True


def _values(
    content: Mapping[Any, Any], where: Callable[[str], str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; a mapping without keys is a value."""
    for name, value in content.items():
        if not isinstance(name, str) or "." in name or not name:
            below = prefix.rstrip(".") or "the settings"
            hint = ": write a mapping in a mapping instead of a dot" if "." in str(name) else ""
            raise ValueError(f"a key of {below} must be a name, got {name!r}{where(f'{prefix}{name}')}{hint}")
        if isinstance(value, Mapping) and value:
            yield from _values(value, where, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _check_added(
    group: str, entries: object, known: list[str], needed: str, where: Callable[[str], str]
) -> None:
    """Raise for an entry that is neither known nor one of the user's own, or seems to be a slip of the pen."""
    for name, entry in entries.items() if isinstance(entries, Mapping) else ():
        near = nearest(name, known)
        if name in known:
            continue
        key = f"{group}.{name}"
        own = isinstance(entry, Mapping) and entry.get(needed) is not None
        slip = near is not None and len(name) <= len(near) + 1 and not name.casefold().startswith(near)
        if not own or slip:
            hint = f"did you mean {group}.{near}?" if near else f"there are {', '.join(known)}."
            remedy = "choose a name less like it" if own else f"give {key}.{needed}"
            raise ValueError(
                f"there is no {key}{where(f'{key}.{needed}')}; {hint} For one of your own {remedy}"
            )


def _error() -> type[Exception]:
    from omegaconf.errors import OmegaConfBaseException

    found: type[Exception] = OmegaConfBaseException
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["it is one value"])[0]
