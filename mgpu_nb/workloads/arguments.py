"""Words of a command line become options, and what is wrong with them is told in the words of a command line."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import re
import shlex
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, cast

from ..options import checks_of

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

__all__ = [
    "Positional",
    "UsageError",
    "option_names",
    "positional_first",
    "positional_of",
    "read_groups",
    "read_options",
    "speaking",
    "spoken",
    "told",
]

C = TypeVar("C")

NONE = ("none", "None")
MOST_LISTED = 6  # options that an error names all


class UsageError(ValueError):
    """An invalid command line; the message has its words, ``--slots 2`` where Python says ``slots=2``."""


@dataclass(frozen=True)
class Positional:
    """Marks a field, in ``Annotated``, whose words stand without a name on a command line, anywhere among options.

    Attributes
    ----------
    metavar
        What such a word is called in help texts, ``KEY=VALUE``.
    """

    metavar: str


def option_names(*kinds: type[Any]) -> list[str]:
    """Names of the options of dataclasses."""
    return [each.name for kind in kinds for each in dataclasses.fields(kind) if each.init]


def read_options(kind: type[C], words: Sequence[str], prog: str, description: str | None) -> C:
    """Options of a dataclass, read from words; raises as `read_groups`."""
    whole: type[Any] = kind
    places = [each.name for each in dataclasses.fields(whole) if "Positional" in str(each.type)]
    names = [name for name in option_names(kind) if name not in places]
    odd = [word for word in words if word.startswith("--") and _option_of(word) not in (*names, "help")]
    _check_known(odd, names, prog)  # else it may be read as the value of a positional argument
    (options,), unknown = _read((kind,), words, prog, description, (None,))
    _check_known(unknown, names, prog)
    return cast(C, options)


def read_groups(
    groups: Mapping[str, tuple[type[Any], Any]],
    words: Sequence[str],
    prog: str,
    description: str | None,
    *,
    others: bool = False,
    also: Sequence[str] = (),
) -> tuple[list[Any], list[str]]:
    """Options of several dataclasses, read from words; and the words that are no options.

    Values are read by the annotations of the fields. What does not fit them is an error of the checks that Python code
    meets as well (`options`), so that both say the same.

    Parameters
    ----------
    groups
        Dataclass, and an instance with the defaults or None, by the heading of its options.
    words
        Arguments.
    prog, description
        For ``--help``.
    others
        Whether there may be words that are no options.
    also
        Options that were read before, for the nearest of one that is none.

    Raises
    ------
    UsageError
        If a word is no option, with the nearest of those that are; or a value is invalid.
    SystemExit
        After ``--help``, and if a value is missing.
    """
    kinds, defaults = zip(*groups.values(), strict=True)
    words = positional_first(kinds, words)
    options, unknown = _read(kinds, words, prog, description, defaults, tuple(groups))
    if not others:
        places = positional_of(*kinds)
        names = [name for name in option_names(*kinds) if name not in places]
        _check_known(unknown, [*names, *also], prog, "".join(each.metavar for each in places.values()))
    return options, unknown


def positional_of(*kinds: type[Any]) -> dict[str, Positional]:
    """Fields of dataclasses whose words stand without a name."""
    return {
        name: mark
        for kind in kinds
        for name, hint in typing.get_type_hints(kind, include_extras=True).items()
        for mark in getattr(hint, "__metadata__", ())
        if isinstance(mark, Positional)
    }


def positional_first(kinds: Sequence[type[Any]], words: Sequence[str]) -> list[str]:
    """Words with those in front that are no values of an option.

    An option that takes one value has the next word, one that takes several texts has all words up to the next option,
    and one that takes several others those of them that are not ``KEY=VALUE``. Without fields that are positional the
    words stay as they are.
    """
    if not positional_of(*kinds):
        return list(words)
    hints = [hint for kind in kinds for hint in typing.get_type_hints(kind, include_extras=True).items()]
    forms = {name: _form(hint) for name, hint in hints}
    flags = {name for name, hint in hints if hint is bool}
    first: list[str] = []
    rest: list[str] = []
    values = 0  # words still to come that are values of an option, whatever they are
    plain = False  # whether words without an equals sign are
    for word in words:
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            form = forms.get(_option_of(name))
            several = form is not None and form.several and not equals
            texts = several and form is not None and form.convert is str and form.metavar[0] != "{"
            values = len(words) if texts else int(form is not None and not several and not equals)
            plain = several or (form is None and _option_of(name) not in flags)
        elif not values and ("=" in word or not plain):
            first.append(word)
            continue
        else:
            values = max(0, values - 1)
        rest.append(word)
    return [*first, *rest]


def _read(
    kinds: Sequence[type[Any]],
    words: Sequence[str],
    prog: str,
    description: str | None,
    defaults: Sequence[Any],
    headings: Sequence[str] = (),
) -> tuple[list[Any], list[str]]:
    import tyro

    loose = [_loose(kind) for kind in kinds]
    given = [
        None if default is None else _copy(default, kind)
        for default, kind in zip(defaults, loose, strict=True)
    ]
    whole, default = loose[0], given[0]
    if headings:
        without_prefix: Any = tyro.conf.OmitArgPrefixes
        fields = [(name, without_prefix[kind]) for name, kind in zip(headings, loose, strict=True)]
        whole = dataclasses.make_dataclass("Options", fields, frozen=True)
        default = whole(*(tyro.MISSING if each is None else each for each in given))
    with _registry():
        found, unknown = tyro.cli(
            whole,
            args=list(words),
            **({} if default is None else {"default": default}),
            prog=prog,
            description=description,
            use_underscores=True,
            return_unknown_args=True,
        )
    parts = [getattr(found, name) for name in headings] if headings else [found]
    with speaking(option_names(*kinds)):
        return [_strict(part, kind) for part, kind in zip(parts, kinds, strict=True)], unknown


@contextlib.contextmanager
def speaking(names: Collection[str]) -> Iterator[None]:
    """Errors within it name the options of a command as its command line does.

    Raises
    ------
    UsageError
        In place of a ValueError, TypeError or OSError.
    """
    try:
        yield
    except (UsageError, BrokenPipeError):
        raise
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(spoken(told(error), names)) from error


def told(error: BaseException) -> str:
    """Message of an error; that of the operating system without its number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


# A value as Python shows it. A number ends before the full stop of a sentence.
_VALUE = r"(\[[^\]]*\]|\([^()]*\)|'[^']*'|\"[^\"]*\"|-?\d+(?:\.\d+)?(?:e[-+]?\d+)?|True|False|None)"
_FREE = r"(?<![\w/.\-'\"=])"  # no part of a path, a quotation, an option


def spoken(text: str, names: Collection[str]) -> str:
    """An error message with options as a command line has them: ``--slots 2``, ``--no_resume``, ``--methods``.

    Parameters
    ----------
    text
        Message that names options as Python does: ``slots=2``, ``methods[0] must be ...``.
    names
        Options of the command. A name that is an English word counts only where it is the subject of the message.
    """
    if "slots" not in names and "world_size" in names:  # a gang has a slot for each rank
        text = re.sub(rf"{_FREE}slots=", "world_size=", text)
    every = "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or r"(?!)"
    text = re.sub(rf"{_FREE}({every})={_VALUE}", _assigned, text)
    text = re.sub(rf"{_FREE}({every})(?:\[\d+\])+", r"--\1", text)
    text = re.sub(rf"^({every})(?= must be | needs |: )", r"--\1", text)
    if listed := re.match(rf"(?:{every})(?:, (?:{every}))*(?= missing: )", text):
        text = ", ".join(f"--{name}" for name in listed[0].split(", ")) + text[listed.end() :]
    compound = "|".join(name for name in every.split("|") if "_" in name) or r"(?!)"
    text = re.sub(rf"{_FREE}({compound})(?![\w/.=(])", r"--\1", text)
    text = re.sub(r"(--\w+) \(\1\)", r"\1", text)
    text = re.sub(r" or None(?=, got )", "", text)
    return re.sub(r"(?<=, got )[(\[](.*?),?[)\]]$", lambda found: found[1].replace(", ", " ") or "none", text)


def _assigned(found: re.Match[str]) -> str:
    name = found[1]
    try:
        value = ast.literal_eval(found[2])
    except (ValueError, SyntaxError):  # no value that could be given on a command line
        return found[0]
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    values = value if isinstance(value, (list, tuple)) else [value]
    return " ".join([f"--{name}", *(shlex.quote(str(each)) for each in values)])


def _option_of(word: str) -> str:
    """Name of the option that a word states."""
    return word.partition("=")[0].lstrip("-").replace("-", "_").removeprefix("no_")


def _check_known(words: Sequence[str], names: Sequence[str], prog: str, positional: str = "") -> None:
    """Raise for words that are no options; `positional` says what stands without dashes."""
    if not words:
        return
    word = next((word for word in words if word.startswith("-")), words[0])
    if not word.startswith("-"):
        raise UsageError(f"{word!r} is one word too many; see {prog} --help")
    options = [f"--{name}" for name in names]
    name = _option_of(word)
    if near := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
        hint = f"did you mean --{near[0]}?"
    elif positional:
        hint = f"{positional} stands without dashes; for options see {prog} --help"
    elif not options:
        hint = "the command has none but --help"
    else:
        hint = f"there are {', '.join(options)}" if len(options) <= MOST_LISTED else f"see {prog} --help"
    if "sbatch" in names:  # which has directives that begin as options do
        hint += f" (a directive is given without dashes, as --sbatch {word.lstrip('-')})"
    raise UsageError(f"there is no option {word}; {hint}")


def _loose(kind: type[Any]) -> type[Any]:
    """The dataclass without its own checks: values that do not fit are kept as they are, for `_strict`."""
    import tyro

    hints = typing.get_type_hints(kind, include_extras=True)
    places = positional_of(kind)
    positional: Any = tyro.conf.Positional
    described: Any = Annotated
    content: dict[str, Any] = {
        "__post_init__": lambda self: None,
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__annotations__": {
            name: positional[described[hints[name], tyro.conf.arg(metavar=f"[{mark.metavar} ...]")]]
            for name, mark in places.items()
        },
        **{name: getattr(kind, name) for name in places},  # the defaults
    }
    frozen = kind.__dataclass_params__.frozen
    return dataclasses.dataclass(frozen=frozen)(type(kind.__name__, (kind,), content))


def _copy(options: Any, kind: type[Any]) -> Any:
    return kind(**{name: getattr(options, name) for name in option_names(kind)})


def _strict(loose: Any, kind: type[Any]) -> Any:
    """Options with the checks that the annotations of the fields stand for, and those of the dataclass itself."""
    owner: Any = kind  # typeshed: a class is not Hashable
    for name, check in checks_of(owner).items():
        if name in option_names(kind):
            check.apply(name, getattr(loose, name))
    return _copy(loose, kind)


def _registry() -> ConstructorRegistry:
    """Readers of values: of a scalar, a choice, several of one kind, each of them or none."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def read(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        form = _form(info.type)
        if form is None:
            return None
        return PrimitiveConstructorSpec(
            nargs="*" if form.several else 1,
            metavar=form.metavar,
            instance_from_str=form.value,
            is_instance=lambda value: True,
            str_from_instance=_words,
        )

    return registry


class _Form(NamedTuple):
    """How a value is written: what it is called in a help text, and how words become a value."""

    metavar: str
    convert: Callable[[str], Any]
    several: bool = False
    optional: bool = False
    constants: tuple[str, ...] = ()

    def value(self, words: list[str]) -> Any:
        """Value of words; one that cannot be read stays text."""
        if len(words) == 1 and ((self.optional and words[0] in NONE) or words[0] in self.constants):
            return None if words[0] in NONE else words[0]
        values: list[Any] = []
        if self.several and self.convert is not str:  # 0,1 as in CUDA_VISIBLE_DEVICES
            words = [part for word in words for part in word.split(",") if part]
        for word in words:
            try:
                values.append(self.convert(word))
            except ValueError:
                values.append(word)
        return tuple(values) if self.several else values[0]


def _form(hint: Any) -> _Form | None:
    """Form of a type; None for what tyro reads well: flags, paths, dataclasses."""
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if hint in _SCALARS:
        return _SCALARS[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal and all(isinstance(choice, str) for choice in arguments):
        return _Form(f"{{{','.join(arguments)}}}", str)
    if origin is tuple and arguments and (item := _form(arguments[0])) and not item.several:
        count = len(arguments) if arguments[-1] is not Ellipsis else 0
        metavar = " ".join([item.metavar] * count) or f"{item.metavar} [{item.metavar} ...]"
        return _Form(metavar, item.convert, several=True)
    if origin in (typing.Union, types.UnionType):
        members = [each for each in arguments if typing.get_origin(each) is not Callable]  # by their paths
        forms = [_form(member) for member in members if member is not types.NoneType]
        return _united([form for form in forms if form], types.NoneType in arguments) if all(forms) else None
    return None


def _united(forms: Sequence[_Form], optional: bool) -> _Form | None:
    """Form of ``X | None`` or ``X | Literal["z"] | None``."""
    values = [form for form in forms if not form.metavar.startswith("{")]
    choices = [form for form in forms if form.metavar.startswith("{")]
    if len(values) > 1 or len(choices) > 1:
        return None
    if not values:
        return choices[0]._replace(optional=optional)
    constants = tuple(choice for form in choices for choice in form.metavar.strip("{}").split(","))
    metavar = "|".join([*constants, values[0].metavar])
    return values[0]._replace(metavar=metavar, optional=optional, constants=constants)


_SCALARS = {int: _Form("INT", int), float: _Form("FLOAT", float), str: _Form("STR", str)}


def _words(value: Any) -> list[str]:
    """Words that stand for a value, for the defaults in a help text."""
    if value is None:
        return ["none"]
    return [str(each) for each in value] if isinstance(value, (tuple, list)) else [str(value)]
