# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""CPU kernels of every instruction set, against the reference in torch."""

import ctypes
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.hashattn.paged_cases import (
    Paged,
    paged,
    random_maps,
    whole_levels,
    whole_query,
)
from vllm_hashattn.attention import attend_biased
from vllm_hashattn.budget import Budget
from vllm_hashattn.hash_file import LayerHash
from vllm_hashattn.kernels import TORCH, decode, prefill, store
from vllm_hashattn.native import library
from vllm_hashattn.paged_cache import PagedCache
from vllm_hashattn.scorer import of_group
from vllm_hashattn.scorer_levels import LevelHash, LevelScorer
from vllm_hashattn.scorer_linear import LinearScorer
from vllm_hashattn.selection import pivotal_tokens
from vllm_hashattn.weighted_choice import choice_bias, distances, steps_of

BEST = library().hashattn_level()
LEVELS = [TORCH, *range(BEST + 1)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPARSE = Budget(0.1, min_tokens=0, sink_tokens=4, recent_tokens=8)
DENSE = Budget(1.0)


def run(
    case: Paged, query: Tensor, maps: LayerHash, budget: Budget, level: int
) -> Tensor:
    chosen = torch.tensor([budget.tokens(n) for n in case.tokens.tolist()])
    return decode(
        case.cache,
        query,
        maps,
        case.blocks,
        case.tokens,
        chosen.to(torch.int32),
        budget,
        query.shape[2] ** -0.5,
        level=level,
    )


def expected(
    case: Paged, query: Tensor, maps: LayerHash, budget: Budget
) -> list[Tensor]:
    """In float64, over what the reference chooses by the codes in the cache."""
    codes = case.cache.codes()
    results = []
    for i, (keys, values) in enumerate(zip(case.keys, case.values, strict=True)):
        token = torch.arange(len(keys))
        block = case.blocks[i].to(torch.int64)[token // case.cache.block_tokens]
        described = codes[block, :, token % case.cache.block_tokens]
        read = budget.tokens(len(keys))
        if isinstance(maps, LevelHash):
            bias = drawn(query[i], maps, described, budget, read)
        else:
            scores = of_group(
                LinearScorer(maps).score(query[i], described), keys.shape[1]
            )
            exactly = replace(budget, density=1e-9, min_tokens=read)
            bias = torch.full(scores.shape, -torch.inf)
            bias.scatter_(1, pivotal_tokens(scores, exactly), 0.0)
        exact = [each.double() for each in (query[i], keys, values)]
        results.append(attend_biased(*exact, query.shape[2] ** -0.5, bias))
    return results


def drawn(
    query: Tensor, maps: LevelHash, described: Tensor, budget: Budget, read: int
) -> Tensor:
    """The bias of what is drawn, [kv heads, tokens]."""
    tokens, kv_heads = described.shape[:2]
    if read >= tokens:
        return torch.zeros(kv_heads, tokens)
    scorer = LevelScorer(maps)
    asked, units = scorer.asked(query)
    candidates = budget.sink_tokens, tokens - budget.recent_tokens
    found = distances(
        *(scorer.dots(asked, described), steps_of(units), maps.share, kv_heads),
        candidates,
    )
    wanted = torch.tensor([read - budget.sink_tokens - budget.recent_tokens])
    return choice_bias(
        *(found.unsqueeze(0), torch.tensor([tokens]), wanted),
        *(budget.sink_tokens, budget.recent_tokens),
    )[0]


def compare(found: Tensor, wanted: list[Tensor]) -> None:
    tolerance = max(4.0 * torch.finfo(found.dtype).eps, 2e-5)
    for one, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 96, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (9, 3), (14, 2), (8, 1)])
@pytest.mark.parametrize("budget", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_decode_is_attention_over_what_the_reference_chooses(
    level: int,
    dtype: torch.dtype,
    dim: int,
    heads: int,
    kv_heads: int,
    budget: Budget,
) -> None:
    maps = random_maps(heads, kv_heads, dim, 128)
    case = paged([1, 31, 400, 33], kv_heads, dim, dtype, maps, level=level)
    query = torch.randn(4, heads, dim).to(dtype)
    compare(run(case, query, maps, budget, level), expected(case, query, maps, budget))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 96, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (9, 3), (14, 2), (8, 1)])
def test_levels_draw_what_the_reference_draws(
    level: int, dtype: torch.dtype, dim: int, heads: int, kv_heads: int
) -> None:
    maps = whole_levels(heads, kv_heads, dim, 128)
    lengths = [1, 131, 2000, 33]
    case = paged(lengths, kv_heads, dim, dtype, maps, level=level)
    query = whole_query(len(lengths), heads, dim).to(dtype)
    compare(run(case, query, maps, SPARSE, level), expected(case, query, maps, SPARSE))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bits", [64, 128, 256, 512])
@pytest.mark.parametrize("block_tokens", [16, 24, 128])
def test_levels_of_any_size_and_blocks_of_any_size(
    level: int, bits: int, block_tokens: int
) -> None:
    maps = whole_levels(6, 2, 64, bits)
    case = paged(
        *([700, 64], 2, 64, torch.bfloat16, maps),
        block_tokens=block_tokens,
        code_bytes=bits // 8,
        level=level,
    )
    query = whole_query(2, 6, 64).to(torch.bfloat16)
    compare(run(case, query, maps, SPARSE, level), expected(case, query, maps, SPARSE))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 900), min_size=1, max_size=3),
    st.builds(
        Budget,
        density=st.floats(0.01, 1.0),
        min_tokens=st.integers(0, 50),
        sink_tokens=st.integers(0, 20),
        recent_tokens=st.integers(1, 20),
    ),
    st.sampled_from(LEVELS),
    st.sampled_from([0.0, 0.01, 1.0, 30.0]),
    st.integers(0, 2**31),
)
def test_levels_of_any_lengths_and_budgets(
    lengths: list[int], budget: Budget, level: int, sharpness: float, seed: int
) -> None:
    # From attention that is the same for all tokens to that of a single one.
    maps = whole_levels(4, 2, 64, 128, seed)
    maps = replace(maps, query_map=maps.query_map * sharpness)
    case = paged(lengths, 2, 64, torch.float32, maps, seed=seed, level=level)
    query = whole_query(len(lengths), 4, 64, seed=seed)
    compare(run(case, query, maps, budget, level), expected(case, query, maps, budget))


@pytest.mark.parametrize("level", LEVELS)
def test_levels_of_a_very_long_sequence(level: int) -> None:
    maps = whole_levels(2, 1, 64, 128)
    case = paged([150_000], 1, 64, torch.bfloat16, maps, block_tokens=128)
    query = whole_query(1, 2, 64).to(torch.bfloat16)
    budget = replace(SPARSE, density=0.9)  # sums of chances beyond 32 bits
    compare(run(case, query, maps, budget, level), expected(case, query, maps, budget))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_levels_are_stored(level: int, dtype: torch.dtype) -> None:
    maps = whole_levels(6, 2, 64, 128)
    case = paged([500], 2, 64, dtype, maps, level=level)
    token = torch.arange(500)
    block = case.blocks[0].to(torch.int64)[token // 32]
    codes = case.cache.codes()[block, :, token % 32]
    wanted = LevelScorer(maps).describe(case.keys[0])
    # Sums in another order may fall on the other side of a whole number.
    assert (codes != wanted).float().mean() < 0.001
    assert len(codes.unique()) > 100


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("code_bytes", [4, 8, 12, 16, 28, 64])
@pytest.mark.parametrize("block_tokens", [16, 128])
def test_codes_of_any_size_and_blocks_of_any_size(
    level: int, code_bytes: int, block_tokens: int
) -> None:
    maps = random_maps(6, 2, 64, 8 * code_bytes)
    case = paged(
        [257, 64],
        2,
        64,
        torch.bfloat16,
        maps,
        block_tokens=block_tokens,
        code_bytes=code_bytes,
        level=level,
    )
    query = torch.randn(2, 6, 64).to(torch.bfloat16)
    compare(run(case, query, maps, SPARSE, level), expected(case, query, maps, SPARSE))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=4),
    st.builds(
        Budget,
        density=st.floats(0.01, 1.0),
        min_tokens=st.integers(0, 50),
        sink_tokens=st.integers(0, 20),
        recent_tokens=st.integers(1, 20),
    ),
    st.sampled_from(LEVELS),
    st.integers(0, 2**31),
)
def test_any_lengths_and_budgets(
    lengths: list[int], budget: Budget, level: int, seed: int
) -> None:
    # Few bits, so that many distances are equal.
    maps = random_maps(4, 2, 64, 8, seed)
    case = paged(lengths, 2, 64, torch.float32, maps, code_bytes=1, seed=seed)
    random = torch.Generator().manual_seed(seed)
    query = torch.randn(len(lengths), 4, 64, generator=random)
    compare(run(case, query, maps, budget, level), expected(case, query, maps, budget))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_stored_is_read_back(level: int, dtype: torch.dtype) -> None:
    maps = random_maps(6, 2, 64, 128)
    case = paged([50], 2, 64, dtype, maps, level=level)
    table = case.blocks[0].to(torch.int64)
    token = torch.arange(50)
    rows = case.cache.rows()[table[token // 32], :, token % 32]
    assert torch.equal(rows[:, :, 0], case.keys[0])
    assert torch.equal(rows[:, :, 1], case.values[0])
    codes = case.cache.codes()[table[token // 32], :, token % 32]
    wanted = LinearScorer(maps).describe(case.keys[0])
    # Sums in another order may fall on the other side of zero.
    differing = (codes != wanted).float().mean()
    assert differing < 0.001


def test_padding_is_not_stored() -> None:
    data = torch.zeros((2, 1, 16 * (256 + 16)), dtype=torch.uint8)
    cache = PagedCache(data, 16, 64, 16, torch.bfloat16)
    ones = torch.ones(3, 1, 64, dtype=torch.bfloat16)
    slots = torch.tensor([-1, 20, -1])
    store(cache, ones, ones, slots, random_maps(1, 1, 64, 128))
    rows = cache.rows()
    assert (rows[1, 0, 4] == 1.0).all()
    assert rows.float().sum() == 128.0


def test_keys_and_values_may_be_parts_of_larger_tensors() -> None:
    cache = PagedCache(
        torch.zeros((1, 2, 16 * 512), dtype=torch.uint8), 16, 64, 0, torch.float32
    )
    joined = torch.randn(5, 6, 64)
    other = torch.randn(2, 64, 5).permute(2, 0, 1)
    for keys, values in ((joined[:, 2:4], joined[:, 4:6]), (other, joined[:, ::3])):
        store(cache, keys, values, torch.arange(5), None)
        assert torch.equal(cache.rows()[0, :, :5, 0].transpose(0, 1), keys)
        assert torch.equal(cache.rows()[0, :, :5, 1].transpose(0, 1), values)


def test_large_products_do_not_overflow() -> None:
    maps = random_maps(2, 1, 64, 128)
    case = paged([100], 1, 64, torch.float32, maps)
    query = 1e4 * torch.randn(1, 2, 64)
    found = run(case, query, maps, DENSE, -1)
    assert found.isfinite().all()
    compare(found, expected(case, query, maps, DENSE))


def test_what_has_no_kernel_is_said() -> None:
    data = torch.zeros((1, 1, 16 * 80 * 4), dtype=torch.uint8)
    cache = PagedCache(data, 16, 40, 0, torch.float32)
    ones = torch.ones(1, 1, 40)
    with pytest.raises(ValueError, match="heads of 40 and codes"):
        store(cache, ones, ones, torch.zeros(1, dtype=torch.int64), None)
    with pytest.raises(ValueError, match="need cells of"):
        PagedCache(data, 16, 64, 16, torch.float32)


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("budget", [SPARSE, DENSE])
@pytest.mark.parametrize("make_maps", [random_maps, whole_levels])
def test_threads_share_a_long_sequence(
    threads: int, budget: Budget, make_maps: Callable[..., LayerHash]
) -> None:
    maps = make_maps(3, 1, 64, 128)
    case = paged([6000], 1, 64, torch.float32, maps)
    query = whole_query(1, 3, 64)
    # Not by torch: vLLM forbids it in a process that ran an engine.
    openmp = ctypes.CDLL(None)
    before = openmp.omp_get_max_threads()
    try:
        openmp.omp_set_num_threads(1)
        alone = run(case, query, maps, budget, -1)
        openmp.omp_set_num_threads(threads)
        shared = run(case, query, maps, budget, -1)
    finally:
        openmp.omp_set_num_threads(before)
    # Sums are joined from parts, so they were really shared.
    assert not torch.equal(shared, alone)
    compare(shared, expected(case, query, maps, budget))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(9, 3, 64), (14, 2, 96), (4, 4, 128)]
)
def test_prefill_is_causal_attention(
    level: int, dtype: torch.dtype, heads: int, kv_heads: int, dim: int
) -> None:
    for before, new in ((0, 1), (0, 150), (37, 20), (300, 131)):
        case = paged([before + new], kv_heads, dim, dtype, None)
        query = torch.randn(new, heads, dim).to(dtype)
        out = torch.empty_like(query)
        prefill(case.cache, query, case.blocks[0], before, dim**-0.5, out, level)
        keys, values = case.keys[0].double(), case.values[0].double()
        bias = torch.zeros(kv_heads, before + new)
        for i in {0, new // 2, new - 1}:
            unseen = torch.arange(before + new) > before + i
            hidden = bias.masked_fill(unseen, -torch.inf)
            exact = attend_biased(query[i].double(), keys, values, dim**-0.5, hidden)
            # Weights are rounded to the dtype before the values are added up.
            compare(out[i : i + 1], [exact])
