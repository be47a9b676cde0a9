# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""One long text with many needles: facts that are asked for one by one.

All needle tasks share the haystack. Each kind speaks of a different sort of number, so
that only what belongs to a kind distracts from it.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from .long_context import CountTokens, Kind, Question, Sample
from .long_context_haystack import Haystack, Needle, read_haystack
from .long_context_vocabulary import word_pairs

_SINGLES = ("parcel number", "card number", "invoice number", "phone number")


@dataclass(frozen=True, slots=True)
class NeedlePlan:
    """How many needles of each kind a context holds, and how many are asked for.

    More than one question of the last three kinds makes each of them harder: what
    belongs to one distracts from the other.

    Attributes:
        singles: Questions for a number of a sort of its own, at most 4.
        multikeys: Questions for one of many numbers of the same sort.
        distractors: More numbers of that sort, which are not asked for.
        multivalues: Questions for all numbers of one key.
        values: Numbers of each of those keys.
        multiqueries: Questions for the numbers of several keys.
        queried: Keys in each of those questions.
        chains: Chains of variables, each with a question.
        hops: How often each chain's value is handed on.

    Raises:
        ValueError: A number is out of range.
    """

    singles: int = 2
    multikeys: int = 4
    distractors: int = 16
    multivalues: int = 1
    values: int = 4
    multiqueries: int = 1
    queried: int = 3
    chains: int = 1
    hops: int = 4

    def __post_init__(self) -> None:
        least = {"values": 1, "queried": 1}
        for name in self.__slots__:
            found, most = getattr(self, name), len(_SINGLES)
            if found < least.get(name, 0) or (name == "singles" and found > most):
                raise ValueError(
                    f"hashattn: {name} {found!r} was asked for; it must be at least "
                    f"{least.get(name, 0)}"
                    f"{f' and at most {most}' if name == 'singles' else ''}."
                )


def build_needle_context(
    tokens: int,
    count_tokens: CountTokens,
    haystack: Sequence[str] | None,
    seed: int,
    plan: NeedlePlan | None = None,
    passkey_depth: float | None = None,
) -> Sample:
    """Make a context of some length with needles of every kind.

    Args:
        tokens: Length of the context; it is at most 2 % shorter and never longer.
        count_tokens: Of the model's tokenizer.
        haystack: Paragraphs to hide the needles in, from a place that the seed
            chooses; ``None`` for generated filler.
        seed: The same seed, arguments and tokenizer make the same sample.
        plan: How many of each kind; ``None`` for :class:`NeedlePlan`.
        passkey_depth: From 0 (start) to 1 (end); ``None`` for a random one.

    Raises:
        ValueError: The haystack is too short, the needles do not fit, or the depth is
            out of range.
    """
    if passkey_depth is not None and not 0.0 <= passkey_depth <= 1.0:
        raise ValueError(
            f"hashattn: a passkey at depth {passkey_depth!r} was asked for; it must be "
            "from 0 (start of the context) to 1 (end)."
        )
    random = Random(seed)
    text = read_haystack(haystack, tokens, count_tokens, random)
    facts = _Facts(text, random)
    depth = random.random() if passkey_depth is None else passkey_depth
    facts.add_all(plan or NeedlePlan(), depth)
    context, found = text.hide(facts.needles, tokens, count_tokens)
    return Sample(context, found, tuple(facts.questions))


class _Facts:
    """Needles and questions while they are made up."""

    def __init__(self, text: Haystack, random: Random) -> None:
        self.needles: list[Needle] = []
        self.questions: list[Question] = []
        self._random = random
        self._text = text.lowered()
        self._used: list[str] = []
        self._pairs = word_pairs(random)

    def add_all(self, plan: NeedlePlan, passkey_depth: float) -> None:
        """Make up everything that a context holds."""
        self._passkey(passkey_depth)
        for sort in _SINGLES[: plan.singles]:
            self._numbers(Kind.SINGLE, sort, 1)
        self._multikey(plan.multikeys, plan.distractors)
        for _ in range(plan.multivalues):
            self._multivalue(plan.values)
        for _ in range(plan.multiqueries):
            self._numbers(Kind.MULTIQUERY, "badge number", plan.queried)
        for _ in range(plan.chains):
            self._chain(plan.hops)

    def _passkey(self, depth: float) -> None:
        value = self._value()
        begin = "The passkey of this text is"
        self.needles.append(Needle(f"{begin} {value}; keep it in mind.", depth))
        asked = "What is the passkey of this text?"
        self._ask(Kind.PASSKEY, asked, begin, [value], [depth])

    def _multikey(self, asked: int, distractors: int) -> None:
        for _ in range(asked):
            self._numbers(Kind.MULTIKEY, "locker code", 1)
        for _ in range(distractors):
            self._hide(f"The locker code of {self._key()} is {self._value()}.")

    def _numbers(self, kind: Kind, sort: str, keys: int) -> None:
        """A number for each of some keys, and one question for all of them."""
        names = [self._key() for _ in range(keys)]
        values = [self._value() for _ in range(keys)]
        depths = [
            self._hide(f"The {sort} of {name} is {value}.")
            for name, value in zip(names, values, strict=True)
        ]
        if keys == 1:
            asked = f"What is the {sort} of {names[0]}?"
            begin = f"The {sort} of {names[0]} is"
        else:
            listed = f"{', '.join(names[:-1])} and {names[-1]}"
            asked = f"What are the {sort}s of {listed}? Name them in this order."
            begin = f"The {sort}s of {listed} are"
        self._ask(kind, asked, begin, values, depths)

    def _multivalue(self, values: int) -> None:
        name = self._key()
        numbers = [self._value() for _ in range(values)]
        depths = [
            self._hide(f"One of the ticket numbers of {name} is {number}.")
            for number in numbers
        ]
        asked = f"The text gives {values} ticket numbers of {name}. Name all of them."
        begin = f"The ticket numbers of {name} are"
        self._ask(Kind.MULTIVALUE, asked, begin, numbers, depths)

    def _chain(self, hops: int) -> None:
        value = self._value()
        names = [self._new(self._variable) for _ in range(hops + 1)]
        # A value is handed on after the variable has got it.
        depths = sorted(self._random.random() for _ in names)
        steps = [f"The variable {names[0]} is set to {value}."]
        steps += [
            f"The variable {name} is set to the value of {source}."
            for source, name in pairwise(names)
        ]
        self.needles += map(Needle, steps, depths)
        asked = (
            f"Which {len(names)} variables hold the value {value}, given to them "
            "directly or by way of others?"
        )
        begin = f"The variables that hold the value {value} are"
        self._ask(Kind.TRACKING, asked, begin, names, depths)

    def _hide(self, sentence: str) -> float:
        needle = Needle(sentence, self._random.random())
        self.needles.append(needle)
        return needle.depth

    def _ask(
        self,
        kind: Kind,
        asked: str,
        begin: str,
        expected: Sequence[str],
        depths: Sequence[float],
    ) -> None:
        self.questions.append(
            Question(kind, asked, begin, tuple(expected), tuple(depths))
        )

    def _key(self) -> str:
        return self._new(lambda: next(self._pairs))

    def _value(self) -> str:
        return self._new(lambda: str(self._random.randrange(1_000_000, 10_000_000)))

    def _variable(self) -> str:
        return "".join(self._random.sample(string.ascii_uppercase, 5))

    def _new(self, make: Callable[[], str]) -> str:
        """Something that is in neither the haystack nor any other needle."""
        while True:
            found = make()
            if found.lower() not in self._text and not any(
                found in other or other in found for other in self._used
            ):
                self._used.append(found)
                return found
