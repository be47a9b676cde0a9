# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Word stems, and what the relations between words mean for stems."""

from __future__ import annotations

from functools import lru_cache

from . import guard_thesaurus as thesaurus

_VOWELS = frozenset("aeiouy")
_STEM_CACHE = 1 << 15
_LONGEST_STEMMED = 30
_BASES = dict(pair.split() for pair in thesaurus.IRREGULAR.split(";"))


@lru_cache(maxsize=_STEM_CACHE)
def stem(word: str) -> str:
    """A key that the inflections of an English word share; not a word itself."""
    word = _BASES.get(word, word)
    if len(word) < 4 or len(word) > _LONGEST_STEMMED:
        return word
    word = _singular(word)
    for ending in ("ing", "ed"):
        root = word.removesuffix(ending)
        if root != word and len(root) >= 3 and _VOWELS & set(root):
            word = _undoubled(_BASES.get(root, root))
            break
    for ending in ("ment", "ally", "ly", "ion"):
        root = word.removesuffix(ending)
        if root != word and len(root) >= (4 if ending.endswith("ly") else 3):
            word = root
            break
    if word.endswith("y") and len(word) > 3:
        word = word[:-1] + "i"
    if word.endswith(("ise", "ize", "is", "iz")) and len(word) > 5:
        return word.removesuffix("e")[:-1] + "z"
    return word.removesuffix("e") if len(word) > 3 else word


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zzes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _undoubled(root: str) -> str:
    if root[-1] != root[-2] or root[-1] in "sz" or len(root) < 4:
        return root
    return root if root[-1] == "l" and len(root) < 6 else root[:-1]


def _groups(text: str) -> list[list[str]]:
    return [[stem(word) for word in group.split()] for group in text.split(";")]


def _representatives(text: str) -> dict[str, str]:
    heads: dict[str, str] = {}
    for group in _groups(text):
        known = (heads[member] for member in group if member in heads)
        head = next(known, group[0])
        for member in group:
            heads.setdefault(member, head)
    return heads


_HEADS = _representatives(thesaurus.SAME)
ACTION_OF = {
    member: number
    for number, group in enumerate(_groups(thesaurus.ACTIONS))
    for member in group
}


def concept(word: str) -> str:
    """The stem that stands for the word's group of equal meaning."""
    root = stem(word)
    return _HEADS.get(root, root)


def _opposites() -> dict[str, tuple[int, int]]:
    sides: dict[str, tuple[int, int]] = {}
    for number, axis in enumerate(thesaurus.OPPOSITE.split(";")):
        for side, cues in enumerate(axis.split("|")):
            for cue in cues.split():
                key = "_".join(stem(part) for part in cue.split("_"))
                bits = list(sides.get(key, (0, 0)))
                bits[side] |= 1 << number
                sides[key] = (bits[0], bits[1])
    return sides


# Stem, or two stems joined by "_" -> bit masks of the axes where it is on the one
# and on the other side.
OPPOSITES = _opposites()
