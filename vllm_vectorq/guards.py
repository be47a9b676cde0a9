# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Lexical guards: differences between two texts that an embedding does not show.

Sentence embeddings put "refund 20 euros" next to "refund 200 euros" and "can I" next
to "can I not". The guards read both texts and veto serving the answer of one for the
other when something differs that changes answers: numbers, units, dates, codes,
negation, opposites, names, direction, scope. They know English best; numbers, codes,
scripts and simple negation are compared in every language.

A signature is made once per text. Two signatures are compared in microseconds.
"""

from __future__ import annotations

from .guard_comparison import agreement, conflict
from .guard_reading import signature
from .guard_signature import Signature

__all__ = ["Signature", "agreement", "conflict", "signature"]
