"""Options of a command line, and errors in its words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from mgpu_nb.options import NonEmpty, OneOf, PositiveInt, check_options
from mgpu_nb.workloads.arguments import (
    Positional,
    UsageError,
    option_names,
    positional_first,
    read_groups,
    read_options,
    speaking,
    spoken,
)
from mgpu_nb.workloads.base import WORKLOADS
from mgpu_nb.workloads.request import known_options


@dataclass(frozen=True)
class Options:
    """Options of a test.

    Raises
    ------
    ValueError
        If one is invalid.
    """

    slots: PositiveInt | None = None
    """Number of slots."""
    methods: Annotated[tuple[Annotated[str, OneOf(("slow", "quick"))], ...], NonEmpty()] = ("slow",)
    """Methods to compare."""
    engine: Literal["vmap", "loop"] = "vmap"
    """How."""
    gpu_ids: tuple[PositiveInt, ...] | Literal["cpu"] | None = None
    """GPUs to use."""
    weights: tuple[float, float] = (1.0, 0.5)
    """Two weights."""
    use_amp: bool = False
    """Mixed precision."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.use_amp and self.slots == 2:
            raise ValueError(f"use_amp=True and slots={self.slots}: choose")


@dataclass(frozen=True)
class Plain:
    """Options without checks of their own."""

    folder: Path
    """Where."""
    times: int = 1


def read(*words: str) -> Any:
    return read_options(Options, words, "prog", "Do it.")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--slots 3", "slots", 3),
        ("--slots none", "slots", None),
        ("--slots None", "slots", None),
        ("--methods quick slow", "methods", ("quick", "slow")),
        ("--engine loop", "engine", "loop"),
        ("--gpu-ids 1 2", "gpu_ids", (1, 2)),
        ("--gpu_ids 1,2", "gpu_ids", (1, 2)),
        ("--gpu_ids cpu", "gpu_ids", "cpu"),
        ("--weights 2 .5", "weights", (2.0, 0.5)),
        ("--use-amp", "use_amp", True),
        ("--no_use_amp", "use_amp", False),
    ],
)
def test_values_are_read_by_their_annotations(words: str, name: str, value: Any) -> None:
    assert getattr(read(*words.split()), name) == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--slots two", "--slots must be an integer >= 1, got 'two'"),
        ("--slots 0", "--slots must be an integer >= 1, got 0"),
        ("--methods quikc", "--methods must be one of slow, quick, got 'quikc'; did you mean 'quick'?"),
        ("--engine lop", "--engine must be one of vmap, loop, got 'lop'; did you mean 'loop'?"),
        ("--gpu_ids gpu", "--gpu_ids must be a sequence (each an integer >= 1) or 'cpu', got 'gpu'"),
        ("--methods", "--methods must be a non-empty sequence (each one of slow, quick), got none"),
        ("--weights 1 2 3", "--weights must be a sequence of 2 items (each a number), got 1.0 2.0 3.0"),
        ("--use_amp --slots 2", "--use_amp and --slots 2: choose"),
        ("--slot 2", "there is no option --slot; did you mean --slots?"),
        ("--gpu-idds=2", "there is no option --gpu-idds=2; did you mean --gpu_ids?"),
        ("--no-use-ampp", "there is no option --no-use-ampp; did you mean --use_amp?"),
        ("--verbose", "there is no option --verbose; there are --slots, --methods, --engine, --gpu_ids, --weights, "
         "--use_amp"),
        ("two", "'two' is one word too many; see prog --help"),
    ],
)  # fmt: skip
def test_errors_speak_the_command_line(words: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(*words.split())
    assert str(caught.value) == said


def test_options_without_checks_of_their_own_are_checked_by_their_annotations() -> None:
    assert read_options(Plain, ["--folder", "x/y", "--times", "3"], "prog", None) == Plain(Path("x/y"), 3)
    with pytest.raises(UsageError, match=r"^--times must be an integer, got 'x'$"):
        read_options(Plain, ["--folder", "here", "--times", "x"], "prog", None)


def test_groups_share_the_words() -> None:
    groups = {"a": (Options, Options(slots=4)), "b": (Plain, Plain(Path(), 7))}
    (first, second), rest = read_groups(
        groups, ["--engine", "loop", "--more", "x"], "prog", None, others=True
    )
    assert first == Options(slots=4, engine="loop")
    assert second == Plain(Path(), 7)
    assert rest == ["--more", "x"]
    with pytest.raises(UsageError, match="there is no option --more; see prog --help"):
        read_groups(groups, ["--more", "x"], "prog", None)


def test_help_speaks_the_command_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in (
        "--slots INT Number of slots. (default: none)",
        "--methods STR [STR ...]",
        "--engine {vmap,loop}",
        "--gpu_ids cpu|INT [INT ...]",
        "--weights FLOAT FLOAT",
        "--use_amp, --no_use_amp",
    ):
        assert part in shown
    for python in ("None", "Raises", "ValueError", "tuple"):
        assert python not in shown


NAMES = ["slots", "gpu_ids", "output_dir", "resume", "data", "batch_size", "use_amp", "launcher"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Use slots=2.", "Use --slots 2."),
        ("gpu_ids=[0, 1] is two slots: leave out slots=2", "--gpu_ids 0 1 is two slots: leave out --slots 2"),
        ("give resume=False (--no_resume), or another output_dir", "give --no_resume, or another --output_dir"),
        ("give launcher='srun' and use_amp=True", "give --launcher srun and --use_amp"),
        ("data: there is no such file", "--data: there is no such file"),
        ("the data are missing: /tmp/data/batch_size.csv", "the data are missing: /tmp/data/batch_size.csv"),
        ("/x/batch_size/y: the slots are full", "/x/batch_size/y: the slots are full"),
        ("data='my file'", "--data 'my file'"),
        ("batch_size must be an integer or None, got (1, 2)", "--batch_size must be an integer, got 1 2"),
        ("nprocs=3: fewer", "nprocs=3: fewer"),
        ("gpu_ids=[<Slot>]: no", "gpu_ids=[<Slot>]: no"),
    ],
)  # fmt: skip
def test_a_message_of_python_becomes_one_of_the_command_line(text: str, said: str) -> None:
    assert spoken(text, NAMES) == said


def test_a_gang_has_ranks_for_slots() -> None:
    names = known_options(WORKLOADS["training"])
    assert (
        spoken("Use slots=2 for virtual CPU devices", names) == "Use --world_size 2 for virtual CPU devices"
    )


def test_files_are_named_without_numbers_of_errors() -> None:
    with pytest.raises(UsageError, match=r"^/no/such: No such file or directory$"), speaking(NAMES):
        open("/no/such")  # noqa: PTH123, SIM115
    with pytest.raises(BrokenPipeError), speaking(NAMES):
        raise BrokenPipeError


@pytest.mark.parametrize("name", ["protein", "tracin", "training"])
def test_all_options_of_a_workload_are_known(name: str) -> None:
    workload = WORKLOADS[name]
    for each in (workload, *workload.verbs.values()):
        assert {"resume", *option_names(each.config)} <= set(known_options(each))


@dataclass(frozen=True)
class Placed:
    """Options of which one has no name."""

    settings: Annotated[tuple[str, ...], Positional("KEY=VALUE")] = ()
    """Settings."""
    kinds: tuple[Literal["a", "b"], ...] = ()
    """Kinds."""
    env: tuple[str, ...] = ()
    """Texts."""
    folder: str | None = None
    """Folder."""
    fast: bool = False
    """Whether."""


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("x=1 y.z=[2,3]", Placed(("x=1", "y.z=[2,3]"))),
        ("--kinds a b x=1", Placed(("x=1",), ("a", "b"))),
        ("x=1 --kinds a y=2 --folder f z=3", Placed(("x=1", "y=2", "z=3"), ("a",), folder="f")),
        ("--folder a=b x=1", Placed(("x=1",), folder="a=b")),
        ("--folder=a=b x=1", Placed(("x=1",), folder="a=b")),
        ("--fast x=1", Placed(("x=1",), fast=True)),
        ("--env A=1 B=2 --fast x=1", Placed(("x=1",), env=("A=1", "B=2"), fast=True)),
        ("word --fast", Placed(("word",), fast=True)),
        ("x=1 --folder f word", Placed(("x=1", "word"), folder="f")),
        ("--fast word x=1", Placed(("word", "x=1"), fast=True)),
        ("x=--fast", Placed(("x=--fast",))),
    ],
)
def test_words_without_a_name_stand_anywhere(words: str, wanted: Placed) -> None:
    (found,), unknown = read_groups({"config": (Placed, Placed())}, words.split(), "prog", None)
    assert (found, unknown) == (wanted, [])


@pytest.mark.parametrize("word", ["--x.y=1", "--settings"])
def test_words_without_a_name_have_no_dashes(word: str) -> None:
    with pytest.raises(UsageError, match=f"no option {word}; KEY=VALUE stands without dashes"):
        read_groups({"config": (Placed, Placed())}, [word, "3"], "prog", None)
    with pytest.raises(UsageError, match="did you mean --folder"):
        read_groups({"config": (Placed, Placed())}, ["x=1", "--foldr", "f"], "prog", None)


def test_other_words_stay_where_they_are() -> None:
    words = ["--weights", "1", "a=1", "--slots", "2"]
    assert positional_first((Options,), words) == words
    unknown = ["--elsewhere", "word", "x=1", "--kinds", "a"]
    assert positional_first((Placed,), unknown) == ["x=1", "--elsewhere", "word", "--kinds", "a"]
