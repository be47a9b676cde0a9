# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Long-context tasks of the quality benchmark: which are asked, and how often.

Contexts are what costs. Those with needles hold two questions of each kind and one
passkey, and later ones a passkey only. A screening by dense decoding alone comes first:
kinds of whose first ten questions it cannot find more than 80 % say nothing about
sparse decoding and are not asked again.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from benchmarks.hashattn.quality_parts import Parts, Row
from vllm_hashattn.evaluation_arms import Arm
from vllm_hashattn.long_context import CountTokens, Kind, Sample
from vllm_hashattn.long_context_needles import NeedlePlan, build_needle_context
from vllm_hashattn.long_context_score import Score, summarise
from vllm_hashattn.long_context_words import build_common_words, build_frequent_words
from vllm_hashattn.quality import TaskResult

SCREENED = 10
PER_CONTEXT = 2
FOUND_BY_DENSE = 0.8
_ROUNDING = 1e-6
_RICH = NeedlePlan(
    singles=PER_CONTEXT,
    multikeys=PER_CONTEXT,
    multivalues=PER_CONTEXT,
    multiqueries=PER_CONTEXT,
    chains=PER_CONTEXT,
)
_PASSKEY = NeedlePlan(
    singles=0, multikeys=0, distractors=0, multivalues=0, multiqueries=0, chains=0
)
_BUILDERS = {
    Kind.COMMON_WORDS: build_common_words,
    Kind.FREQUENT_WORDS: build_frequent_words,
}

Build = Callable[[], Sample]
# Answers to the questions of a context by every arm.
Ask = Callable[[Sample, Sequence[Arm]], Iterable[TaskResult]]


@dataclass(frozen=True)
class Tasks:
    """What is asked of one model.

    Attributes:
        tokens: Length of contexts.
        count_tokens: Of the model's tokenizer.
        questions: Of each kind.
        ask: Measures answers.
        arms: To compare; the first one reads everything.
        parts: Keeps what was measured.
    """

    tokens: int
    count_tokens: CountTokens
    questions: int
    ask: Ask
    arms: Sequence[Arm]
    parts: Parts

    def plan(self) -> None:
        """Plan the parts that there will be if counting words is screened out soon."""
        screening = [f"screening {name}" for name in self._screening()]
        kinds = [kind for kind in Kind if kind not in _BUILDERS]
        self.parts.plan("screening", screening)
        self.parts.plan("tasks", [f"tasks {name}" for name in self._contexts(kinds)])

    def measure(self) -> list[Row]:
        """Return what each arm found of each kind; of screened kinds dense only."""
        screened = self._screened()
        dropped = screened_out(screened)
        asked = [kind for kind in Kind if kind not in dropped]
        contexts = self._contexts(asked)
        self.parts.plan("screening", [])
        self.parts.plan("tasks", [f"tasks {name}" for name in contexts])
        rows: list[Row] = []
        for name, build in contexts.items():
            rows += self._part("tasks", name, build, self.arms)
        of_dropped = [row for row in screened if row["kind"] in dropped]
        return summary([*rows, *of_dropped])

    def _screened(self) -> list[Row]:
        rows: list[Row] = []
        for name, build in self._screening().items():
            # A context of words asks for one kind, the first part of its name.
            if name.split()[0] not in screened_out(rows):
                rows += self._part("screening", name, build, self.arms[:1])
        return rows

    def _screening(self) -> dict[str, Build]:
        questions = min(SCREENED, self.questions)
        found: dict[str, Build] = {}
        for n in range(-(-questions // PER_CONTEXT)):
            found[f"needles {n}"] = partial(self._needles, n, _RICH)
        for kind in _BUILDERS:
            for n in range(questions):
                found[f"{kind.value} {n}"] = partial(self._words, kind, n)
        return found

    def _contexts(self, asked: Sequence[Kind]) -> dict[str, Build]:
        rich = -(-self.questions // PER_CONTEXT)
        found: dict[str, Build] = {}
        if any(kind not in (*_BUILDERS, Kind.PASSKEY) for kind in asked):
            for n in range(rich):
                found[f"needles {n}"] = partial(self._asked, asked, n, _RICH)
        if Kind.PASSKEY in asked:
            for n in range(len(found), self.questions):
                found[f"passkey {n}"] = partial(self._asked, asked, n, _PASSKEY)
        for kind in _BUILDERS:
            if kind in asked:
                for n in range(self.questions):
                    found[f"{kind.value} {n}"] = partial(self._words, kind, n)
        return found

    def _part(
        self, group: str, name: str, build: Build, arms: Sequence[Arm]
    ) -> list[Row]:
        """Answers to the questions of one context, in rows of JSON values."""

        def work() -> list[Row]:
            return [_row(key, each) for each in self.ask(build(), arms)]

        key = f"{group} {name}"
        return self.parts.measure(group, key, work)

    def _needles(self, seed: int, plan: NeedlePlan) -> Sample:
        return build_needle_context(self.tokens, self.count_tokens, None, seed, plan)

    def _asked(self, asked: Sequence[Kind], seed: int, plan: NeedlePlan) -> Sample:
        sample = self._needles(seed, plan)
        kept = tuple(each for each in sample.questions if each.kind in asked)
        return replace(sample, questions=kept)

    def _words(self, kind: Kind, seed: int) -> Sample:
        return _BUILDERS[kind](self.tokens, self.count_tokens, seed)


def _row(key: str, answer: TaskResult) -> Row:
    return {
        "part": key,
        "arm": answer.arm,
        "question": answer.question,
        "kind": answer.score.kind.value,
        "share": answer.score.share,
        "exact": answer.score.exact,
        "answer": answer.answer,
        "reading": asdict(answer.reading),
    }


def screened_out(rows: Iterable[Row]) -> list[str]:
    """Return kinds of whose first ten questions more than 80 % cannot be found."""
    shares: dict[str, list[float]] = {}
    for row in rows:
        shares.setdefault(row["kind"], []).append(row["share"])
    most_lost = SCREENED * (1 - FOUND_BY_DENSE) - _ROUNDING
    return [
        kind
        for kind, found in shares.items()
        if sum(1 - share for share in found[:SCREENED]) >= most_lost
    ]


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each arm and kind, with the shares of all its answers.

    Shares are in the order of contexts and questions, the same for all arms.
    """
    by_arm: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["part"], row["question"])):
        by_arm.setdefault((row["arm"], row["kind"]), []).append(row)
    found = []
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    order = [(arm, kind.value) for arm in arms for kind in Kind]
    for arm, kind in order:
        mine = by_arm.get((arm, kind), [])
        scores = (Score(Kind(kind), row["share"], row["exact"]) for row in mine)
        for each in summarise(scores).values():
            found.append({"arm": arm, "kind": kind, **_shares(mine), **asdict(each)})
    return found


def _shares(rows: Sequence[Row]) -> Row:
    read = [row["reading"]["bytes_share"] for row in rows]
    return {
        "bytes_share": statistics.fmean(read),
        "shares": [round(row["share"], 4) for row in rows],
    }
