# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Questions of a support desk, made from templates, with vectors like an embedding's.

At most 1,001 intents: 77 subjects, 13 things to do with each. Two questions of one
intent have a cosine of about 0.85, of one subject about 0.6, of neither about 0.3.
Everything follows from a question's number, so nothing has to be kept.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib

import numpy as np
from numpy.typing import NDArray

from vllm_vectorq.record import Vector
from vllm_vectorq.request import Answer, CacheRequest, Partition

Floats = NDArray[np.float64]

# As many as all-MiniLM-L6-v2 has.
DIMENSIONS = 384
ANSWER_TOKENS = 60

_KINDS = ("savings", "business", "joint", "travel", "student", "family", "private")
_OBJECTS = (
    *("card", "account", "loan", "password", "invoice", "statement", "limit"),
    *("subscription", "transfer", "address", "contract"),
)
_VERBS = (
    *("open", "close", "change", "renew", "cancel", "check", "share", "freeze"),
    *("download", "verify", "replace", "dispute", "translate"),
)
_OPENINGS = (
    *("How do I", "How can I", "Please tell me how to", "I want to", "I need to"),
    *("Can you help me", "What is the way to", "Could I", "I would like to"),
    "Is there a way to",
)
_CLOSINGS = (
    *("", "?", " please", " please?", " today", " in the app", " on the website"),
    *(" right now", " by phone", " online"),
)
MAX_INTENTS = len(_KINDS) * len(_OBJECTS) * len(_VERBS)

_MEANING = re.compile(r"(\w+) my (\w+) (\w+)")

# Shares of a vector's squared length; what is left is its own.
_COMMON, _OBJECT, _VERB = 0.3, 0.3, 0.25


class Population:
    """Questions by number; the intent of number ``i`` is ``i`` modulo the intents.

    Args:
        entries: How many there will be; ten or more of each intent.
        seed: Other seeds give other vectors of the same geometry.

    Attributes:
        intents: Number of intents.
    """

    def __init__(self, entries: int, seed: int = 0) -> None:
        self.intents = max(1, min(MAX_INTENTS, entries // 10))
        self._seed = seed
        random = np.random.default_rng([seed, DIMENSIONS])
        subjects = len(_KINDS) * len(_OBJECTS)
        self._common = _unit(random.standard_normal(DIMENSIONS))
        self._subjects = _unit(random.standard_normal((subjects, DIMENSIONS)))
        self._intents = _unit(random.standard_normal((MAX_INTENTS, DIMENSIONS)))

    def text(self, number: int) -> str:
        """The question; those with other numbers are other texts."""
        intent, variant = number % self.intents, number // self.intents
        subject, verb = divmod(intent, len(_VERBS))
        kind, thing = divmod(subject, len(_OBJECTS))
        variant, opening = divmod(variant, len(_OPENINGS))
        ticket, closing = divmod(variant, len(_CLOSINGS))
        # More questions than templates differ in a word that says nothing.
        filler = f" {_word(ticket)}" if ticket else ""
        return (
            f"{_OPENINGS[opening]} {_VERBS[verb]} my {_KINDS[kind]} {_OBJECTS[thing]}"
            f"{_CLOSINGS[closing]}{filler}"
        )

    def vector(self, number: int) -> Vector:
        """Its unit vector, float32 [DIMENSIONS]."""
        return self.vector_of(self.text(number))

    def vector_of(self, text: str) -> Vector:
        """The unit vector of a question, float32 [DIMENSIONS]."""
        found = _MEANING.search(text)
        if found is None:
            raise ValueError(f"{text!r} is no question of this population")
        verb, kind, thing = found.groups()
        subject = _KINDS.index(kind) * len(_OBJECTS) + _OBJECTS.index(thing)
        intent = subject * len(_VERBS) + _VERBS.index(verb)
        random = np.random.default_rng([self._seed, zlib.crc32(text.encode())])
        own = _unit(random.standard_normal(DIMENSIONS))
        return _unit(
            math.sqrt(_COMMON) * self._common
            + math.sqrt(_OBJECT) * self._subjects[subject]
            + math.sqrt(_VERB) * self._intents[intent]
            + math.sqrt(1.0 - _COMMON - _OBJECT - _VERB) * own
        ).astype(np.float32)

    def embed(self, texts: list[str]) -> Vector:
        """Unit vectors in place of an embedding model, float32 [texts, DIMENSIONS]."""
        return np.stack([self.vector_of(text) for text in texts])

    def answer(self, number: int) -> Answer:
        """The answer to its intent."""
        intent = number % self.intents
        text = f"Answer {intent}: " + "follow the steps on the page of the bank. " * 6
        return Answer(text, tuple(range(intent, intent + ANSWER_TOKENS)), None, 1.0)

    def request(self, number: int, partition: Partition) -> CacheRequest:
        """The question as the cache sees it."""
        text = self.text(number)
        return CacheRequest(partition, key_of(text), text, "semantic")


def key_of(text: str) -> bytes:
    """A stand-in for the exact key of a request."""
    return hashlib.sha256(text.encode()).digest()


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def _word(number: int) -> str:
    letters = []
    while number:
        number, letter = divmod(number - 1, 26)
        letters.append(chr(ord("a") + letter))
    return "z" + "".join(reversed(letters))
