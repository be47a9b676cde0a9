# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Normalised equality of answers, and the chain of judges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_vectorq.judge import (
    ChainJudge,
    EqualityJudge,
    Judge,
    Verdict,
    normalised,
    read,
)


def verdict_on(answer: str, other_answer: str) -> bool | None:
    return EqualityJudge().judge("a", answer, "b", other_answer).equivalent


class FixedJudge:
    """Says always the same and counts how often it was asked."""

    def __init__(self, name: str, equivalent: bool | None) -> None:
        self.name = name
        self.equivalent = equivalent
        self.calls = 0

    def judge(
        self, prompt: str, answer: str, other_prompt: str, other_answer: str
    ) -> Verdict:
        self.calls += 1
        return Verdict(self.equivalent, 0.5, self.name)


class BrokenJudge(FixedJudge):
    def judge(
        self, prompt: str, answer: str, other_prompt: str, other_answer: str
    ) -> Verdict:
        raise OSError("no model")


@pytest.mark.parametrize(
    ("answer", "other_answer"),
    [
        ("Paris", "paris."),
        ("The  capital\nis Paris.", "the capital is Paris"),
        ("Sure! The capital is Paris.", "The capital is Paris."),
        ("Certainly, it is Paris.", "Of course! It is Paris."),
        ("Great question! It is Paris.", "It is Paris."),
        ("It is **Paris**.", "It is *Paris*!"),
        ("## Answer\nParis", "Answer: Paris"),
        ("- Paris\n- Rome", "* Paris\n* Rome"),
        ("1. Paris\n2. Rome", "- Paris\n- Rome"),
        ("It costs 1,000 euros", "It costs 1000 euros."),
        ("It costs 1000.0 euros", "It costs 1,000 euros."),
        ("It costs 1\u202f000 euros", "It costs 1000 euros."),
        ("12,34,567 rupees", "1234567 rupees"),
        ("There are three.", "There are 3."),
        ("5km", "5 km"),
        ("It\u2019s Paris", "it's Paris"),
        ("\uff30aris", "Paris"),
        ("a well-known city", "A well known city"),
        ("1990\u20131995", "1990-1995"),
        ("\u0663 apples", "3 apples"),
        ("Yes.", "yeah"),
        ("No!", "nope."),
        ("Run\n```python\nx = 1  \n```", "run:\n```\nx = 1\n```"),
        ("\u201cParis\u201d", '"Paris"'),
    ],
)
def test_what_does_not_change_an_answer_is_ignored(
    answer: str, other_answer: str
) -> None:
    assert verdict_on(answer, other_answer) is True
    assert normalised(answer) == normalised(other_answer)


@pytest.mark.parametrize(
    ("answer", "other_answer"),
    [
        ("It costs 5 euros", "It costs 6 euros"),
        ("It costs 5 euros", "It costs -5 euros"),
        ("In 1990 and 2000", "in 1990 and 2001."),
        ("agent 007", "agent 008"),
        ("release 1.2.3", "release 1.2.4"),
        ("1.000 m", "2.000 m"),
        ("Two of them", "3 of them"),
        ("9 planets", "10 planets"),
        ("**1,000** euros", "1,001 euros"),
        ("Yes, it is legal.", "No, it is not."),
        ("**No**, never", "Sure! Yes, always"),
        ("No \u2013 never", "Yep."),
        ("7. That is all", "8. That is all"),
    ],
)
def test_other_numbers_or_another_yes_or_no_are_different_for_certain(
    answer: str, other_answer: str
) -> None:
    assert verdict_on(answer, other_answer) is False


@pytest.mark.parametrize(
    ("answer", "other_answer"),
    [
        ("Paris", "It is Paris"),
        ("x - y", "x + y"),
        ("x-y", "x y"),
        ("2\u2075", "25"),
        ("10%", "10"),
        ("`A`", "`a`"),
        ("```\nif x:\n  y\nz\n```", "```\nif x:\n  y\n  z\n```"),
        # Read in English 1, in German 1000.
        ("1.000 m", "1000 m"),
        ("1.000 m", "1 m"),
        ("Python 3.10", "Python 3.1"),
        ("version 1.2", "version 1.2.0"),
        ("on 2024-01-05", "on 2024-1-5"),
        # One may be the other, rounded.
        ("pi is 3.14", "pi is 3.14159"),
        ("about 1000", "about 1000.4"),
        ("from 3 to 5", "from 5 to 3"),
        ("No one knows", "Yes, everybody knows"),
        ("No. 5", "Yes, it is"),
        ("Yes, Paris is", "Yes."),
        ("?", "!"),
        ("", "Paris"),
    ],
)
def test_anything_else_is_left_to_other_judges(answer: str, other_answer: str) -> None:
    assert verdict_on(answer, other_answer) is None


def test_an_answer_of_filler_alone_is_kept() -> None:
    assert read("Absolutely.").tokens == ("absolutely",)


def test_numbers_that_count_list_items_are_not_numbers_of_the_answer() -> None:
    assert read("1. a\n2. b\n3. c").tokens == ("a", "b", "c")
    assert read("1. a\n5. b").tokens == ("a", "5", "b")


def test_text_that_imitates_the_mark_for_code_is_harmless() -> None:
    assert read("a \0 b").tokens == ("a", "b")
    assert read("\0 `x`").tokens == ("`x",)


def test_forms_of_code_and_of_prose_differ() -> None:
    assert normalised("`a b`") != normalised("`a` b")
    assert normalised("?") != normalised("!")


@given(st.text())
def test_every_answer_is_equivalent_to_itself_for_certain(answer: str) -> None:
    verdict = EqualityJudge().judge("a", answer, "b", answer)
    assert verdict == Verdict(True, 1.0, "equality")


# Characters at which the rules meet.
TRICKY = st.text(alphabet=list("01.,-*`#\n \u00b2\u202fax'yesno"), max_size=30)


@given(TRICKY, TRICKY)
def test_the_verdict_does_not_depend_on_the_order(one: str, other: str) -> None:
    assert verdict_on(one, other) == verdict_on(other, one)


@given(TRICKY, TRICKY)
def test_answers_have_one_form_exactly_if_they_are_equal(one: str, other: str) -> None:
    assert (normalised(one) == normalised(other)) == (verdict_on(one, other) is True)


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_two_integers_are_equal_or_different_however_they_are_grouped(
    x: int, y: int
) -> None:
    assert verdict_on(f"It is {x:,}.", f"it is {y}") is (x == y)


def test_a_chain_stops_at_the_first_judge_that_can_tell() -> None:
    unsure, sure, costly = (
        FixedJudge("unsure", None),
        FixedJudge("sure", False),
        FixedJudge("costly", True),
    )
    verdict = ChainJudge([unsure, sure, costly]).judge("a", "x", "b", "y")
    assert verdict == Verdict(False, 0.5, "sure")
    assert (unsure.calls, sure.calls, costly.calls) == (1, 1, 0)


def test_a_chain_in_which_nobody_can_tell_is_undecided() -> None:
    chain: Judge = ChainJudge([FixedJudge("one", None), FixedJudge("two", None)])
    assert chain.judge("a", "x", "b", "y") == Verdict(None, 0.0, "chain")


def test_a_broken_judge_is_not_hidden_by_the_next() -> None:
    following = FixedJudge("following", True)
    chain = ChainJudge([BrokenJudge("broken", None), following])
    with pytest.raises(OSError, match="no model"):
        chain.judge("a", "x", "b", "y")
    assert following.calls == 0


@pytest.mark.parametrize("names", [[], ["same", "same"]])
def test_a_chain_needs_judges_that_can_be_told_apart(names: list[str]) -> None:
    with pytest.raises(ValueError, match="at least one judge"):
        ChainJudge([FixedJudge(name, True) for name in names])
