# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Tells a misspelling from another word, as well as spelling alone can."""

from __future__ import annotations

from collections.abc import Collection

from .guard_names import NAMES

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
