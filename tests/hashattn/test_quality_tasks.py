# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which tasks the quality benchmark asks, with readers that need no model."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.hashattn.quality_parts import Parts
from benchmarks.hashattn.quality_tasks import Tasks, screened_out
from vllm_hashattn.budget import Budget
from vllm_hashattn.evaluation_arms import Arm, Reading, dense_arm, window_arm
from vllm_hashattn.long_context import Kind, Sample
from vllm_hashattn.long_context_score import score_answer
from vllm_hashattn.quality import TaskResult

QUESTIONS, TOKENS = 12, 1500
READING = Reading(100.0, 1000.0, 0.1)


def count_words(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


class Reader:
    """Finds what is asked, but never the words of `blind` kinds; counts its work."""

    def __init__(self, *blind: Kind) -> None:
        self.blind = blind
        self.asked: Counter[tuple[str, Kind]] = Counter()
        self.contexts: Counter[str] = Counter()

    def __call__(self, sample: Sample, arms: Sequence[Arm]) -> Iterator[TaskResult]:
        assert sample.context_tokens <= TOKENS
        for arm in arms:
            self.contexts[arm.name] += 1
            for number, question in enumerate(sample.questions):
                self.asked[arm.name, question.kind] += 1
                found = "" if question.kind in self.blind else question.expected[0]
                # What stands in the text is asked for, and nothing else.
                assert all(each in sample.context for each in question.expected)
                score = score_answer(question, found)
                yield TaskResult(arm.name, 0, number, score, found, READING)


def tasks_of(reader: Reader, folder: Path) -> Tasks:
    parts = Parts(folder / "tasks.parts", {}, lambda _: None)
    arms = [dense_arm(), window_arm(Budget(0.1))]
    return Tasks(TOKENS, count_words, QUESTIONS, reader, arms, parts)


WORDS = (Kind.COMMON_WORDS, Kind.FREQUENT_WORDS)
# Readers name one of several words only.
MANY = (Kind.MULTIVALUE, Kind.MULTIQUERY, Kind.TRACKING, *WORDS)


def test_every_kind_is_asked_often_enough_or_screened_out(tmp_path: Path) -> None:
    reader = Reader()
    rows = tasks_of(reader, tmp_path).measure()
    by_arm = {(row["arm"], row["kind"]): row for row in rows}
    for kind in Kind:
        dense = by_arm["dense", kind.value]
        assert dense["n"] == len(dense["shares"])
        if kind in MANY:
            assert 10 - sum(1 - share for share in dense["shares"][:10]) <= 8
            assert ("window", kind.value) not in by_arm
        else:
            assert dense["n"] == by_arm["window", kind.value]["n"] == QUESTIONS
            assert dense["mean_share"] == 1.0
    # Dense alone was screened: 5 contexts of needles and, until two of what was asked
    # for were missing, 3 of common words (a fifth found) and 3 of others (a third).
    assert reader.contexts == {"dense": 12 + 5 + 3 + 3, "window": 12}


def test_kinds_that_were_screened_out_are_not_asked_again(tmp_path: Path) -> None:
    reader = Reader(Kind.MULTIKEY, *WORDS)
    rows = tasks_of(reader, tmp_path).measure()
    assert reader.asked["window", Kind.MULTIKEY] == 0
    assert reader.asked["dense", Kind.MULTIKEY] == 10
    assert reader.asked["window", Kind.PASSKEY] == QUESTIONS
    found = [row for row in rows if row["kind"] == Kind.MULTIKEY.value]
    assert [(row["arm"], row["n"], row["exact"]) for row in found] == [("dense", 10, 0)]


def test_measured_tasks_are_not_asked_again(tmp_path: Path) -> None:
    first = tasks_of(Reader(), tmp_path).measure()
    again = Reader()
    assert tasks_of(again, tmp_path).measure() == first
    assert not again.asked


def test_contexts_differ(tmp_path: Path) -> None:
    tasks = tasks_of(Reader(), tmp_path)
    contexts = [build().context for build in tasks._contexts(list(Kind)).values()]
    assert len(contexts) == len(set(contexts))


@pytest.mark.parametrize(
    "shares, out",
    [
        ([1.0] * 8 + [0.0] * 2, True),
        ([1.0] * 9 + [0.0], False),
        ([0.0, 0.0], True),
        ([0.8] * 9, False),
        ([0.8] * 10, True),
        ([1.0] * 10 + [0.0] * 9, False),
    ],
)
def test_more_than_eight_of_ten_are_needed(shares: list[float], out: bool) -> None:
    rows = [{"kind": "vt", "share": share} for share in shares]
    assert screened_out(rows) == (["vt"] if out else [])
