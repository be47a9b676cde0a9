# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Makes the signature of a text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from .guard_amounts import read_amounts
from .guard_context import (
    measures,
    read_opposites,
    read_question,
    read_relations,
    read_scope,
)
from .guard_names import NAMES
from .guard_negation import read_negation
from .guard_signature import Signature
from .guard_text import clean, code_of, language_of, script_of
from .guard_tokens import Token, tokens_of
from .guard_units import NUMBER_WORDS
from .guard_vocabulary import (
    AUX,
    BE,
    BOUNDARY,
    BREAK,
    CAPITAL,
    CODE,
    CONTENT,
    DATE,
    DETERMINER,
    END,
    FILLER,
    FIRST_PERSON,
    LIGHT,
    MARKED,
    MODAL,
    NAME,
    NEGATED_FORM,
    NEGATOR,
    NUMBER,
    NUMBER_WORD,
    OPPOSED,
    PARTICLE,
    PERSON,
    PERSONAL,
    PREPOSITION,
    PRONOUN,
    QUESTION,
    RELATION,
    SCOPE,
    STRONG_CAPITAL,
    UNIT,
)
from .guard_words import INFINITIVE_CUES, words

# Longer texts match only themselves: embedding models do not see their ends either.
MAX_CHARS = 6_000
_RESET = AUX | PRONOUN | QUESTION | NEGATOR
# "20 euros" and "€20" have the same subject: none.
_SUBJECT = CONTENT | LIGHT | NAME
_INITIALS = 400
_ACRONYM_CHARS = range(2, 6)
_ORDINARY_ACRONYMS = words("ok id asap fyi faq am pm btw pls thx eg ie tv pc vs app")
_MANY_CAPITALS = 4
_NO_TITLE = FIRST_PERSON | DATE | UNIT | NUMBER_WORD


def signature(text: str) -> Signature:
    """Read a text once; linear in its length, and a digest beyond 6,000 characters."""
    if len(text) > MAX_CHARS:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return Signature(line=digest, oversize=True)
    text = clean(text)
    tokens = [
        token
        for token in tokens_of(text)
        if not token.flags & FILLER or token.flags & END
    ]
    marks = _marks(tokens)
    negation = read_negation(tokens, marks[NEGATOR])
    amounts = read_amounts(tokens, marks[NUMBER], marks[DATE])
    opposed = [index for index in marks[OPPOSED] if index not in amounts.used]
    left, right = read_opposites(tokens, opposed, negation.targets)
    relations = read_relations(tokens, marks[RELATION])
    asked = read_question(tokens, marks[QUESTION])
    for index in amounts.used | measures(tokens, marks[QUESTION]):
        token = tokens[index]
        tokens[index] = replace(token, flags=token.flags & ~_SUBJECT)
    content = {token.stem for token in tokens if token.flags & CONTENT}
    every = frozenset(token.stem or token.word for token in tokens if token.word)
    code, quotes, operators = code_of(text)
    ids = frozenset(tokens[index].stem for index in marks[CODE])
    entities = frozenset(_entities(text, tokens))
    return Signature(
        line=" ".join(token.word for token in tokens if token.word),
        script=script_of(text),
        language=language_of(frozenset(token.word for token in tokens)),
        words=every,
        content=frozenset(content),
        light=frozenset(token.stem for token in tokens if token.flags & LIGHT),
        nouns=frozenset(_nouns(tokens)),
        bare=_bare(tokens),
        quantities=frozenset(amounts.quantities),
        counted=frozenset(amounts.counted),
        dates=frozenset(amounts.dates),
        ids=ids,
        code=code,
        quotes=quotes,
        operators=operators,
        negated=frozenset(negation.negated),
        plain=_plain(tokens, negation.targets),
        asks_negated=negation.asks,
        negates=negation.present,
        left=left,
        right=right,
        relations=relations,
        question=asked,
        scope=frozenset(read_scope(tokens, marks[SCOPE])),
        people=frozenset(tokens[index].stem for index in marks[PERSON]),
        first_person=any(token.flags & FIRST_PERSON for token in tokens),
        entities=entities,
        acronyms=frozenset(filter(_is_short, entities | ids)),
        initials=_initials(tokens),
    )


def _is_short(name: str) -> bool:
    return len(name) in _ACRONYM_CHARS and name not in NAMES


def _initials(tokens: Sequence[Token]) -> str:
    """First letters for acronyms; number words give a digit, as in "2FA"."""
    spoken = [token.word for token in tokens if token.word][:_INITIALS]
    return "".join(
        f"{NUMBER_WORDS[word]:.0f}"[0] if word in NUMBER_WORDS else word[0]
        for word in spoken
    )


_GROUPS = {
    NEGATOR: NEGATOR | NEGATED_FORM,
    OPPOSED: OPPOSED | PARTICLE,
    NUMBER: NUMBER | NUMBER_WORD | UNIT,
    DATE: DATE,
    CODE: CODE,
    RELATION: RELATION,
    QUESTION: QUESTION,
    SCOPE: SCOPE,
    PERSON: PERSON,
}


def _marks(tokens: Sequence[Token]) -> dict[int, list[int]]:
    """Indices of the tokens with something to read, by what it is."""
    marked = [(i, t.flags) for i, t in enumerate(tokens) if t.flags & MARKED]
    return {
        group: [index for index, flags in marked if flags & bits]
        for group, bits in _GROUPS.items()
    }


def _nouns(tokens: Sequence[Token]) -> set[str]:
    """Content words that are not certainly verbs."""
    nouns: set[str] = set()
    before: Token | None = None
    earlier: Token | None = None
    for at, token in enumerate(tokens):
        if token.flags & CONTENT and not _is_verb(tokens, at, before, earlier):
            nouns.add(token.stem)
        earlier, before = (None, None) if token.flags & END else (before, token)
    return nouns


def _is_verb(
    tokens: Sequence[Token], at: int, before: Token | None, earlier: Token | None
) -> bool:
    token = tokens[at]
    if before is None:
        after = tokens[at + 1] if at + 1 < len(tokens) else None
        bits = DETERMINER | PERSONAL | NUMBER | FIRST_PERSON
        return bool(after and after.flags & bits)
    if before.flags & PERSONAL or before.word == "who":
        return True
    if before.word == "to":
        return earlier is None or earlier.word in INFINITIVE_CUES
    if before.flags & NEGATOR and before.flags & AUX:
        return True
    if before.flags & MODAL:
        return earlier is not None and not earlier.flags & QUESTION
    return bool(before.flags & BE) and token.word.endswith(("ed", "ing"))


def _bare(tokens: Sequence[Token]) -> tuple[str, ...]:
    found: list[str] = []
    governed = False
    for token in tokens:
        if token.flags & CONTENT:
            if not governed:
                found.append(token.stem)
        elif token.flags & PREPOSITION:
            governed = True
        elif token.flags & _RESET:
            governed = False
        if token.flags & BOUNDARY:
            governed = False
    return tuple(found)


def _plain(tokens: Sequence[Token], negated: set[int]) -> frozenset[str]:
    return frozenset(
        token.stem
        for index, token in enumerate(tokens)
        if token.flags & CONTENT and index not in negated
    )


def _entities(text: str, tokens: Sequence[Token]) -> set[str]:
    """Names; where case says nothing, only names that are known as such."""
    named: set[str] = set()
    spelled: set[str] = set()
    lower: set[str] = set()
    titled = text.isupper()
    starts = breaks = True
    for token in tokens:
        flags = token.flags
        if flags & CONTENT and not flags & CODE:
            if flags & NAME:
                named.add(token.stem)
            elif flags & STRONG_CAPITAL or (flags & CAPITAL and not starts):
                if not flags & (DATE | UNIT) and token.word not in _ORDINARY_ACRONYMS:
                    spelled.add(token.stem)
            elif not flags & CAPITAL:
                lower.add(token.stem)
        elif flags & CAPITAL and not breaks and not flags & _NO_TITLE:
            titled = titled or bool(token.text[1:].islower() and not flags & LIGHT)
        starts = bool(flags & END) or not token.word
        breaks = starts or bool(flags & BREAK)
    if titled or (len(spelled) >= _MANY_CAPITALS and not lower):
        return named
    return named | (spelled - lower)
