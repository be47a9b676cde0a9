# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Triton kernels that make codes, against codes.py."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tests.hashattn.test_triton_cases import (
    RowCase,
    random_maps,
    row_case,
    whole_maps,
)
from tests.hashattn.test_triton_process import interpreted
from vllm_hashattn.codes import pack_signs
from vllm_hashattn.scorer_linear import LinearScorer
from vllm_hashattn.triton_cache import RowCache
from vllm_hashattn.triton_decode import store_codes
from vllm_hashattn.triton_encode import encode_queries

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def cache_of(case: RowCase, code_bytes: int) -> RowCache:
    return RowCache(case.data, case.keys[0].shape[2], code_bytes)


def whole(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(-2, 3, shape, generator=random).to(dtype)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("dim", "bits", "block_tokens", "token_major"),
    [(64, 128, 16, False), (96, 256, 48, True), (128, 384, 16, True)],
)
def test_codes_of_keys_are_those_of_the_reference(
    dtype: torch.dtype, dim: int, bits: int, block_tokens: int, token_major: bool
) -> None:
    maps = whole_maps(2, 2, dim, bits)
    case = row_case(
        *([70, 9], 2, dim, dtype, bits // 8, block_tokens), token_major=token_major
    )
    for i in range(2):
        keys = whole((len(case.keys[i]), 2, dim), dtype)
        keys[0] = 0.0  # then a projection is the bias, which is often exactly 0
        mixed = torch.randperm(len(keys))
        store_codes(cache_of(case, bits // 8), keys[mixed], case.slots(i)[mixed], maps)
        assert torch.equal(case.codes(i), LinearScorer(maps).describe(keys))


@interpreted
def test_bits_differ_only_where_a_projection_is_as_good_as_zero() -> None:
    maps = random_maps(3, 3, 128, 128)
    case = row_case([200], 3, 128, torch.bfloat16)
    store_codes(cache_of(case, 16), case.keys[0], case.slots(0), maps)
    exact = torch.einsum("thd,hdb->thb", case.keys[0].double(), maps.key_map.double())
    exact += maps.key_bias
    differing = pack_signs(exact) ^ case.codes(0)
    places = (differing.unsqueeze(-1) >> torch.arange(8)) & 1
    close = exact.abs() < 1e-4
    assert not (places.flatten(-2).bool() & ~close).any()
    assert close.float().mean() < 0.001


@interpreted
def test_padding_and_all_else_in_the_cache_stays_as_it_is() -> None:
    maps = whole_maps(2, 2, 64, 128)
    case = row_case([3], 2, 64, torch.float16)
    before = case.data.view(torch.int16).clone()
    keys = whole((6, 2, 64), torch.float16)
    slots = torch.tensor([-1, case.slots(0)[2], -1, -1])  # the last two keys have none
    store_codes(cache_of(case, 16), keys, slots, maps)
    block, offset = case.place(0)
    wanted = LinearScorer(maps).describe(keys[1:2])
    before[block[2], :, offset[2], 128:] = wanted[0].view(torch.int16)
    assert torch.equal(case.data.view(torch.int16), before)
    store_codes(cache_of(case, 16), keys, slots[:0], maps)
    assert torch.equal(case.data.view(torch.int16), before)


@interpreted
def test_keys_may_be_parts_of_larger_tensors() -> None:
    maps = whole_maps(2, 2, 64, 128)
    joined = whole((5, 6, 64), torch.float32)
    turned = whole((2, 64, 5), torch.float32).permute(2, 0, 1)
    for keys in (joined[:, 2:4], joined[:, ::3], turned):
        case = row_case([5], 2, 64)
        store_codes(cache_of(case, 16), keys, case.slots(0), maps)
        assert torch.equal(case.codes(0), LinearScorer(maps).describe(keys))


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [128, 512])
def test_codes_of_queries_are_those_of_the_reference(
    dtype: torch.dtype, bits: int
) -> None:
    maps = whole_maps(6, 2, 96, bits)
    query = whole((40, 9, 96), dtype)[:, :6]
    codes = torch.zeros((40, 6, bits // 32), dtype=torch.int32)
    encode_queries(query, maps.query_map, maps.query_bias, codes)
    projected = torch.einsum("shd,hdb->shb", query.float(), maps.query_map)
    assert torch.equal(codes.view(torch.uint8), pack_signs(projected + maps.query_bias))
