# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Triton kernels that draw tokens by given distances, against weighted_choice.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from tests.hashattn.test_triton_process import interpreted
from tests.hashattn.test_triton_weights import UNTOUCHED, levels_of
from vllm_hashattn.budget import Budget
from vllm_hashattn.triton_draw import draw
from vllm_hashattn.triton_workspace import DRAWN_BINS, Workspace
from vllm_hashattn.weighted_choice import choice_bias, hurdles, threshold

KV_HEADS = 2


def space_for(lengths: list[int], max_chosen: int, parts: int = 4) -> Workspace:
    space = Workspace.allocate(
        *(KV_HEADS, KV_HEADS, 64, 128, max(lengths), max_chosen, len(lengths)),
        *(parts, "cpu"),
        levels=True,
    )
    for each in (space.positions, *(levels_of(space).rows, levels_of(space).extras)):
        each.fill_(UNTOUCHED)
    return space


def run(
    far: list[Tensor], lengths: list[int], budget: Budget, space: Workspace
) -> list[int]:
    """Draw by distances, int32 [kv heads, tokens] of each; return how many."""
    chosen = [budget.tokens(length) for length in lengths]
    counts = levels_of(space).counts
    counts.zero_()
    for i, (each, length) in enumerate(zip(far, lengths, strict=True)):
        space.distances[i].fill_(77)  # of tokens that are always read, and none
        last = max(length - budget.recent_tokens, budget.sink_tokens)
        free = slice(budget.sink_tokens, last)
        space.distances[i, :, free] = each[:, free].to(torch.int16)
        for head in range(KV_HEADS):
            near = each[head, free]
            near = near[near < DRAWN_BINS]
            counts[i, head] = torch.bincount(near, minlength=DRAWN_BINS)
    tokens = torch.tensor(lengths, dtype=torch.int32)
    read = torch.tensor(chosen, dtype=torch.int32)
    draw(tokens, read, budget, space, levels_of(space))
    return chosen


def compare(
    far: Tensor, length: int, read: int, budget: Budget, space: Workspace, i: int
) -> None:
    """Check one sequence that is not read whole."""
    buffers = levels_of(space)
    always = budget.sink_tokens + budget.recent_tokens
    bias = choice_bias(
        *(far.unsqueeze(0), torch.tensor([length]), torch.tensor([read - always])),
        *(budget.sink_tokens, budget.recent_tokens),
    )[0]
    for head in range(KV_HEADS):
        wanted = bias[head].isfinite().nonzero().squeeze(1)
        rows = int(buffers.rows[i, head])
        assert space.positions[i, head, :rows].tolist() == wanted.tolist()
        assert (space.positions[i, head, rows:] == UNTOUCHED).all()
        extras = buffers.extras[i, head]
        torch.testing.assert_close(extras[:rows] * math.log(2), bias[head, wanted])
        assert (extras[rows:] == UNTOUCHED).all()


@interpreted
@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 600), min_size=1, max_size=2),
    st.integers(0, 200),
    st.integers(0, 300),
    st.integers(1, 300),
    st.sampled_from([1, 2, 4, 16]),
    st.sampled_from([1, 30, 700, 3000, 60000]),
    st.integers(0, 2**20),
)
def test_draws_are_those_of_the_reference(
    lengths: list[int],
    wanted: int,
    sink: int,
    recent: int,
    parts: int,
    spread: int,
    seed: int,
) -> None:
    budget = Budget(1e-9, sink + recent + wanted, sink, recent)
    random = torch.Generator().manual_seed(seed)
    nearest = int(torch.randint(0, 65536 - spread, (), generator=random))
    size = KV_HEADS, max(lengths)
    far = [
        (nearest + torch.randint(0, spread, size, generator=random)).int()
        for _ in lengths
    ]
    space = space_for(lengths, budget.tokens(max(lengths)), parts)
    chosen = run(far, lengths, budget, space)
    for i, length in enumerate(lengths):
        if chosen[i] == length:
            assert (space.positions[i] == UNTOUCHED).all()
        else:
            compare(far[i][:, :length], length, chosen[i], budget, space, i)


@interpreted
def test_thresholds_are_found_near_the_end_of_what_is_counted() -> None:
    budget = Budget(1e-9, 60, sink_tokens=4, recent_tokens=6)
    random = torch.Generator().manual_seed(0)
    found = []
    for nearest in range(DRAWN_BINS - 600, DRAWN_BINS + 100, 150):
        far = nearest + torch.randint(0, 60, (KV_HEADS, 300), generator=random)
        space = space_for([300], 60)
        run([far.int()], [300], budget, space)
        free = far[:, 4:294]
        every = torch.ones_like(free, dtype=torch.bool)
        wanted = threshold(free.int(), every, torch.full((KV_HEADS, 1), 50))
        assert torch.equal(levels_of(space).thresholds[0], wanted[:, 0])
        found += wanted[:, 0].tolist()
    least = DRAWN_BINS - 512
    assert min(found) < least < max(found)


@interpreted
def test_chances_must_exceed_hurdles() -> None:
    # All chances are the same, and one of the hurdles is as high.
    length, budget = 33000, Budget(1e-9, 7000, sink_tokens=4, recent_tokens=6)
    far = torch.full((KV_HEADS, length), 900, dtype=torch.int32)
    space = space_for([length], 7000)
    run([far], [length], budget, space)
    compare(far, length, 7000, budget, space, 0)


@interpreted
def test_draws_that_have_no_room_are_left_out_from_the_end() -> None:
    length, budget = 12000, Budget(1e-9, 11, sink_tokens=4, recent_tokens=6)
    token = torch.arange(length)
    head = torch.arange(KV_HEADS).unsqueeze(1)
    hurdle = hurdles(token, torch.tensor(length), head)
    hurdle[:, :4] = hurdle[:, length - 6 :] = 32768
    # One token is wanted. Hundred have a chance of one in hundred each, and all are
    # drawn because their hurdles are the lowest.
    lucky = hurdle.argsort(dim=1)[:, :100]
    far = torch.full((KV_HEADS, length), 65535).scatter(1, lucky, 1000).int()
    space = space_for([length], 11)
    assert run([far], [length], budget, space) == [11]
    for i in range(KV_HEADS):
        drawn = lucky[i].sort().values.tolist()
        wanted = [*range(4), *drawn[:65], *range(length - 6, length)]
        rows = int(levels_of(space).rows[0, i])
        assert space.positions[0, i, :rows].tolist() == wanted
        extras = levels_of(space).extras[0, i, :rows]
        assert (extras[:4] == 0.0).all()
        assert (extras[4:69] > 6.0).all()
        assert (extras[69:] == 0.0).all()
    assert space.positions.shape[2] == 75
