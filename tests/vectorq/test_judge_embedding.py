# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The judge that compares embeddings of answers."""

import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_vectorq.embedding_model import EmbeddingModel
from vllm_vectorq.judge import Verdict
from vllm_vectorq.judge_embedding import (
    EmbeddingJudge,
    Thresholds,
    split_into_windows,
)
from vllm_vectorq.record import Vector

THRESHOLDS = Thresholds(same_at=0.9, different_at=0.3)


def embed(texts: list[str]) -> Vector:
    """Counts of the words of a small vocabulary, not of unit length."""
    vocabulary: dict[str, int] = {}
    rows = []
    for text in texts:
        row = np.zeros(256, dtype=np.float32)
        for word in re.findall(r"\w+", text.lower()):
            row[vocabulary.setdefault(word, len(vocabulary))] += 1.0
        rows.append(row)
    return np.stack(rows)


def at_most_words(count: int) -> Callable[[str], bool]:
    return lambda text: len(text.split()) <= count


def judge(longest_words: int = 8) -> EmbeddingJudge:
    return EmbeddingJudge(embed, at_most_words(longest_words), THRESHOLDS)


def verdict_on(answer: str, other_answer: str) -> bool | None:
    return judge().judge("a", answer, "b", other_answer).equivalent


def test_alike_answers_are_equivalent_and_unlike_ones_are_not() -> None:
    assert verdict_on("the capital is Paris", "Paris is the capital") is True
    assert verdict_on("the capital is Paris", "bake it for long") is False


def test_between_the_thresholds_it_cannot_tell() -> None:
    verdict = judge().judge("a", "the capital is Paris", "b", "the capital is Rome")
    assert verdict == Verdict(None, 0.0, "embedding")


@pytest.mark.parametrize(
    ("answer", "other_answer"),
    [
        (
            "the whole trip by train costs about 50 euros per day here",
            "the whole trip by train costs about 60 euros per day here",
        ),
        (
            "in this place it is always allowed to park here",
            "in this place it is always not allowed to park here",
        ),
    ],
)
def test_other_numbers_or_a_negation_forbid_equivalent(
    answer: str, other_answer: str
) -> None:
    at_length = judge(99)
    similarity = at_length.similarity(answer, other_answer)
    assert similarity is not None and similarity >= 0.9
    assert at_length.judge("a", answer, "b", other_answer).equivalent is None


def test_confidence_follows_the_similarity() -> None:
    same = judge().judge("a", "it is Paris", "b", "it is Paris")
    assert same.confidence == pytest.approx(1.0)
    different = judge().judge("a", "it is Paris", "b", "bake for long")
    assert different.confidence == pytest.approx(1.0)


LONG = "Boil the water first. Add the pasta then. Stir it well. Serve it hot."


def test_long_answers_are_compared_by_their_best_windows() -> None:
    shuffled = "Serve it hot. Stir it well. Add the pasta then. Boil the water first."
    by_sentence = judge(4)
    assert by_sentence.similarity(LONG, shuffled) == pytest.approx(1.0)


def test_an_answer_that_leaves_a_part_out_is_less_similar() -> None:
    by_sentence = judge(4)
    part = "Boil the water first. Add the pasta then."
    there = by_sentence.similarity(LONG, part)
    assert there is not None and 0.5 < there < 0.95
    assert by_sentence.similarity(part, LONG) == pytest.approx(there)


def test_what_lies_beyond_the_models_window_counts() -> None:
    same_start = "word " * 8
    assert judge().similarity(same_start + "Paris", same_start + "Rome") != (
        pytest.approx(1.0)
    )


@pytest.mark.parametrize("answer", ["", " \n "])
def test_an_empty_answer_is_left_undecided(answer: str) -> None:
    assert verdict_on(answer, "Paris") is None
    assert verdict_on("Paris", answer) is None


def test_an_answer_with_too_many_windows_is_not_cut_but_left_undecided() -> None:
    book = "one two three four five six seven eight. " * 33
    assert judge().similarity(book, book) is None
    assert judge().similarity(book[: 41 * 32], "one") is not None


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_vectors_without_direction_decide_nothing(value: float) -> None:
    def broken(texts: list[str]) -> Vector:
        return np.full((len(texts), 4), value, dtype=np.float32)

    lost = EmbeddingJudge(broken, at_most_words(8), THRESHOLDS)
    assert lost.judge("a", "x", "b", "y").equivalent is None


def test_one_call_embeds_both_answers() -> None:
    calls: list[int] = []

    def counted(texts: list[str]) -> Vector:
        calls.append(len(texts))
        return embed(texts)

    EmbeddingJudge(counted, at_most_words(4), THRESHOLDS).judge("a", LONG, "b", LONG)
    assert calls == [8]


WORDS = st.lists(
    st.text(alphabet="ab.!?\n ", min_size=1, max_size=12), min_size=1, max_size=30
)


@given(WORDS, st.integers(1, 20))
def test_windows_hold_every_character_and_fit(words: list[str], longest: int) -> None:
    text = " ".join(words)
    windows = split_into_windows(text, lambda part: len(part) <= longest)
    if windows:
        assert all(len(window) <= longest for window in windows)
        assert "".join("".join(windows).split()) == "".join(text.split())
    else:
        assert not text.strip() or len(text) > longest


def test_sentences_stay_whole_where_they_fit() -> None:
    windows = split_into_windows(LONG, at_most_words(8))
    assert windows == [
        "Boil the water first. Add the pasta then.",
        "Stir it well. Serve it hot.",
    ]


def test_a_sentence_that_is_too_long_is_cut_between_words() -> None:
    assert split_into_windows("a b c d e", at_most_words(2)) == ["a b", "c d", "e"]


def test_a_word_that_is_too_long_is_cut_in_two() -> None:
    windows = split_into_windows("abcdefgh", lambda part: len(part) <= 3)
    assert "".join(windows) == "abcdefgh"
    assert max(map(len, windows)) <= 3


def test_a_character_that_the_model_cannot_read_leaves_nothing_to_compare() -> None:
    def reads(text: str) -> bool:
        return "\u2603" not in text

    assert split_into_windows("it is cold. \u2603 indeed", reads) == []
    assert split_into_windows("\u2603", reads) == []
    assert split_into_windows("snow\u2603man and more", reads) == []


@pytest.mark.parametrize(
    ("same_at", "different_at"),
    [(0.5, 0.5), (0.3, 0.6), (1.1, 0.3), (0.9, -1.1), (float("nan"), 0.1)],
)
def test_thresholds_without_order_are_refused(
    same_at: float, different_at: float
) -> None:
    with pytest.raises(ValueError, match="different_at < same_at"):
        Thresholds(same_at, different_at)


def test_a_real_model_tells_paraphrases_from_other_answers(
    embedding_model_path: str,
) -> None:
    pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    model = EmbeddingModel(embedding_model_path)
    real = EmbeddingJudge(model.embed, model.fits)
    capital = "The capital of France is Paris."
    for other_answer, equivalent in [
        ("Paris is the capital of France.", True),
        ("Knead the dough for ten minutes.", False),
        ("The capital of France is not Paris.", None),
    ]:
        assert real.judge("a", capital, "b", other_answer).equivalent is equivalent
    # The same text far beyond the window of 256 tokens, then something else.
    common = "The museum opens at nine and closes at five every day. " * 40
    far = real.similarity(
        common + "Dogs are welcome.", common + "Tickets are sold out."
    )
    assert far is not None and 0.9 < far < 0.999
