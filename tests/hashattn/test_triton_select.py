# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Triton kernels that compare codes and choose tokens, against selection.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from tests.hashattn.test_triton_cases import RowCase, row_case
from tests.hashattn.test_triton_process import interpreted
from vllm_hashattn.budget import Budget
from vllm_hashattn.codes import agreement
from vllm_hashattn.selection import pivotal_tokens
from vllm_hashattn.triton_cache import RowCache
from vllm_hashattn.triton_scan import scan
from vllm_hashattn.triton_select import choose
from vllm_hashattn.triton_workspace import SignBuffers, Workspace

UNTOUCHED = -7


def random_codes(shape: tuple[int, ...], seed: int, random_bytes: int = 16) -> Tensor:
    """Codes of which few bytes differ, so that many distances are equal."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.full(shape, 0x5A, dtype=torch.uint8)
    some = (*shape[:-1], random_bytes)
    codes[..., :random_bytes] = torch.randint(0, 256, some, generator=random)
    return codes


def coded_case(
    lengths: list[int], kv_heads: int, bits: int, seed: int = 0, random_bytes: int = 16
) -> RowCase:
    case = row_case(lengths, kv_heads, 64, torch.float16, bits // 8)
    for i, length in enumerate(lengths):
        shape = (length, kv_heads, bits // 8)
        case.put_codes(i, random_codes(shape, seed + i, random_bytes))
    return case


def workspace_for(
    case: RowCase, heads: int, bits: int, max_chosen: int, parts: int = 4
) -> Workspace:
    """As small as the case allows, with contents that show what was written."""
    most = int(case.tokens.max())
    workspace = Workspace.allocate(
        *(heads, case.data.shape[1], 64, bits, most, max_chosen, len(case.tokens)),
        *(parts, "cpu"),
    )
    signs = signs_of(workspace)
    for each in (workspace.distances, workspace.positions, signs.counts, signs.plans):
        each.fill_(UNTOUCHED)
    return workspace


def signs_of(workspace: Workspace) -> SignBuffers:
    assert isinstance(workspace.buffers, SignBuffers)
    return workspace.buffers


def run(
    case: RowCase, asked: Tensor, chosen: list[int], budget: Budget, space: Workspace
) -> None:
    counted = torch.tensor(chosen, dtype=torch.int32)
    codes = RowCache(case.data, 64, asked.shape[2]).codes
    words = asked.view(torch.int32)
    signs = signs_of(space)
    scan(codes, words, case.blocks, case.tokens, counted, budget, space, signs)
    choose(case.tokens, counted, budget, space, signs)


def exact_distances(case: RowCase, asked: Tensor, sequence: int) -> Tensor:
    """Summed over the heads of each group, int32 [kv heads, tokens]."""
    codes = case.codes(sequence).transpose(0, 1).unsqueeze(1)
    grouped = torch.unflatten(asked[sequence], 0, (codes.shape[0], -1)).unsqueeze(2)
    agreeing = agreement(grouped, codes)
    return ((8 * asked.shape[2] - agreeing) // 2).sum(dim=1)


@interpreted
@pytest.mark.parametrize(
    ("heads", "kv_heads", "bits"),
    [(1, 1, 128), (6, 2, 128), (15, 3, 384), (16, 1, 512)],
)
def test_distances_are_differing_bits_summed_over_the_group(
    heads: int, kv_heads: int, bits: int
) -> None:
    case = coded_case([300, 3, 1100], kv_heads, bits, random_bytes=bits // 8)
    asked = random_codes((3, heads, bits // 8), 9, bits // 8)
    asked[0] = ~case.codes(0)[5, 0]  # as far from a code as can be
    budget = Budget(0.1, min_tokens=0, sink_tokens=4, recent_tokens=2)
    space = workspace_for(case, heads, bits, 110)
    run(case, asked, [30, 2, 110], budget, space)
    counts = signs_of(space).counts
    for i in (0, 2):
        exact = exact_distances(case, asked, i)
        length = exact.shape[1]
        assert torch.equal(space.distances[i, :, :length].int(), exact)
        assert (space.distances[i, :, length:] == UNTOUCHED).all()
        free = exact[:, 4 : length - 2]
        for head in range(kv_heads):
            counted = torch.bincount(free[head], minlength=counts.shape[3])
            assert torch.equal(counts[i, head].sum(dim=0), counted)
    assert exact_distances(case, asked, 0).max() == heads // kv_heads * bits
    # A sequence that is read whole needs no distances.
    assert (space.distances[1] == UNTOUCHED).all()


@interpreted
@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=3),
    st.integers(0, 400),
    st.integers(0, 300),
    st.integers(1, 300),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4, 16]),
    st.integers(0, 2**20),
)
def test_choice_is_that_of_the_reference(
    lengths: list[int],
    wanted: int,
    sink: int,
    recent: int,
    random_bytes: int,
    parts: int,
    seed: int,
) -> None:
    budget = Budget(1e-9, wanted, sink, recent)
    case = coded_case(lengths, 2, 128, seed, random_bytes)
    asked = random_codes((len(lengths), 4, 16), seed + 99, random_bytes)
    chosen = [budget.tokens(length) for length in lengths]
    space = workspace_for(case, 4, 128, max(chosen), parts)
    run(case, asked, chosen, budget, space)
    for i, length in enumerate(lengths):
        found = space.positions[i]
        if chosen[i] == length:
            assert (found == UNTOUCHED).all()
            continue
        scores = -exact_distances(case, asked, i)
        assert torch.equal(found[:, : chosen[i]].long(), pivotal_tokens(scores, budget))
        assert (found[:, chosen[i] :] == UNTOUCHED).all()


@interpreted
def test_of_equal_distances_the_newest_are_chosen() -> None:
    case = coded_case([2000], 1, 128, random_bytes=0)
    asked = random_codes((1, 1, 16), 0, 0)
    budget = Budget(0.5, 0, sink_tokens=3, recent_tokens=5)
    space = workspace_for(case, 1, 128, 1000)
    run(case, asked, [700], budget, space)
    wanted = [0, 1, 2, *range(2000 - 697, 2000)]
    assert space.positions[0, 0, :700].tolist() == wanted


@interpreted
def test_tokens_that_are_always_read_are_read_whatever_is_asked_for() -> None:
    case = coded_case([600], 2, 128)
    asked = random_codes((1, 4, 16), 5)
    budget = Budget(0.1, 0, sink_tokens=260, recent_tokens=20)
    space = workspace_for(case, 4, 128, 280)
    for chosen in (0, 100, 280):
        run(case, asked, [chosen], budget, space)
        wanted = [*range(260), *range(580, 600)]
        assert space.positions[0].tolist() == [wanted, wanted]


@interpreted
def test_what_has_no_room_is_left_to_be_read_whole() -> None:
    case = coded_case([600, 500], 1, 128)
    asked = random_codes((2, 2, 16), 5)
    budget = Budget(0.1, 0, sink_tokens=4, recent_tokens=4)
    space = workspace_for(case, 2, 128, 100)
    run(case, asked, [101, 100], budget, space)
    assert (space.positions[0] == UNTOUCHED).all()
    assert (space.positions[1] != UNTOUCHED).all()
    short = Workspace.allocate(2, 1, 64, 128, 550, 100, 2, 4, "cpu")
    short.distances.fill_(UNTOUCHED)
    run(case, asked, [100, 100], budget, short)
    assert (short.distances[0] == UNTOUCHED).all()
    assert torch.equal(short.positions[1], space.positions[1])
