# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import resources, util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vectorq.guard_cases import CHANGED, REPHRASED
from vllm_vectorq.guard_reading import MAX_CHARS
from vllm_vectorq.guards import agreement, conflict, signature

# At least this share must pass (answers are the same) or be vetoed (they are not).
MEASURED_SHARES = {
    "paraphrase": 0.82,
    "near_repeat": 0.90,
    "negation": 0.90,
    "number_date": 0.95,
    "entity_swap": 0.92,
    "scope": 0.70,
}


def verdict(one: str, other: str) -> str | None:
    a, b = signature(one), signature(other)
    found = conflict(a, b)
    assert found == conflict(b, a)
    return found


@pytest.mark.parametrize(("one", "other"), REPHRASED)
def test_rephrasing_passes(one: str, other: str) -> None:
    assert verdict(one, other) is None


@pytest.mark.parametrize(("guard", "one", "other"), CHANGED)
def test_change_of_meaning_is_vetoed(guard: str, one: str, other: str) -> None:
    assert verdict(one, other) == guard


@pytest.mark.parametrize("text", ["", " ", "?", "the", "\u200b", "\ud800", "\x00\x01"])
def test_text_without_words_matches_itself(text: str) -> None:
    assert verdict(text, text) is None
    assert agreement(signature(text), signature(text)) == 1.0


def test_agreement_counts_shared_subjects() -> None:
    one = signature("How do I renew my passport?")
    assert agreement(one, signature("Where can I renew a passport?")) == 1.0
    assert agreement(one, signature("How do I paint a fence?")) == 0.0
    partly = agreement(one, signature("How do I renew my visa?"))
    assert 0.0 < partly < 1.0


def test_case_says_nothing_in_title_case_or_capitals() -> None:
    titled = signature("How Do You Bake Sourdough Bread At Home?")
    assert titled.entities == frozenset()
    assert signature("HOW DO I BAKE BREAD").entities == frozenset()


PIECES = (
    "not 3 kg to from Paris don't 不要 7pm ``` a.b/c 1,2 - -- 'n't v2 second half no "
    "than \u3007 12:99 +5 x=1 @ U.S. 2025-13-40 2025-02-31 un- Ⅷ € ½ 2FA an hour"
)
TEXTS = st.text(st.characters(), max_size=80) | st.lists(
    st.sampled_from(PIECES.split())
).map(" ".join)


@given(TEXTS, TEXTS)
def test_comparison_is_symmetric_and_bounded(one: str, other: str) -> None:
    a, b = signature(one), signature(other)
    assert conflict(a, b) == conflict(b, a)
    assert agreement(a, b) == agreement(b, a)
    assert 0.0 <= agreement(a, b) <= 1.0


@given(TEXTS)
def test_text_never_conflicts_with_itself(text: str) -> None:
    assert conflict(signature(text), signature(text)) is None


@pytest.mark.parametrize(
    "unit", ["a", "a@", "1-", "(", "f(", '"', "a.", "-1", "'t", "`", "1,", "\u4e0d"]
)
@pytest.mark.timeout(60)
def test_longest_text_of_one_kind_is_read(unit: str) -> None:
    text = (unit * MAX_CHARS)[:MAX_CHARS]
    assert verdict(text, text) is None


def test_oversize_text_matches_only_itself() -> None:
    long = "word " * 200_000
    assert verdict(long, long) is None
    assert verdict(long, long + "x") == "length"
    assert verdict(long, "word") == "length"


PRINT_VERDICTS = """
import json, sys
from vllm_vectorq.guards import agreement, conflict, signature
for one, other in json.load(sys.stdin):
    a, b = signature(one), signature(other)
    print(conflict(a, b), agreement(a, b))
"""


def test_verdicts_do_not_depend_on_the_hash_seed() -> None:
    pairs = [*REPHRASED, *((one, other) for _, one, other in CHANGED)]
    runs = [
        subprocess.run(
            [sys.executable, "-c", PRINT_VERDICTS],
            input=json.dumps(pairs),
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.splitlines()
        for seed in ("0", "6")
    ]
    assert len(runs[0]) == len(pairs)
    assert runs[0] == runs[1]


def labelled_pairs() -> Iterator[tuple[str, str, str, bool]]:
    lines = resources.files("fow_cache").joinpath("data/pairs.jsonl").read_text("utf-8")
    for line in lines.splitlines():
        pair = json.loads(line)
        yield pair["category"], pair["a"], pair["b"], pair["same_answer"]


@pytest.mark.skipif(
    util.find_spec("fow_cache") is None, reason="fow-cache is not installed"
)
def test_labelled_pairs_are_judged_as_measured() -> None:
    pairs, right = Counter[str](), Counter[str]()
    for category, one, other, same_answer in labelled_pairs():
        pairs[category] += 1
        right[category] += (verdict(one, other) is None) == same_answer
    shares = {category: right[category] / pairs[category] for category in pairs}
    low = {k: v for k, v in shares.items() if v < MEASURED_SHARES[k]}
    assert not low
