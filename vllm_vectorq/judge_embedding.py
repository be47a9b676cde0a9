# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Judge that compares the embeddings of two answers.

Embedding models cut what is longer than their window, so a long answer is split into
windows that fit. Every window of one answer is compared with its best match in the
other, and the mean over both directions counts: an answer that leaves a part out
finds no match for it.

Similarity says that two answers are about the same thing, not that they say the same:
"costs 5 euros" and "costs 6 euros" are close. Therefore the lexical guards must agree
before two answers count as equivalent, and there is a zone in which the judge does not
decide. Its two thresholds belong to one embedding model; ``bench_judge`` in the
benchmarks chooses and checks them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .guards import conflict, signature
from .judge import Verdict
from .record import Vector

_SENTENCE_END = re.compile(r"(?<=[.!?\u3002])\s+|\n+")
_SPACE = re.compile(r"\s+")
# Per answer; more would hold up the labels behind it.
_MAX_WINDOWS = 32


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where an embedding judge is sure, as cosines in [-1, 1].

    Attributes:
        same_at: At least this similar: equivalent.
        different_at: At most this similar: not equivalent.

    Raises:
        ValueError: the two do not leave an order.
    """

    same_at: float
    different_at: float

    def __post_init__(self) -> None:
        if not -1.0 <= self.different_at < self.same_at <= 1.0:
            raise ValueError(
                f"an embedding judge was asked for with different_at="
                f"{self.different_at} and same_at={self.same_at}; choose cosines with "
                "-1 <= different_at < same_at <= 1."
            )


# Chosen on one half of ParaQA (one-sentence answers) so that at most 1 % of the pairs
# of each kind are judged wrongly.
MINILM_THRESHOLDS = Thresholds(same_at=0.922, different_at=0.44)


class EmbeddingJudge:
    """Compares answers window by window.

    Args:
        embed: Texts to vectors, float32 [texts, dimensions]; any length but zero.
            Called from several threads.
        fits: Whether the embedding model reads a text as a whole.
        thresholds: Where the judge is sure, for this model; all-MiniLM-L6-v2 unless
            given.
    """

    name = "embedding"

    def __init__(
        self,
        embed: Callable[[list[str]], Vector],
        fits: Callable[[str], bool],
        thresholds: Thresholds = MINILM_THRESHOLDS,
    ) -> None:
        self._embed = embed
        self._fits = fits
        self._thresholds = thresholds

    def judge(
        self, prompt: str, answer: str, other_prompt: str, other_answer: str
    ) -> Verdict:
        """Sure above one threshold (if the guards agree) and below the other."""
        similarity = self.similarity(answer, other_answer)
        if similarity is None:
            return Verdict(None, 0.0, self.name)
        if similarity <= self._thresholds.different_at:
            return Verdict(False, 1.0 - max(similarity, 0.0), self.name)
        alike = similarity >= self._thresholds.same_at
        if alike and not differ_in_words(answer, other_answer):
            return Verdict(True, min(max(similarity, 0.0), 1.0), self.name)
        return Verdict(None, 0.0, self.name)

    def similarity(self, answer: str, other_answer: str) -> float | None:
        """Symmetric mean of the best cosines between windows.

        Returns:
            None for an empty answer, or one that cannot be embedded as a whole or has
            a vector without direction.
        """
        windows = split_into_windows(answer, self._fits)
        others = split_into_windows(other_answer, self._fits)
        if not windows or not others:
            return None
        vectors = np.asarray(self._embed(windows + others), dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(norms) & (norms > 0.0)).all():
            return None
        vectors = vectors / norms
        cosines = vectors[: len(windows)] @ vectors[len(windows) :].T
        there, back = cosines.max(axis=1).mean(), cosines.max(axis=0).mean()
        return float(there + back) / 2.0


def differ_in_words(answer: str, other_answer: str) -> bool:
    """Whether the guards (numbers, negation and the like) tell two answers apart."""
    return conflict(signature(answer), signature(other_answer)) is not None


def split_into_windows(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Pack whole sentences into windows; cut a sentence only if it alone is too long.

    Args:
        text: What to split.
        fits: Whether the embedding model reads a text as a whole.

    Returns:
        Nothing for a text without words, one that needs too many windows, or one with
        a character that the model cannot read at all.
    """
    if not text.strip():
        return []
    if fits(text):
        return [text]
    windows: list[str] = []
    window = ""
    for piece in _pieces(text, (_SENTENCE_END, _SPACE), fits):
        longer = f"{window} {piece}" if window else piece
        if fits(longer):
            window = longer
            continue
        # The pieces fit by themselves, but for a character that cannot be read.
        if not window or not fits(piece) or len(windows) == _MAX_WINDOWS - 1:
            return []
        windows.append(window)
        window = piece
    return [*windows, window]


def _pieces(
    text: str, separators: tuple[re.Pattern[str], ...], fits: Callable[[str], bool]
) -> Iterator[str]:
    """Cut at the first separator; what is still too long at the next, then in two."""
    parts = separators[0].split(text) if separators else _halves(text)
    for part in parts:
        if not part.strip():
            continue
        if len(part) == 1 or fits(part):
            yield part
        else:
            yield from _pieces(part, separators[1:], fits)


def _halves(text: str) -> tuple[str, str]:
    middle = len(text) // 2
    return text[:middle], text[middle:]
