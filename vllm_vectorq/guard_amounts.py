# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The quantities and dates that the tokens of a text spell together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from . import guard_names as names
from .guard_numbers import Quantity, bare, read_words, unit_name, with_unit
from .guard_tokens import Token
from .guard_units import CURRENCIES, SCALES, SYMBOLS, UNITS
from .guard_vocabulary import (
    BOUNDARY,
    CAPITAL,
    CONTENT,
    DATE,
    END,
    LIGHT,
    NUMBER,
    NUMBER_WORD,
    UNIT,
)
from .guard_words import words

_ARTICLES = words("a an")
# "this one", "which one", "first of all": these count nothing.
_IDLE = words("one first second half")
_LOOSE_PERIODS = words("today tonight")
# "a year" is an amount; "a degree" may be a subject.
_ONLY_AMOUNTS = frozenset(("s", "pound", *CURRENCIES.values()))


@dataclass(slots=True)
class Amounts:
    """Quantities and dates of a text.

    Attributes:
        quantities: Numbers with their units.
        counted: What bare numbers count, as pairs of word and number.
        dates: Days, months and relative times, each after its kind and a colon.
        used: Indices of the tokens that spell these and say nothing else.
    """

    quantities: set[Quantity] = field(default_factory=set)
    counted: set[tuple[str, float | str]] = field(default_factory=set)
    dates: set[str] = field(default_factory=set)
    used: set[int] = field(default_factory=set)


def read_amounts(
    tokens: Sequence[Token], numbers: Sequence[int], dates: Sequence[int]
) -> Amounts:
    """Quantities and dates at these indices, of numbers or units and of dates."""
    found = Amounts()
    for index in dates:
        _add_date(found, tokens, index)
    if numbers:
        _add_quantities(found, tokens, numbers)
    return found


def _add_quantities(
    found: Amounts, tokens: Sequence[Token], numbers: Sequence[int]
) -> None:
    done = 0
    spelled = [token.word for token in tokens]
    for index in numbers:
        if index < done:
            continue
        token = tokens[index]
        if token.flags & NUMBER_WORD:
            quantity, done = read_words(spelled, index)
            if token.word == "half" and set(spelled[done : done + 1]) & _ARTICLES:
                done += 1  # half an hour
        elif token.quantity is not None:
            quantity, done = _scaled(token.quantity, spelled, index + 1)
        elif index and tokens[index - 1].word in _ARTICLES:
            _add_one(found, token.word, index)
            continue
        else:
            continue
        quantity, done = _united(quantity, tokens, index, done)
        _add(found, quantity, tokens, range(index, done))


def _scaled(
    quantity: Quantity, spelled: Sequence[str], after: int
) -> tuple[Quantity, int]:
    scale = SCALES.get(spelled[after]) if after < len(spelled) else None
    if scale is None:
        return quantity, after
    if quantity.unit:
        return Quantity(
            quantity.unit,
            float(quantity.value) * scale,
            quantity.raw * scale,
            sure=True,
        ), after + 1
    return bare(quantity.raw * scale, True), after + 1


def _united(
    quantity: Quantity, tokens: Sequence[Token], first: int, after: int
) -> tuple[Quantity, int]:
    """The quantity with the unit that stands after or before it."""
    if quantity.unit and quantity.unit != "clock12":
        return quantity, after
    open_end = after < len(tokens) and not tokens[after - 1].flags & BOUNDARY
    if open_end and tokens[after].flags & UNIT:
        name = unit_name(tokens[after].word, glued=False)
        is_half = name is not None and UNITS[name][0] in ("clock12", "clock24")
        if name is not None and (not quantity.unit or is_half):
            hours = int(quantity.raw) + quantity.raw % 1 / 0.6
            raw = hours if quantity.unit else quantity.raw
            return with_unit(raw, name), after + 1
    if first and tokens[first - 1].word in SYMBOLS:
        return with_unit(quantity.raw, tokens[first - 1].word), after
    return quantity, after


def _add_one(found: Amounts, unit: str, index: int) -> None:
    name = unit_name(unit, glued=False)
    if name is None:
        return
    one = with_unit(1.0, name)
    found.quantities.add(Quantity(one.unit, one.value, 1.0, sure=False))
    if UNITS[name][0] in _ONLY_AMOUNTS:
        found.used.add(index)


def _add(
    found: Amounts, quantity: Quantity, tokens: Sequence[Token], spelled: range
) -> None:
    after = spelled.stop
    next_one = tokens[after] if after < len(tokens) else None
    ended = bool(tokens[after - 1].flags & BOUNDARY)
    counts = next_one is not None and not ended and next_one.flags & (CONTENT | LIGHT)
    if not counts and not quantity.sure and tokens[after - 1].word in _IDLE:
        return
    found.quantities.add(quantity)
    found.used.update(spelled)
    if not counts or next_one is None or quantity.unit:
        return
    if not next_one.flags & DATE:
        found.counted.add((next_one.stem, quantity.value))


def _add_date(found: Amounts, tokens: Sequence[Token], index: int) -> None:
    word = tokens[index].word
    name = word if _known(word) else word.removesuffix("s")
    spelled = range(index, index + 1)
    date = ""
    if name in names.WEEKDAYS:
        date = "day:" + names.WEEKDAYS[name]
    elif name in names.RELATIVE_DAYS:
        date = ("soon:" if name in _LOOSE_PERIODS else "day:") + name
    elif name in names.MONTHS:
        if _is_month(tokens, index):
            date = "month:" + names.MONTHS[name]
    elif name in names.PERIOD_CUES:
        date = _period(tokens, index)
        spelled = range(index, index + 2)
    if date:
        found.dates.add(date)
        found.used.update(spelled)
    # These are subjects as well: "spring water".
    for kind, members in _KINDS.items():
        if name in members:
            found.dates.add(kind + name)


_KINDS = {
    "season:": names.SEASONS,
    "holiday:": names.HOLIDAYS,
    "part:": names.DAY_PARTS,
}


def _known(word: str) -> bool:
    return word in names.WEEKDAYS or word in names.MONTHS or word in names.PERIOD_CUES


def _is_month(tokens: Sequence[Token], index: int) -> bool:
    token = tokens[index]
    if token.word not in names.AMBIGUOUS_MONTHS:
        return True
    before = tokens[index - 1] if index else None
    after = tokens[index + 1] if index + 1 < len(tokens) else None
    if before and (before.flags & NUMBER or before.word in names.MONTH_CUES):
        return True
    if after and after.flags & NUMBER:
        return True
    return bool(token.flags & CAPITAL and before and not before.flags & END)


_CUES = {"coming": "next", "following": "next", "previous": "last", "past": "last"}


def _period(tokens: Sequence[Token], index: int) -> str:
    if index + 1 == len(tokens) or tokens[index].flags & BOUNDARY:
        return ""
    period = tokens[index + 1].word.removesuffix("s")
    if period not in names.PERIODS and period not in names.WEEKDAYS:
        return ""
    cue = tokens[index].word
    kind = "soon:" if cue == "this" else "when:"
    return f"{kind}{_CUES.get(cue, cue)} {period}"
