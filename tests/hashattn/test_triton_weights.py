# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Triton kernels that estimate weights from codes, against weighted_choice.py."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tests.hashattn.test_triton_cases import RowCase, row_case
from tests.hashattn.test_triton_levels import in_order_of_places
from tests.hashattn.test_triton_process import interpreted
from vllm_hashattn.budget import Budget
from vllm_hashattn.scorer import by_group
from vllm_hashattn.scorer_levels import unpack_levels
from vllm_hashattn.triton_cache import RowCache
from vllm_hashattn.triton_offsets import find_offsets
from vllm_hashattn.triton_weights import find_distances
from vllm_hashattn.triton_workspace import DRAWN_BINS, LevelBuffers, Workspace
from vllm_hashattn.weighted_choice import distances

UNTOUCHED = -7
FEW = Budget(0.1, min_tokens=0, sink_tokens=5, recent_tokens=3)


def level_case(lengths: list[int], kv_heads: int, bits: int, seed: int = 0) -> RowCase:
    case = row_case(lengths, kv_heads, 64, torch.float16, bits // 8)
    random = torch.Generator().manual_seed(seed)
    for i, length in enumerate(lengths):
        shape = length, kv_heads, bits // 8
        codes = torch.randint(0, 256, shape, generator=random)
        case.put_codes(i, codes.to(torch.uint8))
    return case


def levels_of(workspace: Workspace) -> LevelBuffers:
    assert isinstance(workspace.buffers, LevelBuffers)
    return workspace.buffers


def level_space(
    case: RowCase, heads: int, bits: int, max_chosen: int, parts: int = 4
) -> Workspace:
    """As small as the case allows, with contents that show what was written."""
    workspace = Workspace.allocate(
        *(heads, case.data.shape[1], 64, bits, int(case.tokens.max()), max_chosen),
        *(len(case.tokens), parts, "cpu"),
        levels=True,
    )
    for each in (workspace.distances, workspace.positions):
        each.fill_(UNTOUCHED)
    return workspace


def unsigned(found: Tensor) -> Tensor:
    return found.to(torch.int32) & 0xFFFF


def weigh(
    case: RowCase,
    channels: Tensor,
    steps: Tensor,
    share: Tensor,
    chosen: list[int],
    space: Workspace,
) -> None:
    """Have kernels weigh tokens for channels, [sequences, heads, channels]."""
    buffers = levels_of(space)
    buffers.asked.copy_(in_order_of_places(channels))
    buffers.steps.copy_(steps)
    codes = RowCache(case.data, 64, channels.shape[2] // 2).codes
    step = case.blocks, case.tokens, torch.tensor(chosen, dtype=torch.int32)
    find_offsets(codes, share, *step, FEW, space, buffers)
    find_distances(codes, *step, FEW, space, buffers)


def expected(
    case: RowCase, channels: Tensor, steps: Tensor, share: Tensor, sequence: int
) -> Tensor:
    """Of the tokens that are not always read, int32 [kv heads, candidates]."""
    levels = unpack_levels(case.codes(sequence)).float()
    kv_heads, length = levels.shape[1], len(levels)
    dots = by_group(channels[sequence], levels.permute(1, 2, 0))
    last = length - FEW.recent_tokens
    return distances(dots, steps[sequence], share, kv_heads, (FEW.sink_tokens, last))[
        :, FEW.sink_tokens : last
    ]


@interpreted
@pytest.mark.parametrize(
    ("heads", "kv_heads", "bits", "lengths"),
    [
        (1, 1, 128, [300, 3, 1100]),
        (15, 3, 384, [600, 90, 40]),
        (16, 1, 512, [257, 256, 1000]),
        (2, 1, 128, [18000, 3, 21]),  # of which fewer groups are sampled, and of none
    ],
)
@pytest.mark.parametrize("step", [0.02, 5.0])
def test_distances_are_those_of_the_reference(
    heads: int, kv_heads: int, bits: int, lengths: list[int], step: float
) -> None:
    case = level_case(lengths, kv_heads, bits)
    random = torch.Generator().manual_seed(bits + heads)
    size = 3, heads, bits // 4
    channels = torch.randint(-127, 128, size, generator=random).float()
    steps = torch.rand(3, heads, generator=random) * step
    share = torch.rand(heads, generator=random) * 0.9 + 0.1
    chosen = [FEW.tokens(length) for length in lengths]
    space = level_space(case, heads, bits, max(chosen))
    weigh(case, channels, steps, share, chosen, space)
    for i, length in enumerate(lengths):
        if chosen[i] == length:  # read whole, which needs no distances
            assert (space.distances[i] == UNTOUCHED).all()
            continue
        wanted = expected(case, channels, steps, share, i)
        found = space.distances[i]
        assert torch.equal(unsigned(found[:, 5 : length - 3]), wanted)
        assert (found[:, :5] == UNTOUCHED).all()
        assert (found[:, length - 3 :] == UNTOUCHED).all()
        for head in range(kv_heads):
            near = wanted[head][wanted[head] < DRAWN_BINS]
            counted = torch.bincount(near, minlength=DRAWN_BINS)
            assert torch.equal(levels_of(space).counts[i, head].long(), counted)


@interpreted
def test_distances_end_where_16_bits_do() -> None:
    case = level_case([400], 1, 128)
    random = torch.Generator().manual_seed(0)
    channels = torch.randint(-127, 128, (1, 1, 32), generator=random).float()
    steps, share = torch.full((1, 1), 300.0), torch.ones(1)
    space = level_space(case, 1, 128, 60)
    weigh(case, channels, steps, share, [60], space)
    found = unsigned(space.distances[0, :, 5:397])
    assert torch.equal(found, expected(case, channels, steps, share, 0))
    assert found.min() == 0
    assert found.max() == 65535


@interpreted
def test_distances_are_rounded_once_and_ties_to_even() -> None:
    case = level_case([200], 1, 128)
    channels = torch.zeros(1, 1, 32)
    channels[0, 0, 3] = 1.0
    chosen, one = [60], torch.ones(1)
    space = level_space(case, 1, 128, 60)
    steps = torch.full((1, 1), 0.5)
    weigh(case, channels, steps, one, chosen, space)
    offset = levels_of(space).offsets[0, 0]
    dots = unpack_levels(case.codes(0))[5:197, 0, 3].double()
    wanted = (640 - (0.5 * dots - offset.double())).round()
    assert torch.equal(unsigned(space.distances[0, 0, 5:197]).double(), wanted)
    assert (dots % 2 == 1).any()  # which are ties
