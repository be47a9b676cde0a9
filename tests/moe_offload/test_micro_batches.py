# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Requests are divided evenly, once and for ever, and none is lost."""

from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_offload.micro_batches import Request, balanced

MANY = 10**9


def requests_of(lengths: list[int]) -> list[Request]:
    return [Request(f"r{number}", tokens) for number, tokens in enumerate(lengths)]


def lengths_of(parts: list[list[Request]]) -> list[list[int]]:
    return [[each.prompt_tokens for each in part] for part in parts]


def test_the_published_algorithm_by_hand() -> None:
    """9 and 8 open two; 7 goes to the 8 and 6 to the 9; both are full before the 5."""
    parts, left_out = balanced(requests_of([5, 9, 6, 8, 7]), 2, 2, 4, MANY)
    assert lengths_of(parts) == [[8, 7], [9, 6]]
    assert [each.prompt_tokens for each in left_out] == [5]


def test_full_micro_batches_come_first_and_empty_ones_not_at_all() -> None:
    parts, left_out = balanced(requests_of([10, 3, 3]), 3, 2, 0, MANY)
    assert lengths_of(parts) == [[10], [3], [3]]
    parts, left_out = balanced(requests_of([10, 3, 3, 3]), 3, 2, 0, MANY)
    assert lengths_of(parts) == [[3, 3], [10], [3]]
    parts, left_out = balanced(requests_of([10]), 3, 2, 0, MANY)
    assert lengths_of(parts) == [[10]]
    assert not left_out


def test_room_counts_what_all_requests_will_generate() -> None:
    """Two of 10 that generate 5 each need 30: 29 are too few, for a third 45."""
    same = requests_of([10, 10, 10])
    assert lengths_of(balanced(same, 1, 9, 5, 29)[0]) == [[10]]
    assert lengths_of(balanced(same, 1, 9, 5, 30)[0]) == [[10, 10]]
    assert lengths_of(balanced(same, 1, 9, 5, 45)[0]) == [[10, 10, 10]]


def test_only_the_lightest_is_tried() -> None:
    """As published: where it has no room, the request is left out though another has.

    The lightest by prompts holds two requests, and their generated tokens fill it.
    """
    parts, left_out = balanced(requests_of([12, 5, 5, 1]), 2, 9, 10, 35)
    assert lengths_of(parts) == [[12], [5, 5]]
    assert [each.prompt_tokens for each in left_out] == [1]
    assert 12 + 1 + 2 * 10 <= 35


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), max_size=30),
    micro_batches=st.integers(1, 6),
    cap=st.integers(1, 6),
    generated=st.integers(0, 20),
    cache=st.integers(1, 300),
)
def test_nothing_is_lost_and_caps_are_kept(
    lengths: list[int], micro_batches: int, cap: int, generated: int, cache: int
) -> None:
    given = requests_of(lengths)
    parts, left_out = balanced(given, micro_batches, cap, generated, cache)
    found = [each for part in parts for each in part] + left_out
    assert Counter(found) == Counter(given)
    assert len(parts) <= micro_batches
    for part in parts:
        assert 1 <= len(part) <= cap
        assert sum(each.prompt_tokens + generated for each in part) <= cache


def as_written(
    requests: list[Request], micro_batches: int, cap: int, generated: int, cache: int
) -> tuple[list[list[Request]], list[Request]]:
    """Alg. 2 once more, with sums that are added up anew each time."""

    def prompts(part: list[Request]) -> int:
        return sum(each.prompt_tokens for each in part)

    open_parts: list[list[Request]] = [[] for _ in range(micro_batches)]
    full, left_out = [], []
    for each in sorted(requests, key=lambda each: each.prompt_tokens, reverse=True):
        part = min(open_parts, key=prompts, default=[])
        room = cache - prompts(part) - (1 + len(part)) * generated
        if not open_parts or each.prompt_tokens > room:
            left_out.append(each)
            continue
        part.append(each)
        if len(part) == cap:
            full.append(part)
            open_parts = [other for other in open_parts if other is not part]
    return full + [part for part in open_parts if part], left_out


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), max_size=20),
    micro_batches=st.integers(1, 5),
    cap=st.integers(1, 4),
    generated=st.integers(0, 3),
    cache=st.integers(10, 60),
)
def test_the_published_algorithm_written_otherwise(
    lengths: list[int], micro_batches: int, cap: int, generated: int, cache: int
) -> None:
    given = requests_of(lengths)
    sizes = (micro_batches, cap, generated, cache)
    assert balanced(given, *sizes) == as_written(given, *sizes)


def best_maximum(lengths: list[int], parts: int) -> int:
    """Lightest possible heaviest part, by trying all."""
    best = sum(lengths)
    for chosen in product(range(parts), repeat=len(lengths)):
        sums = [0] * parts
        for part, tokens in zip(chosen, lengths, strict=True):
            sums[part] += tokens
        best = min(best, max(sums))
    return best


few_lengths = st.lists(st.integers(1, 30), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(lengths=few_lengths, parts=st.integers(1, 3))
def test_without_caps_the_heaviest_is_at_most_a_third_above_the_best(
    lengths: list[int], parts: int
) -> None:
    limit = (4 / 3 - 1 / (3 * parts)) * best_maximum(lengths, parts)
    found, _ = balanced(requests_of(lengths), parts, len(lengths), 0, MANY)
    assert max(map(sum, lengths_of(found))) <= limit + 1e-9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: balanced([], 0, 1, 1, 1), "0 micro-batches of 1"),
        (lambda: balanced([], 1, 0, 1, 1), "1 micro-batches of 0"),
    ],
)
def test_what_cannot_be_is_refused(wrong: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()
