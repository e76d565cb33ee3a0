"""What processes write, as lines that are safe to show: in a cell, a terminal, a panel."""

from __future__ import annotations

import re

__all__ = ["Lines", "clean", "one_line", "safe"]

LONGEST = 4000  # characters of a line that are shown
ERROR = 400  # characters of a message that is to be one line
UNFINISHED = 2**16  # bytes of an unfinished line that are kept

_COLOUR = r"\x1b\[[0-9;:]*m"
_SEQUENCE = (
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor, erase
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # OSC and others with a text: title, link, clipboard
    r"|\x1b[ -/]*[0-~]?"  # a sequence of two, or an end that is missing
)
# Controls but the tab, what would end a line for a reader but not for us, and overrides of the direction.
_HARMFUL = r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
_PLAIN = re.compile(f"{_SEQUENCE}|{_HARMFUL}")
_COLOURED = re.compile(f"({_COLOUR})|{_SEQUENCE}|{_HARMFUL}")
_ERASED = re.compile(r"[^\x08]\x08")


def clean(line: bytes | str, colours: bool = False) -> str:
    """A line as a terminal would show it in the end: after carriage returns, without escape sequences and controls.

    Parameters
    ----------
    line
        One line; bytes that are no UTF-8 are shown as escapes.
    colours
        Whether its colours stay; they end with it.
    """
    text = line.decode(errors="backslashreplace") if isinstance(line, bytes) else line
    text = text.rstrip("\r\n")
    if not text.isprintable():
        text = text[text.rfind("\r") + 1 :]
        while "\b" in text and (shorter := _ERASED.sub("", text)) != text:
            text = shorter
        if colours:
            text = _COLOURED.sub(lambda m: m[1] or _mark(m[0]), text)
        else:
            text = _PLAIN.sub(lambda m: _mark(m[0]), text)
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}… ({len(text):,} characters)"
    return f"{text}\x1b[0m" if "\x1b" in text else text


def safe(text: str) -> str:
    """Lines without escape sequences and controls: what tasks return, and names of files, may hold any."""
    if text.isprintable():
        return text
    return "\n".join(_PLAIN.sub(lambda m: _mark(m[0]), line) for line in text.split("\n"))


def one_line(message: str) -> str:
    """A message as one short line that is safe to show: its lines one after the other, and no more than fit."""
    if len(message) <= ERROR and message.isprintable():
        return message.strip()
    start = message[: 8 * ERROR]  # the rest, megabytes it may be, is not looked at
    line = " ".join(word for part in start.splitlines() for word in clean(part).split())
    if len(start) < len(message) or len(line) > ERROR:
        line = f"{line[:ERROR].rstrip()}… ({len(message):,} characters)"
    return line


def _mark(found: str) -> str:
    return "" if found[0] in "\x1b\b" else "\ufffd"


class Lines:
    """Whole lines out of the pieces in which output arrives."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Lines that end in this piece, without their ends."""
        *lines, rest = (self._rest + piece).split(b"\n")
        if len(rest) > UNFINISHED:  # of a bar that is drawn anew and anew, or of no text at all
            rest = rest[-UNFINISHED:]
        self._rest = rest
        return lines

    def end(self) -> list[bytes]:
        """The last line, if it has no end."""
        rest, self._rest = self._rest, b""
        return [rest] if rest.strip(b"\r") else []
