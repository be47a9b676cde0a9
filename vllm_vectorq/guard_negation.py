# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What is negated in a text, and whether the question itself is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .guard_stems import concept
from .guard_tokens import Token
from .guard_vocabulary import (
    AUX,
    BOUNDARY,
    CONTENT,
    DETERMINER,
    LEXICAL,
    LIGHT,
    NEGATED_FORM,
    NEGATOR,
    PERSONAL,
    negated_base,
)
from .guard_words import HEDGES, words

_CLAUSE_TOKENS = 30
_SCOPE_TOKENS = 6
_HEDGES = frozenset(map(concept, HEDGES))
_ASKING = words("what which who whom whose where")
_REPORTING = words("why how if unless because that since although though so but")
# "no more than" and the like bound a quantity; they negate nothing.
_STOPPING = words("stop stops stopped")
_COMPARED = words("more less later earlier fewer")


@dataclass(slots=True)
class Negation:
    """What the negators of a text do.

    Attributes:
        negated: Stems in the scope of a negator.
        targets: Indices of the tokens in such a scope.
        asks: Whether a question or command is negated, not a report.
        present: Whether anything is negated.
    """

    negated: set[str] = field(default_factory=set)
    targets: set[int] = field(default_factory=set)
    asks: bool = False
    present: bool = False


def read_negation(tokens: Sequence[Token], negators: Sequence[int]) -> Negation:
    """Negation around the tokens at these indices, of negators or negated forms."""
    found = Negation()
    for index in negators:
        token = tokens[index]
        if token.flags & NEGATED_FORM and not token.flags & NEGATOR:
            found.negated.add(concept(negated_base(token.word)))
            continue
        if not _negates(tokens, index):
            continue
        target = _target(tokens, index)
        root = tokens[target].stem if target is not None else ""
        if root in _HEDGES and not token.flags & LEXICAL:
            continue
        found.present = True
        found.asks = found.asks or _asks(tokens, index)
        if target is not None:
            for at in _denied(tokens, target):
                found.targets.add(at)
                if tokens[at].flags & CONTENT:
                    found.negated.add(tokens[at].stem)
    return found


def _negates(tokens: Sequence[Token], index: int) -> bool:
    token = tokens[index]
    last = index + 1 == len(tokens) or bool(token.flags & BOUNDARY)
    after = "" if last else tokens[index + 1].word
    if token.word in ("no", "not"):
        two_later = tokens[index + 2].word if index + 2 < len(tokens) else ""
        if last or after == "only" or (after in _COMPARED and two_later == "than"):
            return False
    if token.word in _STOPPING:
        return after.endswith("ing")
    return True


def _target(tokens: Sequence[Token], index: int) -> int | None:
    """The word that the negator at ``index`` negates."""
    first = index + 1
    if tokens[index].flags & BOUNDARY or first == len(tokens):
        return None
    # "isn't my card working" negates the verb, not the subject.
    skip_subject = tokens[index].flags & AUX and tokens[first].flags & DETERMINER
    words_after: list[int] = []
    for at in range(first, min(first + _SCOPE_TOKENS, len(tokens))):
        token = tokens[at]
        if token.flags & (CONTENT | LIGHT) and token.word != "longer":
            words_after.append(at)
            if not skip_subject or _looks_verbal(token):
                return at
        if token.flags & BOUNDARY:
            break
    return next(iter(words_after[1:] or words_after), None)


def _looks_verbal(token: Token) -> bool:
    return bool(token.flags & LIGHT) or token.word.endswith(("ing", "ed"))


def _denied(tokens: Sequence[Token], target: int) -> list[int]:
    """The negated word and, after "want to" and the like, the verb that follows."""
    for at in range(target + 1, min(target + 3, len(tokens) - 1)):
        if tokens[at - 1].flags & BOUNDARY or not tokens[target].flags & LIGHT:
            break
        if tokens[at].word == "to":
            return [target, at + 1]
    return [target]


def _asks(tokens: Sequence[Token], index: int) -> bool:
    """Whether a negator belongs to the question or command, not to a report."""
    start = index
    while (
        start > 0
        and index - start < _CLAUSE_TOKENS
        and not tokens[start - 1].flags & BOUNDARY
    ):
        start -= 1
    if start == index:
        return True
    inverted = (
        index - 2 >= start
        and tokens[index - 1].flags & PERSONAL
        and tokens[index - 2].flags & AUX
    )
    subject = index - 1
    while subject > start and tokens[subject].flags & AUX:
        subject -= 1
    for at in range(index - 1, start - 1, -1):
        word = tokens[at].word
        if word in _REPORTING:
            return False
        if word in _ASKING or (word == "when" and at == start):
            return bool(inverted) or not tokens[subject].flags & PERSONAL
    return bool(inverted) or bool(tokens[start].flags & AUX)
