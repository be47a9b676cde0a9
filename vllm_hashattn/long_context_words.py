# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Contexts whose words are counted: no single place in them holds the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain, islice
from random import Random

from .long_context import CountTokens, Kind, Question, Sample, longest_text
from .long_context_vocabulary import ADJECTIVES, NOUNS, coded_words, word_pairs

_NOISE = "..."
# So much more often than the next one does the last word asked for have to occur.
_MARGIN = 1.2
_TRIES = 20  # draws; the first is clear for 6 of 7 seeds at 1,000 tokens


def build_common_words(
    tokens: int,
    count_tokens: CountTokens,
    seed: int,
    common: int = 5,
    common_times: int = 30,
    other_times: int = 3,
) -> Sample:
    """Make a numbered list in which a few words occur much more often than the rest.

    Args:
        tokens: Length of the context; it is at most 2 % shorter and never longer.
        count_tokens: Of the model's tokenizer.
        seed: The same seed, arguments and tokenizer make the same sample.
        common: Words that are asked for.
        common_times: How often each of them occurs.
        other_times: How often each other word does; the last one fewer times, where
            the length asks for it.

    Raises:
        ValueError: The common words do not fit, or are not more common than others.
    """
    if common < 1 or not 1 <= other_times < common_times:
        raise ValueError(
            f"hashattn: {common} common words, {common_times} times each among others "
            f"{other_times} times each, were asked for; there must be at least one, "
            "and it must occur more often than the others, which occur at least once."
        )
    random = Random(seed)
    asked = random.sample(_unlike_others(), common)
    # No more items than tokens, whatever the tokenizer.
    others = _other_words(random, asked, 1 + tokens // other_times)
    items = [word for word in others for _ in range(other_times)]
    shuffled = random.randrange(1 << 32)

    def write(parts: int) -> str:
        words = asked * common_times + items[:parts]
        Random(shuffled).shuffle(words)
        lines = (f"{number}. {word}" for number, word in enumerate(words, 1))
        return "\n".join(["A numbered list of words:", *lines])

    _, text, found = longest_text(write, len(items), tokens, count_tokens)
    return Sample(text, found, (_ask_common(tuple(asked)),))


def build_frequent_words(
    tokens: int,
    count_tokens: CountTokens,
    seed: int,
    frequent: int = 3,
    exponent: float = 2.0,
    vocabulary: int = 500,
) -> Sample:
    """Make a text of coded words, the k-th of which occurs in a share of 1 / k^a.

    The first place belongs to a row of dots, which does not count as a word.

    Args:
        tokens: Length of the context; it is at most 2 % shorter and never longer.
        count_tokens: Of the model's tokenizer.
        seed: The same seed, arguments and tokenizer make the same sample.
        frequent: Words that are asked for.
        exponent: The `a` above; the greater, the easier.
        vocabulary: Different words to draw from.

    Raises:
        ValueError: The numbers leave no clear answer.
    """
    if not 1 <= frequent < vocabulary:
        raise ValueError(
            f"hashattn: the {frequent} most frequent of {vocabulary} words were asked "
            "for; it must be at least one, and fewer than there are."
        )
    random = Random(seed)
    words = [_NOISE, *islice(coded_words(random), vocabulary)]
    weights = [rank**-exponent for rank in range(1, len(words) + 1)]
    for _ in range(_TRIES):
        drawn = random.choices(words, weights, k=tokens)
        parts, text, found = _first_words(drawn, tokens, count_tokens)
        if asked := _clearly_frequent(drawn[:parts], frequent):
            return Sample(text, found, (_ask_frequent(asked),))
    raise ValueError(
        f"hashattn: {frequent} most frequent of {vocabulary} words in {tokens:,} tokens"
        f" were asked for, with frequencies that fall with the power {exponent}; no "
        f"word is clearly the last of them in {_TRIES} draws. Ask for more tokens, "
        "fewer words or a greater exponent."
    )


def _first_words(
    words: Sequence[str], tokens: int, count_tokens: CountTokens
) -> tuple[int, str, int]:
    return longest_text(
        lambda parts: " ".join(words[:parts]), len(words), tokens, count_tokens
    )


def _clearly_frequent(words: Sequence[str], frequent: int) -> tuple[str, ...]:
    """The most frequent words, or none if the one after them is about as frequent."""
    counts = Counter(word for word in words if word != _NOISE)
    best = counts.most_common(frequent + 1)
    if len(best) <= frequent or best[-2][1] < _MARGIN * best[-1][1]:
        return ()
    return tuple(word for word, _ in best[:frequent])


def _ask_common(asked: tuple[str, ...]) -> Question:
    return Question(
        Kind.COMMON_WORDS,
        f"Most words of the list occur a few times, but {len(asked)} of them occur "
        f"much more often. Which {len(asked)} words are these?",
        f"The {len(asked)} words that occur most often in the list are:",
        asked,
    )


def _ask_frequent(asked: tuple[str, ...]) -> Question:
    return Question(
        Kind.FREQUENT_WORDS,
        "The text consists of coded words, and of dots, which do not count. Which "
        f"{len(asked)} coded words occur most often?",
        f"The {len(asked)} coded words that occur most often are:",
        asked,
    )


def _unlike_others() -> list[str]:
    """Words that are no part of another, so that naming another never counts."""
    every = " ".join((*ADJECTIVES, *NOUNS))
    return [word for word in NOUNS if every.count(word) == 1]


def _other_words(random: Random, asked: list[str], most: int) -> list[str]:
    """Different words without the ones asked for: single ones, then pairs."""
    singles = [word for word in (*ADJECTIVES, *NOUNS) if word not in asked]
    random.shuffle(singles)
    pairs = (
        pair for pair in word_pairs(random) if not set(pair.split("-")) & set(asked)
    )
    distinct = dict.fromkeys(islice(chain(singles, pairs), 2 * most))
    return list(distinct)[:most]
