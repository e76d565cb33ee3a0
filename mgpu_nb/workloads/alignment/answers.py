r"""Final answers of word problems as exact numbers: ``#### 1,234``, ``\boxed{\frac{3}{4}}``, or the last number.

Text of a model is read by patterns alone; nothing in it is evaluated. Percent signs, currencies and units are left out:
``$42``, ``42 %`` and ``42 apples`` are 42.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

__all__ = ["final_answer", "same_answer"]

_MARK = re.compile(r"####[^\S\n]*([^\n]*)")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_FRACTION = re.compile(r"\\[dtc]?frac(?![A-Za-z])\s*")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname|left|right)(?![A-Za-z])\s*")
_CURRENCY = re.compile(r"\\?[$€£¥₹]|\b(?:USD|EUR|GBP|INR|CAD|AUD|Rs\.?)(?=\s?[-+]?[0-9.])", re.IGNORECASE)
_DIGITS = r"(?>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|(?<![.A-Za-z])\.[0-9]+)"
_POWER = (
    r"\s*(?:\\times|\\cdot|[x×*·])\s*10\s*\^\s*\{?([-+]?[0-9]{1,3})\}?|[eE]([-+]?[0-9]{1,3})(?![0-9A-Za-z.])"
)
_NUMBER = re.compile(
    # No part of a word or a number, no exponent, no index; a sign is one only where nothing is taken away from.
    r"(?<![A-Za-z0-9^])(?<![0-9]\.)(?<![\^_]\{)(?<![A-Za-z]_)(?:(?<![0-9A-Za-z)\]}])([-+]))?"
    r"(?:([0-9]++)\s++(?=[0-9]+\s*/\s*[0-9]))?"  # of 1 3/4
    rf"({_DIGITS})(?:\s*/\s*({_DIGITS}))?(?:{_POWER})?(?!(?:st|nd|rd|th)\b)"
)
_LONGEST = 60  # digits of a number; more are no answer, and cost time
_LARGEST_POWER = 30


def final_answer(text: str) -> Fraction | None:
    r"""Number that a text ends with.

    That is the one behind the first ``####``, for what follows may be the next problem; else the one in the last
    ``\boxed{...}``; else the last number of the text.

    Returns
    -------
    Fraction or None
        Exact value; None if there is no number.
    """
    marked = _MARK.search(text)
    boxed = _last_box(text)
    for stated in (marked and marked[1], boxed):
        if stated is not None and (found := _stated(stated)) is not None:
            return found
    return _first(reversed(list(_NUMBER.finditer(_plain(text)))))


def same_answer(answer: str, text: str) -> bool:
    """Whether a text ends with the number that an answer ends with."""
    wanted = final_answer(answer)
    return wanted is not None and final_answer(text) == wanted


def _stated(text: str) -> Fraction | None:
    """Number of a short statement: the first one behind the last equals sign, if there is one."""
    plain = _plain(text).strip()
    for part in (re.split(r"[=≈]|\\approx", plain)[-1].strip(), plain):
        part = re.sub(r"^([-+])\s+", r"\1", part)
        if (found := _first(_NUMBER.finditer(part))) is not None:
            return found
    return None


def _first(matches: Iterable[re.Match[str]]) -> Fraction | None:
    """First of some numbers that has a value."""
    return next((value for match in matches if (value := _value(match)) is not None), None)


def _value(match: re.Match[str]) -> Fraction | None:
    sign, whole, number, divisor, times, exponent = match.groups()
    power = int(times or exponent or 0)
    if max(len(part or "") for part in (whole, number, divisor)) > _LONGEST or abs(power) > _LARGEST_POWER:
        return None
    value = Fraction(number.replace(",", ""))
    if divisor is not None:
        below = Fraction(divisor.replace(",", ""))
        if not below:
            return None
        value /= below
    if whole is not None:
        value += int(whole)
    value *= Fraction(10) ** power
    return -value if sign == "-" else value


def _plain(text: str) -> str:
    r"""Text without LaTeX around its numbers: ``\frac{3}{4}`` becomes ``3/4``, ``1{,}234`` becomes ``1,234``."""
    text = text.replace("−", "-").replace("–", "-").replace("\\%", "%").replace("\\,", "").replace("\\!", "")
    text = text.replace("{,}", ",").replace("\u202f", "").replace("\\ ", " ")
    text = _TEXT.sub(" ", _CURRENCY.sub("", text))
    return _fractions(text)


def _fractions(text: str) -> str:
    r"""Text with ``\frac{a}{b}`` and ``\frac12`` as ``a/b``."""
    parts, at = [], 0
    for match in _FRACTION.finditer(text):
        if match.start() < at:
            continue
        above, middle = _group(text, match.end())
        below, end = _group(text, middle)
        whole = text[at : match.start()]
        space = " " if whole[-1:].isdigit() else ""  # 1\frac{1}{2}
        parts += [whole, space, f"{above.strip()}/{below.strip()}"]
        at = end
    return "".join([*parts, text[at:]])


def _group(text: str, start: int) -> tuple[str, int]:
    """Content of the braces at a place, which may hold others, or the one sign there; and the place after it."""
    while start < len(text) and text[start].isspace():
        start += 1
    if text[start : start + 1] != "{":
        return text[start : start + 1], min(start + 1, len(text))
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if not depth:
            return text[start + 1 : at], at + 1
    return text[start + 1 :], len(text)  # cut off


def _last_box(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}``; of ``\boxed 42`` up to the next blank or dollar sign."""
    found = None
    for match in _BOX.finditer(text):
        found = match
    if found is None:
        return None
    if text[found.end() : found.end() + 1] == "{":
        return _group(text, found.end())[0]
    return re.split(r"[\s$]", text[found.end() :], maxsplit=1)[0]
