# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Lexical guards: differences between two texts that an embedding does not show.

Sentence embeddings put "refund 20 euros" next to "refund 200 euros" and "can I" next
to "can I not". The guards read both texts and veto serving the answer of one for the
other when something differs that changes answers: numbers, units, dates, codes,
negation, opposites, names, direction, scope. They know English best; numbers, codes,
scripts and simple negation are compared in every language.

Some differences always veto. Others, such as a number that only one text has, veto
only when the texts are near, that is when they share at least half of their subject:
in "refund my order" and "refund my order of 20 euros" the number is the difference,
in two questions that share little it is one of many, and the similarity decides.

A signature is made once per text. Two signatures are compared in microseconds.
"""

from __future__ import annotations

from collections.abc import Callable

from . import guard_meaning as meaning
from . import guard_writing as writing
from .guard_reading import signature
from .guard_signature import Signature, agreement

__all__ = ["Signature", "agreement", "conflict", "signature"]

_NEAR = 0.5


def conflict(a: Signature, b: Signature) -> str | None:
    """Name of the first guard that forbids answering one text with the other's answer.

    Symmetric. The names: ``length``, ``language``, ``code``, ``ids``, ``numbers``,
    ``units``, ``dates``, ``negation``, ``opposites``, ``entities``, ``direction``,
    ``question``, ``scope``, ``subject``; None when no guard objects.
    """
    if a.oversize or b.oversize:
        return None if a.line == b.line else "length"
    if a.line == b.line and a == b:
        return None
    # "Tuesday" and "Tuesday at 3 pm" have no subject that could differ.
    near = agreement(a, b) >= _NEAR or not (a.content or b.content)
    for guard in _GUARDS:
        if name := guard(a, b, near):
            return name
    return None


_GUARDS: tuple[Callable[[Signature, Signature, bool], str], ...] = (
    writing.language,
    writing.code,
    writing.ids,
    writing.numbers,
    writing.dates,
    meaning.negation,
    meaning.opposites,
    meaning.entities,
    meaning.direction,
    meaning.question,
    meaning.scope,
    meaning.subject,
)
