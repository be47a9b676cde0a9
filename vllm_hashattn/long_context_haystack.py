# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Text to hide needles in, cut to a length in tokens."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from .long_context import CountTokens, longest_text
from .long_context_vocabulary import filler_paragraphs

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
# What is read beyond the length asked for: joined sentences can be fewer tokens than
# the same sentences one by one.
_SPARE = 1.05


@dataclass(frozen=True, slots=True)
class Needle:
    """A sentence to hide.

    Attributes:
        sentence: Ends with a full stop.
        depth: Where it goes, from 0 (start of the context) to 1 (end).
    """

    sentence: str
    depth: float


class Haystack:
    """Sentences that needles are put between.

    Args:
        paragraphs: Of running text.
    """

    def __init__(self, paragraphs: Iterable[str]) -> None:
        self._sentences: list[str] = []
        self._gaps: list[str] = []  # what separates a sentence from the next one
        for paragraph in paragraphs:
            sentences = _SENTENCE_END.split(paragraph.strip())
            self._sentences += sentences
            self._gaps += [" "] * (len(sentences) - 1) + ["\n\n"]
        words = (len(sentence.split()) for sentence in self._sentences)
        self._words = list(accumulate(words))  # up to the end of each sentence

    def lowered(self) -> str:
        """Return all of its text in lower case."""
        return "\n".join(self._sentences).lower()

    def hide(
        self, needles: Sequence[Needle], tokens: int, count_tokens: CountTokens
    ) -> tuple[str, int]:
        """Return the text with all needles in it, and its tokens.

        Args:
            needles: Those at the same depth stay in this order.
            tokens: Of text and needles, at most.
            count_tokens: Of the model's tokenizer.

        Raises:
            ValueError: The needles do not fit, or there is too little text.
        """
        ordered = sorted(needles, key=lambda needle: needle.depth)
        most = self._words[-1] if self._words else 0
        _, text, found = longest_text(
            lambda words: self._write(ordered, words), most, tokens, count_tokens
        )
        return text, found

    def _write(self, needles: Sequence[Needle], words: int) -> str:
        """The first words, with the needles before the sentences where they belong."""
        whole = bisect_right(self._words, words)
        pieces: list[str] = []
        next_needle = 0
        for index in range(whole + 1):
            while next_needle < len(needles) and index == min(
                bisect_left(self._words, needles[next_needle].depth * words), whole
            ):
                pieces += [needles[next_needle].sentence, " "]
                next_needle += 1
            if index < whole:
                pieces += [self._sentences[index], self._gaps[index]]
        rest = words - (self._words[whole - 1] if whole else 0)
        if rest:
            pieces.append(" ".join(self._sentences[whole].split()[:rest]))
        return "".join(pieces).rstrip()


def read_haystack(
    paragraphs: Sequence[str] | None,
    tokens: int,
    count_tokens: CountTokens,
    random: Random,
) -> Haystack:
    """Take as much text as a context needs.

    Args:
        paragraphs: To start among at random, and to go round in; ``None`` for filler.
        tokens: That are needed.
        count_tokens: Of the model's tokenizer.
        random: Chooses the start, or makes the filler.
    """
    source: Iterable[str]
    if paragraphs is None:
        source = filler_paragraphs(random)
    else:
        start = random.randrange(len(paragraphs)) if paragraphs else 0
        source = [*paragraphs[start:], *paragraphs[:start]]
    taken: list[str] = []
    found = 0
    for paragraph in source:
        if paragraph.strip():
            taken.append(paragraph)
            found += count_tokens(paragraph)
        if found > _SPARE * tokens:
            break
    return Haystack(taken)
