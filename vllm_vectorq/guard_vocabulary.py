# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a word may do in a request, as bits; looked up once per distinct word."""

from __future__ import annotations

from functools import lru_cache

from . import guard_names as names
from . import guard_words as lists
from .guard_numbers import unit_name
from .guard_stems import OPPOSITES, concept, stem
from .guard_units import CURRENCIES, NUMBER_WORDS, SCALES, UNITS

_BITS = [1 << number for number in range(30)]
(
    END,  # a sentence ends after the token
    BREAK,  # a clause ends after the token
    CAPITAL,
    STRONG_CAPITAL,  # acronym or capitals inside: evidence even at a sentence start
    CODE,  # identifier, address, path
    CONTENT,
    LIGHT,  # verb or noun that says little about the subject
    NUMBER,  # written with digits
    NUMBER_WORD,
    UNIT,
    NAME,
    PRONOUN,
    PERSONAL,
    FIRST_PERSON,
    AUX,
    MODAL,
    BE,
    DETERMINER,
    PREPOSITION,
    QUESTION,
    NEGATOR,
    LEXICAL,  # negator that is no function word: "avoid", "without"
    DATE,
    OPPOSED,  # stands on a side of an axis of opposites
    SCOPE,
    RELATION,
    PERSON,
    NEGATED_FORM,
    PARTICLE,  # after a verb it may make an opposite: "turn off"
    FILLER,  # says nothing at all
) = _BITS

BOUNDARY = END | BREAK
# Tokens that more than the bag of words is made from.
MARKED = (
    NUMBER | NUMBER_WORD | DATE | OPPOSED | SCOPE | RELATION | PERSON | NAME | NEGATOR
)
MARKED |= NEGATED_FORM | QUESTION | UNIT | CODE | PARTICLE

_WORD_CACHE = 1 << 15
RELATIONS = lists.words("to from than before after by into onto towards toward")
_PARTICLES = lists.words("on off in out up down of than time timer timers")
_FUNCTION = (
    lists.PRONOUNS
    | lists.OTHER_PRONOUNS
    | lists.FIRST_PERSON
    | lists.DETERMINERS
    | lists.AUXILIARIES
    | lists.PREPOSITIONS
    | lists.CONJUNCTIONS
    | lists.QUESTION
    | lists.ADVERBS
    | lists.FILLERS
    | lists.NEGATORS
    | lists.ONLY
    | lists.ALL
)
_LIGHT = frozenset(map(stem, lists.LIGHT))
_PEOPLE = frozenset(map(concept, lists.PEOPLE))
_SCOPE = lists.ONLY | lists.EXCEPT | lists.RESTRICTIVE | lists.FREQUENCY_WORDS
_SCOPE |= lists.ALL | frozenset(lists.FREQUENCIES)
_CALENDAR = frozenset(names.WEEKDAYS) | frozenset(names.MONTHS) | names.RELATIVE_DAYS
_CALENDAR |= names.DAY_PARTS | names.SEASONS | names.HOLIDAYS | names.PERIOD_CUES
_LEXICAL = lists.LEXICAL_NEGATORS | lists.words("without stop stops stopped")
_NOT_NEGATED = lists.words(lists.NOT_NEGATED)
_NEGATED = {
    prefix + base: base
    for prefix, bases in lists.NEGATED_FORMS.items()
    for base in bases.split()
}
_MEMBERSHIPS = (
    (lists.PRONOUNS, PRONOUN),
    (lists.PERSONAL, PERSONAL),
    (lists.FIRST_PERSON, FIRST_PERSON),
    (lists.AUXILIARIES, AUX),
    (lists.MODALS, MODAL),
    (lists.BE, BE),
    (lists.DETERMINERS, DETERMINER),
    (lists.PREPOSITIONS, PREPOSITION),
    (lists.QUESTION, QUESTION),
    (lists.NEGATORS | lists.FOREIGN_NEGATORS, NEGATOR),
    (_LEXICAL, NEGATOR | LEXICAL),
    (_SCOPE, SCOPE),
    (RELATIONS, RELATION),
    (_PARTICLES, PARTICLE),
    (lists.FILLERS, FILLER),
    (_CALENDAR, DATE),
    (frozenset(NUMBER_WORDS) | frozenset(SCALES), NUMBER_WORD),
)


@lru_cache(maxsize=_WORD_CACHE)
def look_up(word: str) -> tuple[str, int]:
    """Stem and bits of a word in lower case; the stem of a function word is empty."""
    singular = word.removesuffix("s")
    flags = 0
    for members, bits in _MEMBERSHIPS:
        if word in members:
            flags |= bits
    if singular in _CALENDAR:
        flags |= DATE
    if unit_name(word, glued=False):
        flags |= UNIT
    root = stem(word)
    if root in OPPOSITES:
        flags |= OPPOSED
    if word in _FUNCTION:
        return "", flags
    if negated_base(word):
        flags |= NEGATED_FORM
    if word in names.NAMES or singular in names.NAMES:
        return _name(word, singular), flags | NAME | CONTENT
    meaning = concept(word)
    if flags & UNIT:
        base, factor = UNITS[unit_name(word, glued=False) or word]
        meaning = f"{factor:g}{base}"
    if meaning in _PEOPLE:
        flags |= PERSON
    return meaning, flags | (LIGHT if root in _LIGHT else CONTENT)


def _name(word: str, singular: str) -> str:
    currency = CURRENCIES.get(word) or CURRENCIES.get(singular)
    return currency or names.ALIASES.get(word, word)


def negated_base(word: str) -> str:
    """What a word with a negating prefix negates; empty for other words."""
    if word in _NEGATED:
        return _NEGATED[word]
    for prefix in ("un", "non"):
        base = word.removeprefix(prefix)
        if base != word and len(base) >= 4 and word not in _NOT_NEGATED:
            return "" if word.startswith(("under", "uni")) else base
    return ""
