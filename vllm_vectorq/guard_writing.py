# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Guards on what is written out: languages, code, identifiers, numbers, dates."""

from __future__ import annotations

from .guard_numbers import Quantity, differ_in_unit, unmatched
from .guard_signature import Signature, Words
from .guard_spelling import acronyms, alike
from .guard_stems import stem
from .guard_text import mixes_scripts

_DAY_KINDS = {"soon": "day", "when": "day"}
_DECISIVE_DATES = ("day:", "when:", "month:", "holiday:")


def language(a: Signature, b: Signature, near: bool) -> str:
    """Another script or language."""
    known = a.language and b.language
    differs = a.script != b.script or (known and a.language != b.language)
    return "language" if differs else ""


def code(a: Signature, b: Signature, near: bool) -> str:
    """Other code or another quotation."""
    if a.code != b.code:
        return "code"
    if a.operators != b.operators and (near or (a.operators and b.operators)):
        return "code"
    if a.quotes == b.quotes:
        return ""
    mine = any(quote not in b.line for quote in a.quotes - b.quotes)
    theirs = any(quote not in a.line for quote in b.quotes - a.quotes)
    return "code" if mine and theirs else ""


def ids(a: Signature, b: Signature, near: bool) -> str:
    """Other identifiers."""
    if a.ids == b.ids:
        return ""
    mine, theirs = _without_spaces(a, b), _without_spaces(b, a)
    if any(not name.isascii() and mixes_scripts(name) for name in (*mine, *theirs)):
        return "ids"  # "cancel" with a letter that only looks right
    return "ids" if (mine and theirs) or (near and (mine or theirs)) else ""


def _without_spaces(one: Signature, other: Signature) -> list[str]:
    """Identifiers of the one text that the other does not even write in parts."""
    left = one.ids - other.ids - acronyms(one, other)
    line = other.line.replace(" ", "") if left else ""
    return [name for name in left if name not in line and not _counts(name, other)]


def _counts(name: str, other: Signature) -> bool:
    digits = name.strip("abcdefghijklmnopqrstuvwxyz-_")
    return any(digits == quantity.value for quantity in other.quantities)


def numbers(a: Signature, b: Signature, near: bool) -> str:
    """Other numbers, or the same of another unit."""
    if a.quantities != b.quantities:
        mine, theirs = _uncoded(a, b), _uncoded(b, a)
        if any(_comparable(one, other) for one in mine for other in theirs):
            return "units" if differ_in_unit(mine, theirs) else "numbers"
        if near and any(quantity.sure for quantity in (*mine, *theirs)):
            return "numbers"
    if a.counted != b.counted and _count_differently(a, b):
        return "numbers"
    return ""


def _uncoded(one: Signature, other: Signature) -> list[Quantity]:
    """Quantities that the other text has neither as such nor inside a code."""
    left = unmatched(one.quantities, other.quantities)
    if not other.ids:
        return left
    return [q for q in left if not any(str(q.value) in name for name in other.ids)]


def _comparable(one: Quantity, other: Quantity) -> bool:
    return (one.sure and other.sure) or one.unit == other.unit


def _count_differently(a: Signature, b: Signature) -> bool:
    """Whether a thing that both texts count has other numbers in each."""
    mine, theirs = a.counted - b.counted, b.counted - a.counted
    for thing in {thing for thing, _ in mine} & {thing for thing, _ in theirs}:
        values = {value for name, value in a.counted if name == thing}
        if values.isdisjoint(value for name, value in b.counted if name == thing):
            return True
    return False


def dates(a: Signature, b: Signature, near: bool) -> str:
    """Other days, months or times."""
    if a.dates == b.dates:
        return ""
    mine, theirs = _unspelled(a, b), _unspelled(b, a)
    if {_kind(date) for date in mine} & {_kind(date) for date in theirs}:
        only_soon = all(date.startswith("soon:") for date in mine | theirs)
        return "" if only_soon else "dates"
    decisive = any(date.startswith(_DECISIVE_DATES) for date in mine | theirs)
    return "dates" if near and decisive else ""


def _kind(date: str) -> str:
    kind = date.partition(":")[0]
    return _DAY_KINDS.get(kind, kind)


def _unspelled(one: Signature, other: Signature) -> Words:
    """Dates of the one text that the other does not have, not even misspelled."""
    left = one.dates - other.dates
    unknown = other.content - one.content
    return frozenset(
        date for date in left if not alike(stem(date.partition(":")[2]), unknown)
    )
