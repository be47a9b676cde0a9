# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Other spellings of one word: with a slip of the keyboard, or as an acronym."""

from __future__ import annotations

from collections.abc import Collection

from .guard_names import NAMES
from .guard_signature import NO_WORDS, Signature, Words
from .guard_stems import stem
from .guard_vocabulary import look_up

_SHORTEST = 5
_MOST_CANDIDATES = 8


def alike(word: str, candidates: Collection[str]) -> bool:
    """Whether a candidate is the word with one slip of the keyboard.

    Names that are known are never misspellings of others, and nothing is alike when
    there are so many candidates that one would be by chance.
    """
    if len(word) < _SHORTEST or len(candidates) > _MOST_CANDIDATES:
        return False
    return any(
        candidate[0] == word[0]
        and not (word in NAMES and candidate in NAMES)
        and _one_slip(word, candidate)
        for candidate in candidates
        if candidate
    )


def _one_slip(one: str, other: str) -> bool:
    """Whether one letter is missing, doubled, replaced or swapped with the next."""
    short, long = sorted((one, other), key=len)
    if len(long) - len(short) > 1 or short == long:
        return short == long
    at = next(
        (i for i, (s, t) in enumerate(zip(short, long, strict=False)) if s != t),
        len(short),
    )
    if len(short) < len(long):
        return short[at:] == long[at + 1 :]
    if short[at + 1 :] == long[at + 1 :]:
        return True
    swapped = short[at : at + 2][::-1] == long[at : at + 2]
    return swapped and short[at + 2 :] == long[at + 2 :]


def date_words(text: Signature) -> Words:
    """Stems of the days and months of a text."""
    return frozenset(stem(date.partition(":")[2]) for date in text.dates)


def acronyms(one: Signature, other: Signature) -> Words:
    """Acronyms of the one text that the other writes in full."""
    if not one.acronyms:
        return NO_WORDS
    unknown = one.acronyms - other.words
    return frozenset(name for name in unknown if _written_out(name, other))


def in_full(one: Signature, other: Signature) -> Words:
    """Stems of the other text that acronyms of the one stand for."""
    names = acronyms(one, other)
    if not names:
        return NO_WORDS
    return NO_WORDS.union(*(_written_out(name, other) for name in names))


def _written_out(name: str, other: Signature) -> Words:
    """Stems of the words with these first letters; none when they are no phrase."""
    at = other.initials.find(name)
    if at < 0:
        return NO_WORDS
    spoken = other.line.split(" ")[at : at + len(name)]
    roots = [look_up(word)[0] for word in spoken]
    return frozenset(roots) if roots[0] and roots[-1] else NO_WORDS
