# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a step asks of the layers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_hashattn.budget import Budget
from vllm_hashattn.step_plan import FEW_TOKENS, Prefill, plan_step

BUDGET = Budget(0.1, min_tokens=0, sink_tokens=2, recent_tokens=3)


def test_decodes_and_prefills_are_told_apart() -> None:
    plan = plan_step([0, 1, 31, 32], [100, 130, 7], BUDGET, dense_below=50)
    assert plan.places.tolist() == [0, 31]
    assert plan.rows.tolist() == [0, 2]
    assert plan.held.tolist() == [100, 7]
    assert plan.chosen.tolist() == [10, 7]  # the second one is short
    assert plan.prefills == (Prefill(row=1, first=1, new=30, before=100),)
    assert not plan.in_order


def test_a_batch_that_only_decodes_is_in_order() -> None:
    plan = plan_step([0, 1, 2], [100, 200], BUDGET, dense_below=0)
    assert plan.in_order and not plan.prefills
    assert plan.chosen.tolist() == [10, 20]


def test_few_new_tokens_decode_one_by_one_and_see_what_is_before_them() -> None:
    plan = plan_step([0, 3], [100], BUDGET, dense_below=0)
    assert plan.rows.tolist() == [0, 0, 0]
    assert plan.held.tolist() == plan.chosen.tolist() == [98, 99, 100]


def test_a_request_may_ask_for_a_density_of_its_own() -> None:
    plan = plan_step([0, 1, 2], [100, 100], BUDGET, 0, [None, 1.0])
    assert plan.chosen.tolist() == [10, 100]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 300)), max_size=6))
def test_every_token_of_the_batch_is_planned_once(batch: list[tuple[int, int]]) -> None:
    starts, lengths = [0], []
    for new, before in batch:
        starts.append(starts[-1] + new)
        lengths.append(before + new)
    plan = plan_step(starts, lengths, BUDGET, dense_below=30)
    places = plan.places.tolist()
    for each in plan.prefills:
        assert each.new > FEW_TOKENS
        places += range(each.first, each.first + each.new)
    assert sorted(places) == list(range(starts[-1]))
    assert (plan.chosen <= plan.held).all()
    assert plan.held.dtype == plan.chosen.dtype == torch.int32


def test_a_density_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="density"):
        plan_step([0, 1], [100], BUDGET, 0, [0.0])
