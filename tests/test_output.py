"""Lines of output, made safe to show."""

import pytest

from mgpu_nb.output import LONGEST, UNFINISHED, Lines, clean, one_line, safe
from mgpu_nb.tables import Document, Table


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"plain", "plain"),
        ("grüße ✓ 👩‍🔬\tx".encode(), "grüße ✓ 👩‍🔬\tx"),
        (b" 10%|#   |\r 50%|##  |\r100%|####|", "100%|####|"),
        (b"100%|####|\r", "100%|####|"),
        (b"windows\r\n", "windows"),
        (b"3/10\b\b\b\b4/10", "4/10"),
        (b"\b\b\bshort", "short"),
        (b"\x1b[31mred\x1b[0m and \x1b[2Kgone\x1b[1A", "red and gone"),
        (b"\x1b]0;a title\x07text", "text"),
        (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"\x1b]52;c;clipboard", ""),
        (b"\x1bPq sixel \x1b\\text\x1b7\x1b(B", "text"),
        (b"bell\x07 nul\x00", "bell\ufffd nul\ufffd"),
        ("a\u202egnp.exe\u2066 \u2028x\x85".encode(), "a\ufffdgnp.exe\ufffd \ufffdx\ufffd"),
        (b"\xff\xfe no text", "\\xff\\xfe no text"),
        (b"ends in \x1b", "ends in "),
        (b"", ""),
    ],
)
def test_a_line_is_what_a_terminal_shows_in_the_end(written: bytes, shown: str) -> None:
    assert clean(written) == shown


def test_colours_stay_where_they_are_wanted_and_end_with_the_line() -> None:
    assert clean(b"\x1b[1;31mred\x1b[2J", colours=True) == "\x1b[1;31mred\x1b[0m"
    assert clean(b"plain", colours=True) == "plain"


def test_a_line_without_end_is_cut() -> None:
    shown = clean(b"x" * 10**6)
    assert shown.startswith("x" * LONGEST + "… (1,000,000")
    lines = Lines()
    for _ in range(100):
        assert lines.feed(b"y" * 10_000) == []
    (rest,) = lines.end()
    assert len(rest) == UNFINISHED


def test_lines_are_whole() -> None:
    lines = Lines()
    assert lines.feed(b"one\ntw") == [b"one"]
    assert lines.feed("ö".encode()[:1]) == []
    assert lines.feed("ö".encode()[1:] + b"\n\nrest") == ["twö".encode(), b""]
    assert lines.end() == [b"rest"]
    assert lines.end() == []
    lines.feed(b"\r")
    assert lines.end() == []


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("", ""), ("plain", "plain"), ("a\nb", "a b"), ("a\r\n\n  b\tc\n", "a b c"),
        ("\x1b[31mred\x1b[0m\x07", "red\ufffd"), ("a\u2028b\x0bc", "a b c"),
    ],
)  # fmt: skip
def test_a_message_becomes_one_line(message: str, line: str) -> None:
    assert one_line(message) == line


def test_a_long_message_is_cut_and_its_length_told() -> None:
    assert one_line("x" * 5_000_000) == "x" * 400 + "… (5,000,000 characters)"
    assert len(one_line("\n" * 5_000_000 + "end")) < 500


def test_text_of_many_lines_is_safe_and_whole() -> None:
    long = "x" * (2 * LONGEST)
    assert safe(f"a\x1b[2J\tb\n{long}\x07\n\n") == f"a\tb\n{long}\ufffd\n\n"
    assert safe("grüße ✓") == "grüße ✓"


def test_no_table_or_report_sends_an_escape_to_a_terminal() -> None:
    evil = "\x1b]0;title\x07\x1b[2J"
    shown = Table([(f"head{evil}", ""), ("n", "n")], [(f"cell{evil}", 1)], "label", [f"above{evil}"])

    class Report(Document):
        def _content(self) -> list[str | Table]:
            return [f"line{evil}\nmore", shown]

    assert str(shown).split() == ["above", "head", "n", "cell", "1"]
    assert str(Report()).split() == ["line", "more", *str(shown).split()]
    assert "\x1b" not in shown.fitted(20)
