# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Triton kernels that make codes of levels, against scorer_levels.py."""

import dataclasses

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tests.hashattn.paged_cases import random_level_maps, whole_levels, whole_query
from tests.hashattn.test_triton_cases import RowCase, row_case
from tests.hashattn.test_triton_process import interpreted
from vllm_hashattn.scorer_levels import LevelHash, LevelScorer, unpack_levels
from vllm_hashattn.triton_cache import RowCache
from vllm_hashattn.triton_decode import store_codes
from vllm_hashattn.triton_levels import ask
from vllm_hashattn.weighted_choice import steps_of


def cache_of(case: RowCase, maps: LevelHash) -> RowCache:
    return RowCache(case.data, maps.head_dim, maps.bits // 8)


def exact_key_maps(kv_heads: int, dim: int, bits: int) -> LevelHash:
    """Maps and biases in eighths, so that sums for whole keys have no rounding."""
    maps = random_level_maps(kv_heads, kv_heads, dim, bits)
    bias = torch.randint(20, 100, maps.key_bias.shape) / 8
    return dataclasses.replace(
        maps, key_map=(16 * maps.key_map).round() / 8, key_bias=bias
    )


def in_order_of_places(channels: Tensor) -> Tensor:
    """Low and high half of each byte in turn."""
    return torch.stack(channels.chunk(2, dim=-1), dim=-1).flatten(-2)


@interpreted
@pytest.mark.parametrize(
    ("dtype", "dim", "bits", "block_tokens", "token_major"),
    [
        (torch.float32, 64, 128, 16, False),
        (torch.bfloat16, 96, 384, 48, True),
        (torch.float16, 128, 512, 16, True),
    ],
)
def test_codes_of_keys_are_those_of_the_reference(
    dtype: torch.dtype, dim: int, bits: int, block_tokens: int, token_major: bool
) -> None:
    maps = exact_key_maps(2, dim, bits)
    case = row_case(
        *([70, 9], 2, dim, dtype, bits // 8, block_tokens), token_major=token_major
    )
    for i in range(2):
        keys = torch.randint(-1, 2, (len(case.keys[i]), 2, dim)).to(dtype)
        keys[0] = 0.0  # then a projection is the bias, which is often whole
        mixed = torch.randperm(len(keys))
        store_codes(cache_of(case, maps), keys[mixed], case.slots(i)[mixed], maps)
        assert torch.equal(case.codes(i), LevelScorer(maps).describe(keys))
    found = unpack_levels(case.codes(0))
    assert found.min() == 0
    assert found.max() == 15


@interpreted
def test_levels_differ_only_where_a_projection_is_as_good_as_whole() -> None:
    maps = random_level_maps(3, 3, 128, 128)
    case = row_case([200], 3, 128, torch.bfloat16)
    store_codes(cache_of(case, maps), case.keys[0], case.slots(0), maps)
    exact = torch.einsum("thd,hdc->thc", case.keys[0].double(), maps.key_map.double())
    exact += maps.key_bias
    wanted = exact.floor().clamp(0, 15).to(torch.uint8)
    close = (exact - exact.round()).abs() < 1e-4
    assert not ((wanted != unpack_levels(case.codes(0))) & ~close).any()
    assert close.float().mean() < 0.001


@interpreted
def test_padding_and_all_else_in_the_cache_stays_as_it_is() -> None:
    maps = exact_key_maps(2, 64, 128)
    case = row_case([3], 2, 64, torch.float16)
    before = case.data.view(torch.int16).clone()
    keys = torch.randint(-1, 2, (6, 2, 64)).half()
    slots = torch.tensor([-1, case.slots(0)[2], -1, -1])  # the last two keys have none
    store_codes(cache_of(case, maps), keys, slots, maps)
    block, offset = case.place(0)
    wanted = LevelScorer(maps).describe(keys[1:2])
    before[block[2], :, offset[2], 128:] = wanted[0].view(torch.int16)
    assert torch.equal(case.data.view(torch.int16), before)
    store_codes(cache_of(case, maps), keys, slots[:0], maps)
    assert torch.equal(case.data.view(torch.int16), before)


@interpreted
@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(torch.float32, 384), (torch.bfloat16, 128), (torch.float16, 512)],
)
def test_channels_of_queries_are_those_of_the_reference(
    dtype: torch.dtype, bits: int
) -> None:
    maps = whole_levels(6, 2, 96, bits)
    query = whole_query(40, 9, 96).to(dtype)[:, :6]
    query[3, 1] = 0.0
    query[5] *= 1024.0  # so that steps need more than 23 bits to be rounded
    channels = torch.full((40, 6, bits // 4), 99, dtype=torch.int8)
    steps = torch.full((40, 6), torch.nan)
    ask(query, maps.query_map, channels, steps)
    asked, units = LevelScorer(maps).asked(query)
    assert torch.equal(channels.float(), in_order_of_places(asked))
    assert torch.equal(steps, steps_of(units))
    assert channels.abs().amax() == 127
