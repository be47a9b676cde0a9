# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What answers to long-context questions are worth, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from .long_context import Kind, Question


@dataclass(frozen=True, slots=True)
class Score:
    """What one answer is worth.

    Attributes:
        kind: Of task.
        share: Of the expected strings that the answer holds, from 0 to 1.
        exact: Whether it holds all of them.
    """

    kind: Kind
    share: float
    exact: bool


@dataclass(frozen=True, slots=True)
class KindSummary:
    """What the answers to one kind of question are worth.

    The interval takes the answers as independent. Questions about one context are not
    quite, so vary the context where the interval matters.

    Attributes:
        n: Answers.
        mean_share: Mean of the shares of expected strings.
        exact: Answers that hold all of them.
        low: Lower end of the 95 % interval of the share of exact answers.
        high: Upper end.
    """

    n: int
    mean_share: float
    exact: int
    low: float
    high: float


def score_answer(question: Question, answer: str) -> Score:
    """Compare an answer with what was expected.

    Args:
        question: With at least one expected string.
        answer: What the model generated, without the answer prefix. Upper and lower
            case count as the same, and so does whatever else the answer says.

    Source: RULER (arXiv 2404.06654), recall of all expected strings.
    """
    said = answer.lower()
    found = [each.lower() in said for each in question.expected]
    return Score(question.kind, sum(found) / len(found), all(found))


def summarise(scores: Iterable[Score]) -> dict[Kind, KindSummary]:
    """Return what was reached by kind, in the order of :class:`Kind`."""
    by_kind: dict[Kind, list[Score]] = {kind: [] for kind in Kind}
    for score in scores:
        by_kind[score.kind].append(score)
    return {kind: _summary(found) for kind, found in by_kind.items() if found}


def wilson_interval(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a share, 95 % by default.

    Args:
        hits: Successes.
        n: Trials.
        z: Quantile of the normal distribution.

    Raises:
        ValueError: There is no trial, or not between 0 and all of them succeeded.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(
            f"hashattn: an interval for {hits} hits of {n} was asked for; there must "
            "be at least one trial and from 0 to all hits."
        )
    share = hits / n
    scale = 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / scale
    # Rounding must neither leave the share outside nor pass 0 or 1.
    low, high = min(share, middle - half), max(share, middle + half)
    return max(0.0, low), min(1.0, high)


def _summary(scores: list[Score]) -> KindSummary:
    exact = sum(score.exact for score in scores)
    mean = statistics.fmean(score.share for score in scores)
    return KindSummary(len(scores), mean, exact, *wilson_interval(exact, len(scores)))
