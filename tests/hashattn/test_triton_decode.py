# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Whole decode steps by Triton kernels, against the reference in torch."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tests.hashattn.paged_cases import whole_levels, whole_query
from tests.hashattn.test_triton_cases import RowCase, random_maps, row_case
from tests.hashattn.test_triton_process import interpreted
from vllm_hashattn.attention import attend, attend_biased
from vllm_hashattn.budget import Budget
from vllm_hashattn.hash_file import LayerHash
from vllm_hashattn.scorer import of_group
from vllm_hashattn.scorer_levels import LevelHash, LevelScorer
from vllm_hashattn.scorer_linear import LinearScorer
from vllm_hashattn.selection import pivotal_tokens
from vllm_hashattn.triton_cache import RowCache
from vllm_hashattn.triton_decode import decode, store_codes
from vllm_hashattn.triton_workspace import Workspace
from vllm_hashattn.weighted_choice import choice_bias, distances, steps_of

SPARSE = Budget(0.1, min_tokens=0, sink_tokens=4, recent_tokens=8)
DENSE = Budget(1.0)


def cache_of(case: RowCase, maps: LayerHash) -> RowCache:
    return RowCache(case.data, maps.head_dim, maps.bits // 8)


def space_for(case: RowCase, maps: LayerHash, budget: Budget, **more: int) -> Workspace:
    sizes = {
        "max_tokens": int(case.tokens.max()),
        "max_chosen": budget.tokens(int(case.tokens.max())),
        "parts": 4,
        **more,
    }
    kv_heads = maps.key_map.shape[0]
    return Workspace.allocate(
        *(maps.heads, kv_heads, maps.head_dim, maps.bits),
        device="cpu",
        levels=isinstance(maps, LevelHash),
        **sizes,
    )


def stored_case(
    lengths: list[int], maps: LayerHash, dtype: torch.dtype, block_tokens: int = 16
) -> RowCase:
    kv_heads, dim, _ = maps.key_map.shape
    case = row_case(lengths, kv_heads, dim, dtype, maps.bits // 8, block_tokens)
    for i, keys in enumerate(case.keys):
        store_codes(cache_of(case, maps), keys, case.slots(i), maps)
    return case


def drawn(query: Tensor, maps: LevelHash, codes: Tensor, budget: Budget) -> Tensor:
    """What is added to products with keys, float64 [kv heads, tokens]."""
    (length, kv_heads), read = codes.shape[:2], budget.tokens(len(codes))
    scorer = LevelScorer(maps)
    if read == length:
        return torch.zeros(kv_heads, length).double()
    asked, units = scorer.asked(query)
    first, last = budget.sink_tokens, length - budget.recent_tokens
    far = distances(
        *(scorer.dots(asked, codes), steps_of(units), maps.share, kv_heads),
        (first, last),
    )
    wanted = torch.tensor([read - first - budget.recent_tokens])
    bias = choice_bias(
        *(far.unsqueeze(0), torch.tensor([length]), wanted, first),
        budget.recent_tokens,
    )
    return bias[0].double()


def expected(
    case: RowCase, query: Tensor, maps: LayerHash, budget: Budget
) -> list[Tensor]:
    """In float64, over what the reference chooses by the codes in the cache."""
    results, scale = [], query.shape[2] ** -0.5
    for i, (keys, values) in enumerate(zip(case.keys, case.values, strict=True)):
        exact = [each.double() for each in (query[i], keys, values)]
        codes = case.codes(i)
        if isinstance(maps, LevelHash):
            bias = drawn(query[i], maps, codes, budget)
            results.append(attend_biased(*exact, scale, bias))
        else:
            scores = of_group(LinearScorer(maps).score(query[i], codes), keys.shape[1])
            results.append(attend(*exact, scale, pivotal_tokens(scores, budget)))
    return results


def compare(found: Tensor, wanted: list[Tensor]) -> None:
    tolerance = max(4.0 * torch.finfo(found.dtype).eps, 2e-5)
    for one, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=tolerance, atol=tolerance)


def step(
    case: RowCase, query: Tensor, maps: LayerHash, budget: Budget, space: Workspace
) -> Tensor:
    chosen = torch.tensor([budget.tokens(n) for n in case.tokens.tolist()])
    return decode(
        cache_of(case, maps),
        query,
        maps,
        case.blocks,
        case.tokens,
        chosen.to(torch.int32),
        budget,
        query.shape[2] ** -0.5,
        space,
    )


@interpreted
@pytest.mark.parametrize(
    ("dtype", "budget", "heads", "kv_heads", "dim", "bits"),
    [
        (torch.float32, SPARSE, 3, 3, 64, 128),
        (torch.float32, DENSE, 10, 2, 96, 256),
        (torch.bfloat16, SPARSE, 10, 2, 96, 256),
        (torch.float16, SPARSE, 16, 1, 128, 128),
        (torch.float16, SPARSE, 4, 1, 64, 512),
    ],
)
def test_decode_is_attention_over_what_the_reference_chooses(
    dtype: torch.dtype, budget: Budget, heads: int, kv_heads: int, dim: int, bits: int
) -> None:
    maps = random_maps(heads, kv_heads, dim, bits)
    case = stored_case([1, 31, 400], maps, dtype)
    query = torch.randn(3, heads, dim).to(dtype)
    found = step(case, query, maps, budget, space_for(case, maps, budget))
    compare(found, expected(case, query, maps, budget))


@interpreted
@pytest.mark.parametrize(
    ("dtype", "budget", "heads", "kv_heads", "dim", "bits"),
    [
        (torch.float32, SPARSE, 3, 3, 64, 128),
        (torch.bfloat16, SPARSE, 10, 2, 96, 256),
        (torch.bfloat16, DENSE, 3, 3, 64, 128),
        (torch.float16, SPARSE, 16, 1, 128, 512),
    ],
)
def test_decode_is_attention_over_what_is_drawn(
    dtype: torch.dtype, budget: Budget, heads: int, kv_heads: int, dim: int, bits: int
) -> None:
    maps = whole_levels(heads, kv_heads, dim, bits)
    case = stored_case([1, 31, 400], maps, dtype)
    query = whole_query(3, heads, dim).to(dtype)
    found = step(case, query, maps, budget, space_for(case, maps, budget))
    compare(found, expected(case, query, maps, budget))


@interpreted
@pytest.mark.parametrize("make", [random_maps, whole_levels])
def test_more_sequences_than_there_is_room_for(
    make: Callable[..., LayerHash],
) -> None:
    maps = make(4, 2, 64, 128)
    case = stored_case([150, 20, 90, 300, 13], maps, torch.float32, block_tokens=32)
    query = whole_query(5, 4, 64)
    space = space_for(case, maps, SPARSE, max_sequences=2)
    compare(step(case, query, maps, SPARSE, space), expected(case, query, maps, SPARSE))


@interpreted
@pytest.mark.parametrize("make", [random_maps, whole_levels])
def test_a_choice_without_room_reads_all_and_leaves_nothing_out(
    make: Callable[..., LayerHash],
) -> None:
    maps = make(2, 1, 64, 128)
    case = stored_case([500, 200], maps, torch.float32)
    query = whole_query(2, 2, 64)
    space = space_for(case, maps, SPARSE)
    arguments = cache_of(case, maps), query, maps, case.blocks, case.tokens
    beyond = torch.tensor([100, 20], dtype=torch.int32)  # there is room for 50
    found = decode(*arguments, beyond, SPARSE, 0.125, space)
    compare(found[:1], expected(case, query, maps, DENSE)[:1])
    compare(found[1:], expected(case, query, maps, SPARSE)[1:])
    # A sequence longer than any that was foreseen, likewise.
    short = space_for(case, maps, SPARSE, max_tokens=400)
    within = torch.tensor([50, 20], dtype=torch.int32)
    found = decode(*arguments, within, SPARSE, 0.125, short)
    compare(found[:1], expected(case, query, maps, DENSE)[:1])
    compare(found[1:], expected(case, query, maps, SPARSE)[1:])


@interpreted
def test_without_maps_all_is_read_and_results_go_where_they_are_asked_to() -> None:
    maps = random_maps(4, 2, 64, 128)
    case = stored_case([0, 77], maps, torch.float32)
    query = torch.randn(64, 4, 2).permute(2, 1, 0)  # copied: heads are not contiguous
    space = space_for(case, maps, DENSE)
    wide = torch.full((2, 9, 64), 5.0)
    asked = wide[:, 1::2]
    none = torch.zeros(2, dtype=torch.int32)
    found = decode(
        *(cache_of(case, maps), query, None, case.blocks, case.tokens, none),
        *(DENSE, 0.125, space, asked),
    )
    assert found.data_ptr() == asked.data_ptr()
    compare(asked[1:], expected(case, query, maps, DENSE)[1:])
    assert (asked[0] == 0.0).all()
    assert (wide[:, ::2] == 5.0).all()


def test_what_does_not_belong_together_is_refused() -> None:
    maps = random_maps(4, 2, 64, 128)
    case = row_case([50], 2, 64)
    cache = cache_of(case, maps)
    space = space_for(case, maps, SPARSE)
    rest = case.blocks, case.tokens, case.tokens

    def run(query: Tensor, maps: LayerHash, budget: Budget = SPARSE) -> None:
        decode(cache, query, maps, *rest, budget, 0.125, space)

    with pytest.raises(ValueError, match=r"a query of \(6, 64\) was given"):
        run(torch.zeros(1, 6, 64), maps)
    with pytest.raises(ValueError, match=r"a key map of \(2, 64, 256\) was given"):
        run(torch.zeros(1, 4, 64), random_maps(4, 2, 64, 256))
    levels = whole_levels(4, 2, 64, 128)
    with pytest.raises(ValueError, match="a hash of levels was given with a workspace"):
        run(torch.zeros(1, 4, 64), levels)
    drawing = space_for(case, levels, SPARSE)
    with pytest.raises(ValueError, match="a hash of signs was given with a workspace"):
        decode(cache, torch.zeros(1, 4, 64), maps, *rest, SPARSE, 0.125, drawing)
    with pytest.raises(ValueError, match=r"a block table of \(1,\) was given"):
        run(torch.zeros(2, 4, 64), maps)
    with pytest.raises(ValueError, match="up to 25 tokens with a workspace for 12"):
        run(torch.zeros(1, 4, 64), maps, dataclasses.replace(SPARSE, min_tokens=25))


def test_caches_and_workspaces_without_kernels_are_refused() -> None:
    case = row_case([50], 2, 64, torch.float16)
    with pytest.raises(ValueError, match="codes of 32 bytes need 288"):
        RowCache(case.data, 64, 32)
    with pytest.raises(ValueError, match=r"must be contiguous and begin at"):
        RowCache(torch.zeros(2, 1, 16, 137, dtype=torch.float16)[..., 1:], 64, 16)
    with pytest.raises(ValueError, match="no Triton kernel for 34 query heads"):
        Workspace.allocate(34, 2, 64, 128, 100, 10, device="cpu")
    with pytest.raises(ValueError, match="heads of 80"):
        Workspace.allocate(4, 2, 80, 128, 100, 10, device="cpu")
    with pytest.raises(ValueError, match="codes of 64 bits"):
        Workspace.allocate(4, 2, 64, 64, 100, 10, device="cpu")
    with pytest.raises(ValueError, match="give a power of 2"):
        Workspace.allocate(4, 2, 64, 128, 100, 10, parts=3, device="cpu")
