# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Long-context tasks of the quality benchmark: which are asked, and how often.

Contexts are what costs. Those with needles hold two questions of each kind and one
passkey, and later ones a passkey only. A screening by dense decoding alone comes first:
kinds of which it finds 80 % or less say nothing about sparse decoding and are not asked
again. Kinds that a screening asks fewer than ten times are asked in any case.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
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
        """Plan the parts that there will be if counting words is screened out."""
        self.parts.plan("screening", list(_keys("screening", self._screening())))
        kinds = [kind for kind in Kind if kind not in _BUILDERS]
        self.parts.plan("tasks", list(_keys("tasks", self._contexts(kinds))))

    def measure(self) -> list[Row]:
        """Return what each arm found of each kind; of screened kinds dense only."""
        screened = self._rows("screening", self._screening(), self.arms[:1])
        dropped = screened_out(screened)
        asked = [kind for kind in Kind if kind not in dropped]
        rows = self._rows("tasks", self._contexts(asked), self.arms)
        of_dropped = [row for row in screened if row["kind"] in dropped]
        return summary([*rows, *of_dropped])

    def _screening(self) -> dict[str, Build]:
        needles = -(-min(SCREENED, self.questions) // PER_CONTEXT)
        found = {
            f"needles {n}": partial(self._needles, n, _RICH) for n in range(needles)
        }
        for kind in _BUILDERS:
            for n in range(min(SCREENED, self.questions)):
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

    def _rows(
        self, group: str, contexts: Mapping[str, Build], arms: Sequence[Arm]
    ) -> list[Row]:
        keys = _keys(group, contexts)
        self.parts.plan(group, list(keys))
        found: list[Row] = []
        for key, build in keys.items():
            rows = self.parts.measure(group, key, partial(self._part, build, arms))
            found += [{"part": key, **row} for row in rows]
        return found

    def _part(self, build: Build, arms: Sequence[Arm]) -> list[Row]:
        return [
            {
                "arm": each.arm,
                "question": each.question,
                "kind": each.score.kind.value,
                "share": each.score.share,
                "exact": each.score.exact,
                "answer": each.answer,
                "reading": asdict(each.reading),
            }
            for each in self.ask(build(), arms)
        ]

    def _needles(self, seed: int, plan: NeedlePlan) -> Sample:
        return build_needle_context(self.tokens, self.count_tokens, None, seed, plan)

    def _asked(self, asked: Sequence[Kind], seed: int, plan: NeedlePlan) -> Sample:
        sample = self._needles(seed, plan)
        kept = tuple(each for each in sample.questions if each.kind in asked)
        return replace(sample, questions=kept)

    def _words(self, kind: Kind, seed: int) -> Sample:
        return _BUILDERS[kind](self.tokens, self.count_tokens, seed)


def _keys(group: str, contexts: Mapping[str, Build]) -> dict[str, Build]:
    return {f"{group} {name}": build for name, build in contexts.items()}


def screened_out(rows: Iterable[Row]) -> list[str]:
    """Return kinds that dense decoding was asked often enough, and finds too seldom."""
    shares: dict[str, list[float]] = {}
    for row in rows:
        shares.setdefault(row["kind"], []).append(row["share"])
    return [
        kind
        for kind, found in shares.items()
        if len(found) >= SCREENED and statistics.fmean(found) <= FOUND_BY_DENSE
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
