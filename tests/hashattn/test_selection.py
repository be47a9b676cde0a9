# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which tokens are read: as many as budgeted, the right ones, in order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_hashattn.budget import Budget
from vllm_hashattn.selection import causal_choice, pivotal_tokens

BUDGETS = st.builds(
    Budget,
    density=st.floats(0.001, 1.0),
    min_tokens=st.integers(0, 40),
    sink_tokens=st.integers(0, 10),
    recent_tokens=st.integers(1, 10),
)


def by_hand(scores: list[float], budget: Budget) -> list[int]:
    """The same, written as the rule reads."""
    tokens = len(scores)
    always = {
        i
        for i in range(tokens)
        if i < budget.sink_tokens or i >= tokens - budget.recent_tokens
    }
    others = [i for i in range(tokens) if i not in always]
    others.sort(key=lambda i: (-scores[i], -i))
    best = max(budget.tokens(tokens) - len(always), 0)
    return sorted(always | set(others[:best]))


@settings(max_examples=200, deadline=None)
@given(BUDGETS, st.lists(st.integers(-3, 3), min_size=1, max_size=80))
def test_choice_is_the_one_made_by_hand(budget: Budget, scores: list[int]) -> None:
    both = torch.tensor([scores, scores[::-1]], dtype=torch.float32)
    found = pivotal_tokens(both, budget)
    assert found.tolist() == [by_hand(row, budget) for row in both.tolist()]
    assert found.shape[1] == budget.tokens(len(scores))


@settings(max_examples=50, deadline=None)
@given(BUDGETS, st.integers(1, 60), st.integers(0, 1000))
def test_many_steps_choose_as_each_does_alone(
    budget: Budget, tokens: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 4, (2, 3, 4, tokens), generator=random).float()
    found = pivotal_tokens(scores, budget)
    for i in range(2):
        for j in range(3):
            assert torch.equal(found[i, j], pivotal_tokens(scores[i, j], budget))


@settings(max_examples=200, deadline=None)
@given(
    BUDGETS,
    st.lists(st.integers(1, 80), min_size=1, max_size=5),
    st.integers(0, 3),
    st.sampled_from([1, 3, 1000]),
    st.integers(0, 2**20),
)
def test_causal_choice_is_that_of_each_row_on_what_it_sees(
    budget: Budget,
    lengths: list[int],
    behind: int,
    levels: int,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    size = len(lengths), 2, max(lengths) + behind
    scores = torch.randint(-levels, levels + 1, size, generator=random).float()
    # A score may be minus infinity: then it is the last that is taken, no more.
    scores[scores == -levels] = -torch.inf
    found = causal_choice(scores, torch.tensor(lengths), budget)
    for row, length in enumerate(lengths):
        expected = torch.zeros(size[1:], dtype=torch.bool)
        chosen = pivotal_tokens(scores[row, :, :length], budget)
        assert chosen.shape[1] == budget.tokens(length)
        assert torch.equal(found[row], expected.scatter_(1, chosen, value=True))


@settings(max_examples=100, deadline=None)
@given(BUDGETS, st.integers(1, 100_000))
def test_budget_reads_at_least_its_share_and_never_more_than_there_is(
    budget: Budget, tokens: int
) -> None:
    read = budget.tokens(tokens)
    assert min(budget.density * tokens, tokens) <= read <= tokens
    assert read >= min(budget.min_tokens, tokens)
    assert budget.is_dense(tokens) == (read == tokens)
    assert budget.tokens(tokens + 1) >= read


def test_all_of_a_short_context_is_read() -> None:
    found = pivotal_tokens(torch.zeros(3, 100), Budget(0.01))
    assert found.tolist() == [list(range(100))] * 3


def test_scores_do_not_move_what_is_always_read() -> None:
    scores = torch.zeros(1, 1000)
    scores[0, :4] = -1e9
    scores[0, -4:] = -1e9
    budget = Budget(0.02, min_tokens=0, sink_tokens=4, recent_tokens=4)
    found = pivotal_tokens(scores, budget)[0].tolist()
    assert found == [0, 1, 2, 3, *range(984, 1000)]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("density", 0.0),
        ("density", 1.01),
        ("density", float("nan")),
        ("min_tokens", -1),
        ("sink_tokens", -1),
        ("recent_tokens", 0),
    ],
)
def test_budget_out_of_range_is_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option} .* was asked for"):
        Budget(**{"density": 0.5, option: value})  # type: ignore[arg-type]
