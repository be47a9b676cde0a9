# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Generated long-context tasks have one answer each, and the length asked for."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vllm_hashattn.long_context import (
    Kind,
    Question,
    Sample,
    chat_prompt,
    token_counter,
)
from vllm_hashattn.long_context_needles import NeedlePlan, build_needle_context
from vllm_hashattn.long_context_vocabulary import ADJECTIVES, NOUNS, filler_paragraphs
from vllm_hashattn.long_context_words import build_common_words, build_frequent_words

# Numbers and upper case in the text, such as an essay has.
ESSAY = [f"In {1900 + n} the ABC grew by {n}%. It went on. Why? No one knew." * 3
         for n in range(120)]  # fmt: skip
# Two of every kind, so that each has something to be mistaken for.
TWO = NeedlePlan(multivalues=2, multiqueries=2, chains=2)
SEEDS = st.integers(min_value=0, max_value=2**32)


@pytest.fixture(scope="module")
def tokenizer(model_path: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path)


def words(text: str) -> int:
    return len(text.split())


def by_kind(sample: Sample, kind: Kind) -> list[Question]:
    return [question for question in sample.questions if question.kind is kind]


@pytest.mark.parametrize("tokens", [1500, 2049, 7000])
@pytest.mark.parametrize("haystack", [None, ESSAY], ids=["filler", "essay"])
def test_contexts_have_the_length_asked_for(
    tokenizer: PreTrainedTokenizerBase, tokens: int, haystack: Sequence[str] | None
) -> None:
    count = token_counter(tokenizer)
    for sample in (
        build_needle_context(tokens, count, haystack, 5),
        build_common_words(tokens, count, 5),
        build_frequent_words(tokens, count, 5),
    ):
        assert sample.context_tokens == count(sample.context)
        assert 0.98 * tokens <= sample.context_tokens <= tokens


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(min_value=1000, max_value=3000))
def test_the_seed_decides_everything(seed: int, tokens: int) -> None:
    made, again, other = (
        (
            build_needle_context(tokens, words, None, each),
            build_needle_context(tokens, words, ESSAY, each),
            build_common_words(tokens, words, each),
            build_frequent_words(tokens, words, each),
        )
        for each in (seed, seed, seed + 1)
    )
    assert made == again
    for sample, another in zip(made, other, strict=True):
        assert sample.context != another.context
        assert sample.questions != another.questions
        assert 0.98 * tokens <= words(sample.context) <= tokens


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([None, ESSAY]))
def test_every_needle_is_there_once_and_nothing_else_answers(
    seed: int, haystack: Sequence[str] | None
) -> None:
    sample = build_needle_context(1500, words, haystack, seed, TWO)
    needles = re.findall(
        r"(?:is set to|number of \S+ is|code of \S+ is|ticket numbers of \S+ is"
        r"|passkey of this text is) (\d{7})[.;]",
        sample.context,
    )
    # passkey, 2 singles, 4 + 16 of one sort, 2 keys with 4, 2 with 3, 2 chains
    assert len(needles) == len(set(needles)) == 1 + 2 + 20 + 8 + 6 + 2
    expected = [each for question in sample.questions for each in question.expected]
    assert len(expected) == len(set(expected)) == 1 + 2 + 4 + 8 + 6 + 10
    for each in expected:
        found = sample.context.count(each)
        # A variable is named where it gets its value and where it hands it on.
        assert found == 1 if each.isdigit() else found in (1, 2)
    for question in sample.questions:
        asked = question.text + question.answer_prefix
        assert not any(each in asked for each in question.expected)
        assert len(question.depths) == len(question.expected)
    assert Counter(question.kind for question in sample.questions) == {
        Kind.PASSKEY: 1, Kind.SINGLE: 2, Kind.MULTIKEY: 4, Kind.MULTIVALUE: 2,
        Kind.MULTIQUERY: 2, Kind.TRACKING: 2,
    }  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_answers_follow_from_the_text(seed: int) -> None:
    sample = build_needle_context(1500, words, None, seed, TWO)
    for question in sample.questions:
        if question.kind in (Kind.PASSKEY, Kind.SINGLE, Kind.MULTIKEY):
            assert f"{question.answer_prefix} {question.expected[0]}" in sample.context
    for question in by_kind(sample, Kind.MULTIVALUE):
        key = question.answer_prefix.split()[-2]
        found = re.findall(rf"ticket numbers of {key} is (\d+)", sample.context)
        assert sorted(found) == sorted(question.expected)
    for question in by_kind(sample, Kind.MULTIQUERY):
        keys = re.findall(r"\w+-\w+", question.answer_prefix)
        for key, value in zip(keys, question.expected, strict=True):
            assert f"The badge number of {key} is {value}." in sample.context
    for question in by_kind(sample, Kind.TRACKING):
        held: dict[str, str] = {}  # run the statements in the order of the text
        for name, source in re.findall(
            r"variable (\w+) is set to (?:the value of )?(\w+)\.", sample.context
        ):
            held[name] = source if source.isdigit() else held[source]
        [asked] = re.findall(r"\d{7}", question.text)
        holders = [name for name, got in held.items() if got == asked]
        assert holders == list(question.expected)


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_the_passkey_stands_where_it_is_wanted(depth: float) -> None:
    plan = NeedlePlan(0, 0, 0, 0, 1, 0, 1, 0, 0)
    sample = build_needle_context(2000, words, None, 3, plan, depth)
    [question] = sample.questions
    found = sample.context.index(question.answer_prefix) / len(sample.context)
    assert question.kind is Kind.PASSKEY
    assert question.depths == (depth,)
    assert abs(found - depth) < 0.02


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(4, 20), st.integers(1, 3))
def test_common_words_are_common(
    seed: int, common: int, common_times: int, other_times: int
) -> None:
    sample = build_common_words(1000, words, seed, common, common_times, other_times)
    [question] = sample.questions
    listed = re.findall(r"^\d+\. (\S+)$", sample.context, re.MULTILINE)
    counts = Counter(listed)
    others = set(counts) - set(question.expected)
    assert len(set(question.expected)) == common
    assert {counts[word] for word in question.expected} == {common_times}
    assert {counts[word] for word in others} <= set(range(1, other_times + 1))


def test_no_other_word_of_the_list_holds_one_that_is_asked_for() -> None:
    sample = build_common_words(6000, words, 1, 40, 4, 1)  # nearly every word there is
    [question] = sample.questions
    others = set(re.findall(r"[a-z-]+", sample.context)) - set(question.expected)
    assert len(others) > 1000
    assert not any(word in other for word in question.expected for other in others)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 3))
def test_frequent_words_are_clearly_the_most_frequent(seed: int, frequent: int) -> None:
    sample = build_frequent_words(1000, words, seed, frequent)
    [question] = sample.questions
    counts = Counter(sample.context.split())
    (dots, most), *ranked = counts.most_common(frequent + 2)
    assert dots == "..." and most > ranked[0][1]
    assert question.expected == tuple(word for word, _ in ranked[:frequent])
    assert ranked[frequent - 1][1] >= 1.2 * ranked[frequent][1]


def test_all_questions_share_the_prefix(tokenizer: PreTrainedTokenizerBase) -> None:
    count = token_counter(tokenizer)
    sample = build_needle_context(1500, count, ESSAY, 7)
    prompts = [
        chat_prompt(tokenizer, sample.context, each.text, each.answer_prefix)
        for each in sample.questions
    ]
    assert len({prompt.prefix for prompt in prompts}) == 1
    assert len({prompt.branch for prompt in prompts}) == len(prompts)
    for prompt, question in zip(prompts, sample.questions, strict=True):
        assert sample.context in prompt.prefix
        # Some tokenizers join a full stop and a line break, none a letter and one.
        assert prompt.prefix[-1].isalpha() and prompt.branch.startswith("\n")
        assert prompt.branch.endswith(f"assistant\n{question.answer_prefix}")
        first, second = prompt.token_ids(tokenizer)
        whole = prompt.prefix + prompt.branch
        # Tokenised as one text, nothing is merged across the seam either.
        assert first + second == tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(first + second) == whole


def test_a_tokenizer_without_a_usable_template_is_refused(model_path: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        chat_prompt(tokenizer, "A text.", "What?", "It is")
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(ValueError, match="changes or repeats"):
        chat_prompt(tokenizer, "A text.", "What?", "It is")


def test_contexts_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ValueError, match="200 tokens was asked for; what is asked"):
        build_needle_context(200, words, None, 0)
    with pytest.raises(ValueError, match="Give more text"):
        build_needle_context(50_000, words, ESSAY, 0)
    with pytest.raises(ValueError, match="Give more text"):
        build_needle_context(1000, words, [], 0, NeedlePlan(multikeys=0, distractors=0))
    with pytest.raises(ValueError, match=r"depth 1\.5"):
        build_needle_context(1500, words, None, 0, passkey_depth=1.5)
    with pytest.raises(ValueError, match=r"singles 5 was asked .* and at most 4"):
        NeedlePlan(singles=5)
    with pytest.raises(ValueError, match="hops -1"):
        NeedlePlan(hops=-1)
    with pytest.raises(ValueError, match="200 tokens was asked for; what is asked"):
        build_common_words(200, words, 0)
    with pytest.raises(ValueError, match="more often than the others"):
        build_common_words(1000, words, 0, common_times=3)
    with pytest.raises(ValueError, match="no word is clearly the last"):
        build_frequent_words(1000, words, 0, frequent=20, exponent=0.1)
    with pytest.raises(ValueError, match="3 most frequent of 3 words"):
        build_frequent_words(1000, words, 0, vocabulary=3)


def test_words_are_distinct_and_filler_holds_nothing_to_mistake() -> None:
    every = (*ADJECTIVES, *NOUNS)
    assert len(every) == len(set(every)) > 1000
    filler = " ".join(islice(filler_paragraphs(Random(0)), 200))
    assert re.fullmatch(r"[A-Za-z,. ]+", filler)
    assert len(set(filler.split(". "))) > 900


def test_keys_that_the_haystack_names_are_not_used() -> None:
    named = ADJECTIVES[: len(ADJECTIVES) // 2]
    pairs = "/".join(f"{first}-{second}" for first in named for second in NOUNS)
    sample = build_needle_context(1500, words, [pairs + " It went on." * 700], 0)
    keys = re.findall(r"(?:number|numbers|code) of (\S+) is", sample.context)
    assert len(set(keys)) == 2 + 20 + 1 + 3
    assert not {key.split("-")[0] for key in keys} & set(named)
