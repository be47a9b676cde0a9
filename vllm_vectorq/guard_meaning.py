# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Guards on what is meant: negation, opposites, names, direction, scope, subject."""

from __future__ import annotations

from collections.abc import Collection

from .guard_names import NAMES
from .guard_signature import Signature, Words, agreement
from .guard_spelling import acronyms, alike, date_words, in_full
from .guard_stems import ACTION_OF, concept
from .guard_vocabulary import look_up

_SAME_FRAME = 0.58
_RELATED = 0.25
_MOST_EXCHANGED = 3
_MOST_ROTATED = 40
# In otherwise the same sentence, these make another one of it.
_TURNING = frozenset(("after", "before", "without", "until", "out", "off"))
_PRICE = frozenset((concept("price"),))
# Question words that may ask for the same.
_COMPATIBLE = ({"when", "duration"}, {"who", "where"}, {"amount", "duration"})


def negation(a: Signature, b: Signature, near: bool) -> str:
    """Something is denied in one text that the other affirms."""
    if a.negated or b.negated:
        mine = (a.negated - a.plain) & ((b.plain | b.light) - b.negated)
        theirs = (b.negated - b.plain) & ((a.plain | a.light) - a.negated)
        # "cannot make a transfer" and "can not transfer" deny the same.
        unclear = a.negates and b.negates and not (a.negated and b.negated)
        if (mine or theirs) and not (unclear and a.asks_negated == b.asks_negated):
            return "negation"
    if a.negates == b.negates:
        return ""
    asks = a.asks_negated or b.asks_negated
    related = not (a.content and b.content) or agreement(a, b) >= _RELATED
    return "negation" if near or (asks and related) else ""


def opposites(a: Signature, b: Signature, near: bool) -> str:
    """One text says the opposite of a word of the other."""
    one_way = a.left & ~a.right & b.right & ~b.left
    other_way = a.right & ~a.left & b.left & ~b.right
    turned = a.content == b.content and _turned(a.words ^ b.words)
    return "opposites" if one_way or other_way or turned else ""


def _turned(exchanged: Words) -> bool:
    return len(exchanged) <= _MOST_EXCHANGED and not exchanged.isdisjoint(_TURNING)


def entities(a: Signature, b: Signature, near: bool) -> str:
    """Names that the other text does not have."""
    if a.entities == b.entities:
        return ""
    mine = a.entities - b.words - acronyms(a, b) - in_full(b, a)
    theirs = b.entities - a.words - acronyms(b, a) - in_full(a, b)
    mine, theirs = _not_misspelled(mine, a, b), _not_misspelled(theirs, b, a)
    return "entities" if (mine and theirs) or (near and (mine or theirs)) else ""


def _not_misspelled(names: Words, one: Signature, other: Signature) -> Words:
    unknown = (other.content - one.content) | date_words(other)
    return frozenset(
        name for name in names if name in NAMES or not alike(name, unknown)
    )


def direction(a: Signature, b: Signature, near: bool) -> str:
    """The same things with their roles exchanged."""
    if a.relations and b.relations:
        others = dict(b.relations)
        for relation, mine in a.relations:
            theirs = others.get(relation)
            if theirs is None or not mine.isdisjoint(theirs):
                continue
            if mine <= b.words and theirs <= a.words:
                return "direction"
    if a.bare != b.bare and a.content == b.content and _reordered(a.bare, b.bare):
        return "direction"
    return ""


def _reordered(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether the same words stand in an order that fronting does not explain."""
    if not 3 <= len(one) <= _MOST_ROTATED or sorted(one) != sorted(other):
        return False
    return all(one[at:] + one[:at] != other for at in range(len(one)))


def question(a: Signature, b: Signature, near: bool) -> str:
    """Another question word."""
    asked = {a.question, b.question}
    if not near or len(asked) == 1 or "" in asked or asked in _COMPATIBLE:
        return ""
    return "question"


def scope(a: Signature, b: Signature, near: bool) -> str:
    """Another quantifier, or other people."""
    if not near:
        return ""
    if _limits(a, b) or _limits(b, a) or a.people != b.people:
        return "scope"
    if _narrows(a, b) or _narrows(b, a):
        return "scope"
    if a.first_person == b.first_person:
        return ""
    if not _one_frame(a, b):
        return ""
    asker, other = (a, b) if a.first_person else (b, a)
    others = (other.content - asker.content) & other.nouns
    return "scope" if others and not asker.content - other.content else ""


def _limits(one: Signature, other: Signature) -> bool:
    """Whether a text has a word that changes which rule applies, and the other not."""
    extra = one.scope - other.scope - {"all"}
    unknown = _spelled(other.content - one.content, other) if extra else ()
    return any(not alike(word, unknown) for word in extra)


def _narrows(one: Signature, other: Signature) -> bool:
    """Whether a text is the other with something added: "for trucks", "senior"."""
    if not (one.content < other.content and one.words <= other.words):
        return False
    return not other.nouns <= one.content


def subject(a: Signature, b: Signature, near: bool) -> str:
    """Another noun, or another action, in what is otherwise the same sentence."""
    mine, theirs = a.content - b.content, b.content - a.content
    if not 1 <= len(mine) <= _MOST_EXCHANGED or not 1 <= len(theirs) <= _MOST_EXCHANGED:
        return ""
    if not _one_frame(a, b):
        return ""
    mine = mine - acronyms(a, b) - in_full(b, a)
    theirs = theirs - acronyms(b, a) - in_full(a, b)
    mine, theirs = _new_words(mine, theirs, a, b), _new_words(theirs, mine, b, a)
    if mine & a.nouns and theirs & b.nouns:
        return "subject"
    if len(mine) == len(theirs) == 1:
        actions = [ACTION_OF.get(word) for word in (*mine, *theirs)]
        if None not in actions and actions[0] != actions[1]:
            return "subject"
    return ""


def _one_frame(a: Signature, b: Signature) -> bool:
    """Whether the texts are one sentence with few words exchanged."""
    shorter = min(len(a.words), len(b.words))
    return len(a.words & b.words) >= _SAME_FRAME * shorter


def _new_words(mine: Words, theirs: Words, one: Signature, other: Signature) -> Words:
    line = other.line.replace(" ", "")
    if other.question == "amount":
        mine = mine - _PRICE  # "how much is it" asks for the price
    unknown = _spelled(theirs, other)
    return frozenset(
        word
        for word in mine
        if not any(alike(spelling, unknown) for spelling in _spelled({word}, one))
        and not (len(word) > 3 and word in line)
    )


def _spelled(stems: Collection[str], text: Signature) -> list[str]:
    """The words of a text with these stems, as they are written there."""
    return [word for word in text.line.split(" ") if look_up(word)[0] in stems]
