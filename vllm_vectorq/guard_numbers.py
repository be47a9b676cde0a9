# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Quantities: numbers in any spelling, with their units in base units."""

from __future__ import annotations

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from .guard_units import (
    GLUED_ONLY,
    MULTIPLIERS,
    NUMBER_WORDS,
    ORDINAL_ENDINGS,
    SCALES,
    SYMBOLS,
    UNITS,
    VAGUE,
)

_WRITTEN = re.compile(
    r"([-+]?)((?:us|au|ca|nz|hk|[acs])?[£$€¥₹₽₩₺₴฿])?([-+]?)"
    r"(\d[\d,.'_]*|\.\d+)(.{0,12})"
)
_CLOCK = re.compile(r"(\d{1,2})([:.])(\d{2})(?::\d{2})?(am|pm|a\.m|p\.m|h)?")
# Longer runs of digits are identifiers, not amounts.
_MOST_DIGITS = 15
_MOST_COMPARED = 400
_HALF_DAY_MIN = 720
NO_UNITS: frozenset[str] = frozenset()
# "from 7 to 9 pm" leaves a unit out.
_OFTEN_BARE = frozenset(("", "clock", "clock12"))
# Units that a second, looser spelling may stand for.
_LOOSE = ({"pound", "gbp"}, {"deg", "c"}, {"penny", "cent"})


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number and its unit; equal when unit and value are.

    Attributes:
        unit: Base unit, currency, ``clock`` or ``clock12``; empty for a bare number.
        value: In base units, to nine digits; a bare number as it is spelled, so that
            version 3.1 is not 3.10.
        raw: The number as written.
        sure: Whether it certainly counts something: digits, or a unit is given.
    """

    unit: str
    value: float | str
    raw: float = field(compare=False)
    sure: bool = field(compare=False)


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")


def bare(raw: float, sure: bool, spelling: str | None = None) -> Quantity:
    """A number without a unit."""
    return Quantity("", spelling or f"{raw:.15g}", raw, sure)


def with_unit(raw: float, name: str) -> Quantity:
    """A number with the unit of this name, which must be in ``UNITS``."""
    base, factor = UNITS[name]
    if base == "clock":
        return Quantity("clock12", raw % 12 * 60, raw, True)
    if base in ("clock12", "clock24"):
        minutes = raw % 12 * 60 + (_HALF_DAY_MIN if base == "clock24" else 0)
        return Quantity("clock", minutes, raw, True)
    if base == "f":
        return Quantity("c", _rounded((raw - 32) / 1.8), raw, True)
    return Quantity(base, _rounded(raw * factor), raw, True)


def unit_name(word: str, glued: bool) -> str | None:
    """The key of ``UNITS`` for a word after a number, or None."""
    for name in (word, word.removesuffix("."), word.removesuffix("s")):
        if name in UNITS and (glued or name not in GLUED_ONLY):
            return name
    return None


def read_written(text: str) -> Quantity | None:
    """The quantity that a word with digits in lower case spells, or None."""
    if (clock := _CLOCK.fullmatch(text)) and (clock[2] == ":" or clock[4]):
        return _read_clock(int(clock[1]), int(clock[3]), clock[4] or "")
    match = _WRITTEN.fullmatch(text)
    if match is None:
        return None
    spelling = _decimal(match[4])
    if spelling is None:
        return None
    negative = "-" in (match[1], match[3])
    spelling = "-" + spelling if negative else spelling
    return _suffixed(float(spelling), spelling, match[2] or "", match[5])


def _suffixed(raw: float, spelling: str, symbol: str, suffix: str) -> Quantity | None:
    if symbol:
        if suffix in MULTIPLIERS:
            raw, suffix = raw * MULTIPLIERS[suffix], ""
        return with_unit(raw, symbol) if suffix in ("", "+") else None
    if suffix in ("", "+", "s", "ish") or suffix in ORDINAL_ENDINGS:
        return bare(raw, True, spelling)
    if suffix in SYMBOLS:
        return with_unit(raw, suffix)
    if name := unit_name(suffix, glued=True):
        return with_unit(raw, name)
    if suffix in MULTIPLIERS:
        return bare(raw * MULTIPLIERS[suffix], True)
    return None


def _read_clock(hour: int, minute: int, half: str) -> Quantity | None:
    if hour > 24 or minute > 59:
        return None
    minutes = float(hour * 60 + minute)
    raw = hour + minute / 100
    if half in ("am", "a.m"):
        return Quantity("clock", minutes % _HALF_DAY_MIN, raw, True)
    if half in ("pm", "p.m"):
        return Quantity("clock", minutes % _HALF_DAY_MIN + _HALF_DAY_MIN, raw, True)
    if 1 <= hour <= 12:
        return Quantity("clock12", minutes % _HALF_DAY_MIN, raw, True)
    return Quantity("clock", minutes, raw, True)


def _decimal(digits: str) -> str | None:
    """Digits with separators as a plain decimal, or None when they are none."""
    digits = digits.replace("'", "").replace("_", "").rstrip(".,")
    if sum(map(str.isdigit, digits)) > _MOST_DIGITS:
        return None
    if "," in digits and "." in digits:
        point = "." if digits.rfind(".") > digits.rfind(",") else ","
        digits = digits.replace("," if point == "." else ".", "").replace(point, ".")
    elif "," in digits:
        digits = _commas(digits)
    elif digits.count(".") > 1:
        digits = digits.replace(".", "") if _grouped(digits, ".") else digits
    if digits.count(".") > 1 or "," in digits:
        return None
    whole, point, fraction = digits.partition(".")
    return (whole.lstrip("0") or "0") + point + fraction


def _commas(digits: str) -> str:
    if _grouped(digits, ","):
        return digits.replace(",", "")
    return digits.replace(",", ".") if digits.count(",") == 1 else digits


def _grouped(digits: str, separator: str) -> bool:
    first, *others = digits.split(separator)
    return 1 <= len(first) <= 3 and all(len(group) == 3 for group in others)


def read_words(words: Sequence[str], start: int) -> tuple[Quantity, int]:
    """A number in words from ``start``, where one begins, and the index after it."""
    total, current, index, last = 0.0, 0.0, start, "start"
    while index < len(words):
        word = words[index]
        if word in SCALES:
            current = max(current, 1.0) * SCALES[word]
            last = "scale"
            if SCALES[word] > 100:
                total, current = total + current, 0.0
        elif word in NUMBER_WORDS and (kind := _may_follow(last, word)):
            current += NUMBER_WORDS[word]
            last = kind
        elif not (word == "and" and last == "scale" and _continues(words, index)):
            break
        index += 1
    sure = words[start] not in VAGUE or index > start + 1
    return bare(total + current, sure), index


def _may_follow(last: str, word: str) -> str:
    value = NUMBER_WORDS[word]
    if last == "tens" and 0 < value < 10 and value != 0.5:
        return "units"
    if last in ("start", "scale"):
        return "tens" if value >= 20 else "units"
    return ""


def _continues(words: Sequence[str], index: int) -> bool:
    return index + 1 < len(words) and words[index + 1] in NUMBER_WORDS


def same(one: Quantity, other: Quantity, strict: AbstractSet[str] = NO_UNITS) -> bool:
    """Whether two quantities may mean the same.

    Args:
        one: A quantity of the one text.
        other: A quantity of the other text.
        strict: Units that a bare number does not stand for, as in "15% of 80".
    """
    if one.unit == other.unit:
        return one.value == other.value
    units = {one.unit, other.unit}
    if "" in units and not units.isdisjoint(strict):
        return False
    if units == {"clock", "clock12"}:
        return float(one.value) % _HALF_DAY_MIN == float(other.value) % _HALF_DAY_MIN
    if units & {"clock", "clock12"}:
        return "" in units and one.raw % 12 == other.raw % 12
    if units == {"pound", "g"}:
        weight = one if one.unit == "g" else other
        return weight.value == with_unit(one.raw + other.raw - weight.raw, "lb").value
    return ("" in units or units in _LOOSE) and one.raw == other.raw


def unmatched(mine: frozenset[Quantity], theirs: frozenset[Quantity]) -> list[Quantity]:
    """Quantities of the one text that the other does not have."""
    left = mine - theirs
    if len(left) * len(theirs) > _MOST_COMPARED:
        return list(left)
    if not left:
        return []
    both = {q.unit for q in mine} & {q.unit for q in theirs}
    strict = both - _OFTEN_BARE
    return [q for q in left if not any(same(q, other, strict) for other in theirs)]


def differ_in_unit(mine: list[Quantity], theirs: list[Quantity]) -> bool:
    """Whether a number is the same and only its unit is not."""
    return any(
        one.raw == other.raw and {one.unit, other.unit} not in ({""}, {"clock"})
        for one in mine
        for other in theirs
    )
