# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The quantities and dates that the tokens of a text spell together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from . import guard_names as names
from .guard_names import SYMBOLS
from .guard_numbers import Quantity, bare, read_words, unit_name, with_unit
from .guard_tokens import Token
from .guard_units import SCALES, UNITS
from .guard_vocabulary import (
    BREAK,
    CAPITAL,
    CONTENT,
    END,
    LIGHT,
    NUMBER,
    NUMBER_WORD,
    UNIT,
)
from .guard_words import words

_BOUNDARY = END | BREAK
_ARTICLES = words("a an")
# "this one", "which one", "first of all": these count nothing.
_IDLE = words("one first second half")
_LOOSE_PERIODS = words("today tonight")


@dataclass(slots=True)
class Amounts:
    """Quantities of a text, and what its bare numbers count."""

    quantities: set[Quantity] = field(default_factory=set)
    counted: set[tuple[str, float | str]] = field(default_factory=set)


def read_amounts(tokens: Sequence[Token], numbers: Sequence[int]) -> Amounts:
    """Quantities at these indices, of tokens that are numbers or units."""
    found = Amounts()
    done = 0
    spelled = [token.word for token in tokens] if numbers else []
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
            _add_one(found, token.word)
            continue
        else:
            continue
        quantity, done = _united(quantity, tokens, index, done)
        _add(found, quantity, tokens, done)
    return found


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
    open_end = after < len(tokens) and not tokens[after - 1].flags & _BOUNDARY
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


def _add_one(found: Amounts, unit: str) -> None:
    name = unit_name(unit, glued=False)
    if name is not None and UNITS[name][0] == "s":
        one = with_unit(1.0, name)
        found.quantities.add(Quantity(one.unit, one.value, 1.0, sure=False))


def _add(
    found: Amounts, quantity: Quantity, tokens: Sequence[Token], after: int
) -> None:
    next_one = tokens[after] if after < len(tokens) else None
    ended = bool(tokens[after - 1].flags & _BOUNDARY)
    counts = next_one is not None and not ended and next_one.flags & (CONTENT | LIGHT)
    if not counts and not quantity.sure and tokens[after - 1].word in _IDLE:
        return
    found.quantities.add(quantity)
    if counts and next_one is not None and not quantity.unit:
        found.counted.add((next_one.stem, quantity.value))


def read_dates(tokens: Sequence[Token], dates: Sequence[int]) -> set[str]:
    """Days, months and relative times, each after its kind and a colon."""
    found: set[str] = set()
    for index in dates:
        word = tokens[index].word
        name = word if _known(word) else word.removesuffix("s")
        if name in names.WEEKDAYS:
            found.add("day:" + names.WEEKDAYS[name])
        elif name in names.RELATIVE_DAYS:
            found.add(("soon:" if name in _LOOSE_PERIODS else "day:") + name)
        elif name in names.MONTHS:
            if _is_month(tokens, index):
                found.add("month:" + names.MONTHS[name])
        elif name in names.SEASONS:
            found.add("season:" + name)
        elif name in names.HOLIDAYS:
            found.add("holiday:" + name)
        elif name in names.DAY_PARTS:
            found.add("part:" + name)
        elif name in names.PERIOD_CUES:
            found |= _period(tokens, index)
    return found


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


def _period(tokens: Sequence[Token], index: int) -> set[str]:
    if index + 1 == len(tokens) or tokens[index].flags & _BOUNDARY:
        return set()
    period = tokens[index + 1].word.removesuffix("s")
    if period not in names.PERIODS and period not in names.WEEKDAYS:
        return set()
    cue = tokens[index].word
    kind = "soon:" if cue == "this" else "when:"
    return {f"{kind}{_CUES.get(cue, cue)} {period}"}
