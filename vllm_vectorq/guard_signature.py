# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the lexical guards remember of a text, and how much two texts share."""

from __future__ import annotations

from dataclasses import dataclass

from .guard_numbers import Quantity

Words = frozenset[str]
NO_WORDS: Words = frozenset()
_LIGHT_WEIGHT = 0.25


@dataclass(frozen=True, slots=True)
class Signature:
    """Facts about one text that two texts with one answer should share.

    Words are stems, and words of equal meaning have one stem.

    Attributes:
        line: All words in order, in lower case; a digest for an oversize text.
        oversize: Whether the text was too long to look at.
        script: Script of most of its letters.
        language: Language its function words point to; empty when unsure.
        words: Every word, function words included.
        content: Words that carry the subject.
        light: Verbs and nouns that say little.
        nouns: Content words that stand where a noun can.
        bare: Content words outside prepositional phrases, in order.
        quantities: Numbers with their units.
        counted: What bare numbers count, as pairs of word and number.
        dates: Days, months and relative times, each after its kind and a colon.
        ids: Codes, addresses, paths and names of languages like C++.
        code: Lines of code and fenced code, without white space.
        quotes: Quoted strings and inline code.
        operators: Mathematical operators in order.
        negated: Words that are negated here.
        plain: Content words with a use that is not negated.
        asks_negated: Whether the question or command itself is negated.
        negates: Whether anything is negated.
        left: Axes of opposites with a word on the one side, as bits.
        right: Axes of opposites with a word on the other side, as bits.
        relations: Relation word such as "to", and the words after it.
        question: What a clear question word asks for.
        scope: Words that change which rule applies.
        people: Kinds of people mentioned.
        first_person: Whether the asker is mentioned.
        entities: Names by their spelling.
        acronyms: Short names and codes, which may be acronyms.
        initials: First letters of all words, for acronyms.
    """

    line: str
    oversize: bool = False
    script: str = "latin"
    language: str = ""
    words: Words = NO_WORDS
    content: Words = NO_WORDS
    light: Words = NO_WORDS
    nouns: Words = NO_WORDS
    bare: tuple[str, ...] = ()
    quantities: frozenset[Quantity] = frozenset()
    counted: frozenset[tuple[str, float | str]] = frozenset()
    dates: Words = NO_WORDS
    ids: Words = NO_WORDS
    code: Words = NO_WORDS
    quotes: Words = NO_WORDS
    operators: str = ""
    negated: Words = NO_WORDS
    plain: Words = NO_WORDS
    asks_negated: bool = False
    negates: bool = False
    left: int = 0
    right: int = 0
    relations: tuple[tuple[str, Words], ...] = ()
    question: str = ""
    scope: Words = NO_WORDS
    people: Words = NO_WORDS
    first_person: bool = False
    entities: Words = NO_WORDS
    acronyms: Words = NO_WORDS
    initials: str = ""


def agreement(a: Signature, b: Signature) -> float:
    """Weighted share of content words that both texts have, in [0, 1]."""
    content = len(a.content & b.content)
    light = len(a.light & b.light)
    either = len(a.content) + len(b.content) - content
    either_light = len(a.light) + len(b.light) - light
    total = either + _LIGHT_WEIGHT * either_light
    if total == 0:
        return 1.0 if a.line == b.line else 0.0
    return (content + _LIGHT_WEIGHT * light) / total
