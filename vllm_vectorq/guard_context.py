# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Opposites, relations, scope and question of a text, read from its tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .guard_stems import OPPOSITES, stem
from .guard_tokens import Token
from .guard_units import UNITS
from .guard_vocabulary import (
    AUX,
    BOUNDARY,
    CONTENT,
    DATE,
    DETERMINER,
    LIGHT,
    NUMBER,
    NUMBER_WORD,
    PARTICLE,
    UNIT,
)
from .guard_words import (
    ALL,
    EXCEPT,
    FREQUENCIES,
    FREQUENCY_WORDS,
    INFINITIVE_CUES,
    ONLY,
    RESTRICTIVE,
    words,
)

_PARTICLE_TOKENS = 3
_HEAD_TOKENS = 3
# These are limits before a number and places or times elsewhere.
_BOUNDS = words("over under above below")
_TAKING = words("take get pull move transfer withdraw bring taking took")
_TO_US = words("me us")
_EACH = words("a an per each every")
_TOWARDS = words("into onto towards toward")
_HOW = {
    "many": "amount",
    "much": "amount",
    "long": "duration",
    "often": "frequency",
    "far": "distance",
    "old": "age",
    "soon": "when",
    "expensive": "amount",
    "fast": "duration",
    "quickly": "duration",
}
_WHEN = words("time date day")


def read_opposites(
    tokens: Sequence[Token], opposed: Sequence[int], negated: Collection[int]
) -> tuple[int, int]:
    """Axes with a word on the one and on the other side, as bits.

    Args:
        tokens: The text.
        opposed: Indices of words with an opposite, and of particles.
        negated: Indices of words that are negated; they count as their opposites.
    """
    left = right = 0
    for index in opposed:
        token = tokens[index]
        sides = (0, 0)
        if token.flags & PARTICLE:
            sides = _with_particle(tokens, index)
        if sides == (0, 0) and _opposes(tokens, index):
            sides = OPPOSITES.get(stem(token.word), (0, 0))
        if index in negated:
            sides = (sides[1], sides[0])
        left |= sides[0]
        right |= sides[1]
    return left, right


def _opposes(tokens: Sequence[Token], index: int) -> bool:
    word = tokens[index].word
    before = tokens[index - 1] if index else None
    after = tokens[index + 1 : index + 3]
    if word in _BOUNDS:
        return any(t.flags & (NUMBER | NUMBER_WORD | UNIT) for t in after)
    if word in ("old", "older"):
        return before is None or not (before.flags & UNIT or before.word == "how")
    if word in ("first", "last", "next", "previous"):
        return not (after and _is_time(after[0]))
    if word in ("send", "sent", "sending"):
        return not (before and before.word == "you") and not any(
            t.word in _TO_US for t in after
        )
    return True


def _is_time(token: Token) -> bool:
    name = token.word.removesuffix("s")
    return bool(token.flags & DATE) or UNITS.get(name, ("",))[0] == "s"


def _with_particle(tokens: Sequence[Token], index: int) -> tuple[int, int]:
    particle = tokens[index].word
    earlier = range(index - 1, max(index - 1 - _PARTICLE_TOKENS, -1), -1)
    if particle == "of":
        taking = any(t.word in _TAKING for t in tokens[max(index - 6, 0) : index])
        earlier = range(index - 1, index - 2 if taking and index else index - 1, -1)
    for at in earlier:
        if tokens[at].flags & BOUNDARY:
            break
        sides = OPPOSITES.get(f"{stem(tokens[at].word)}_{stem(particle)}")
        if sides is not None:
            return sides
    return 0, 0


def read_relations(
    tokens: Sequence[Token], relations: Sequence[int]
) -> tuple[tuple[str, frozenset[str]], ...]:
    """Relation words such as "to" and "than" with the words that follow them."""
    found: dict[str, frozenset[str]] = {}
    for index in relations:
        word = tokens[index].word
        if word == "to" and (
            index == 0
            or tokens[index - 1].flags & BOUNDARY
            or tokens[index - 1].word in INFINITIVE_CUES
        ):
            continue
        name = "to" if word in _TOWARDS else word
        if heads := _heads(tokens, index):
            found[name] = found.get(name, frozenset()) | heads
    return tuple(found.items())


def _heads(tokens: Sequence[Token], index: int) -> frozenset[str]:
    heads: set[str] = set()
    if tokens[index].flags & BOUNDARY:
        return frozenset()
    for token in tokens[index + 1 : index + 2 + _HEAD_TOKENS]:
        if token.flags & (CONTENT | LIGHT | NUMBER):
            heads.add(token.stem)
        elif heads or not token.flags & DETERMINER:
            break
        if token.flags & BOUNDARY:
            break
    return frozenset(heads)


def read_scope(tokens: Sequence[Token], scopes: Sequence[int]) -> set[str]:
    """Words that change which rule applies: only, all, except, joint, monthly."""
    found: set[str] = set()
    for index in scopes:
        word = tokens[index].word
        if word in ONLY:
            found.add("only")
        elif word in ALL:
            found.add("all")
        elif word in EXCEPT:
            found.add("except")
        elif word in RESTRICTIVE or word in FREQUENCY_WORDS:
            found.add(word)
        elif word.startswith("ann"):
            found.add("yearly")
        elif _is_rate(tokens, index):
            found.add(FREQUENCIES[word])
    return found


def _is_rate(tokens: Sequence[Token], index: int) -> bool:
    """Whether a period is one that something repeats in: not in "half an hour"."""
    if not index or tokens[index - 1].word not in _EACH:
        return False
    return index < 2 or tokens[index - 2].word != "half"


def measures(tokens: Sequence[Token], questions: Sequence[int]) -> set[int]:
    """Indices of words such as "long" in "how long", which are no subject."""
    return {
        index + 1
        for index in questions
        if tokens[index].word == "how"
        and index + 1 < len(tokens)
        and (tokens[index + 1].word in _HOW or _degree(tokens, index))
    }


def _degree(tokens: Sequence[Token], index: int) -> str:
    """What "how" asks for: an amount, a time, or the degree in "how hard is it"."""
    after = tokens[index + 1]
    if after.word in _HOW:
        return _HOW[after.word]
    if after.word == "come":
        return "why"
    if after.flags & CONTENT and index + 2 < len(tokens):
        return after.stem if tokens[index + 2].flags & AUX else ""
    return ""


def read_question(tokens: Sequence[Token], questions: Sequence[int]) -> str:
    """What the first question word asks for; empty when it could be many things."""
    if not questions:
        return ""
    index = questions[0]
    word = tokens[index].word
    after = tokens[index + 1] if index + 1 < len(tokens) else None
    if word == "why":
        return "why"
    if after is None or tokens[index].flags & BOUNDARY:
        return ""
    if word == "how":
        return _degree(tokens, index)
    if word == "what":
        return "when" if after.word in _WHEN else ""
    if word in ("when", "where") and after.flags & AUX:
        return word
    starts = index == 0 or tokens[index - 1].flags & BOUNDARY
    return "who" if word == "who" and starts else ""
