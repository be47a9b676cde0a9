# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Compares two signatures: do they conflict, and how much do they share?

Some differences always veto. Others, such as a number that only one text has, veto
only when the texts are near, that is when they share at least half of their subject:
in "refund my order" and "refund my order of 20 euros" the number is the difference,
in two questions that share little it is one of many, and the similarity decides.
"""

from __future__ import annotations

from collections.abc import Callable

from . import guard_meaning as meaning
from . import guard_writing as writing
from .guard_signature import Signature

_LIGHT_WEIGHT = 0.25
_NEAR = 0.5


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


def conflict(a: Signature, b: Signature) -> str | None:
    """Name of the first guard that forbids answering one text with the other's answer.

    Symmetric. The names: ``length``, ``language``, ``code``, ``ids``, ``numbers``,
    ``units``, ``dates``, ``negation``, ``opposites``, ``entities``, ``direction``,
    ``question``, ``scope``, ``subject``; None when no guard objects.
    """
    if a.oversize or b.oversize:
        return None if a.line == b.line else "length"
    if a == b:
        return None
    near = agreement(a, b) >= _NEAR
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
