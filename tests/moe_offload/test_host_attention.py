# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Attention in host memory by every instruction set, against float64 without pages."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_offload import host_attention, torch_attention
from moe_offload.host_attention import BEST, PORTABLE, TORCH, decode, prefill, store
from moe_offload.native import library_or_reason

_KERNELS = library_or_reason()
BUILT = not isinstance(_KERNELS, str)
NATIVE = [] if isinstance(_KERNELS, str) else [*range(_KERNELS.moe_offload_level() + 1)]
LEVELS = [TORCH, *NATIVE]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RAGGED = [0, 1, 31, 32, 33, 511, 512, 513, 0, 1030]


@dataclass(frozen=True)
class Case:
    """Sequences in a paged cache, and the same without pages.

    Attributes:
        cache: [blocks, kv_heads, block_tokens, 2 * head_dim].
        block_table: int32 [sequences, blocks].
        lengths: int32 [sequences].
        queries: [sequences, heads, head_dim].
        keys: Of each sequence, [tokens, kv_heads, head_dim].
        values: Likewise.
    """

    cache: Tensor
    block_table: Tensor
    lengths: Tensor
    queries: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    @property
    def scale(self) -> float:
        return float(self.queries.shape[2] ** -0.5)

    def decode(self, level: int, threads: int | None = None) -> Tensor:
        return decode(
            *(self.queries, self.cache, self.block_table, self.lengths, self.scale),
            threads=threads,
            level=level,
        )


def slots_of(block_row: Tensor, tokens: int, block_tokens: int) -> Tensor:
    token = torch.arange(tokens)
    return block_row[token // block_tokens] * block_tokens + token % block_tokens


def paged(
    lengths: list[int],
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    block_tokens: int = 32,
    level: int = BEST,
    seed: int = 0,
) -> Case:
    """Fill a cache whose blocks lie in random order, token by token out of order."""
    random = torch.Generator().manual_seed(seed)
    used = [-(-length // block_tokens) for length in lengths]
    # What is not written must not matter: it is not even a number.
    cache = torch.full(
        (sum(used) + 3, kv_heads, block_tokens, 2 * dim), torch.nan, dtype=dtype
    )
    order = torch.randperm(len(cache), generator=random).to(torch.int32)
    block_table = torch.full((len(lengths), max(used) + 2), -7, dtype=torch.int32)
    keys, values = [], []
    for row, length, count in zip(block_table, lengths, used, strict=True):
        row[:count], order = order[:count], order[count:]
        # Some keys matter far more than others.
        new = 2 * torch.randn(2, length, kv_heads, dim, generator=random).to(dtype)
        slots = slots_of(row.to(torch.int64), length, block_tokens)
        mixed = torch.randperm(length, generator=random)
        store(new[0, mixed], new[1, mixed], cache, slots[mixed], level=level)
        keys.append(new[0])
        values.append(new[1])
    queries = torch.randn(len(lengths), heads, dim, generator=random).to(dtype)
    lengths_ = torch.tensor(lengths, dtype=torch.int32)
    return Case(cache, block_table, lengths_, queries, keys, values)


def expected(case: Case) -> Tensor:
    """Softmax of the products, written out in float64."""
    out = torch.zeros(case.queries.shape, dtype=torch.float64)
    group = case.queries.shape[1] // case.cache.shape[1]
    for i, (keys, values) in enumerate(zip(case.keys, case.values, strict=True)):
        if len(keys) == 0:
            continue
        # [tokens, heads, head_dim]
        k, v = (each.double().repeat_interleave(group, 1) for each in (keys, values))
        weights = (case.scale * (case.queries[i].double() * k).sum(2)).softmax(0)
        out[i] = (weights[:, :, None] * v).sum(0)
    return out


def compare(found: Tensor, exact: Tensor) -> None:
    tolerance = max(2.0 * torch.finfo(found.dtype).eps, 1e-5)
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 96, 128])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 6, 7, 8, 16])
def test_decode_is_attention(
    level: int, dtype: torch.dtype, dim: int, group: int
) -> None:
    kv_heads = 2 if group < 8 else 1
    case = paged(RAGGED, group * kv_heads, kv_heads, dim, dtype)
    compare(case.decode(level), expected(case))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_of_any_size(level: int, dtype: torch.dtype) -> None:
    for dim in host_attention.HEAD_DIMS:
        case = paged([5, 70], 7, 1, dim, dtype, block_tokens=16)
        compare(case.decode(level), expected(case))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 700), min_size=1, max_size=4),
    block_tokens=st.integers(1, 80),
    dtype=st.sampled_from(DTYPES),
    level=st.sampled_from(LEVELS),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_any_lengths_and_blocks(
    lengths: list[int],
    block_tokens: int,
    dtype: torch.dtype,
    level: int,
    threads: int,
    seed: int,
) -> None:
    case = paged(lengths, 6, 2, 64, dtype, block_tokens, seed=seed)
    compare(case.decode(level, threads), expected(case))


@pytest.mark.parametrize("level", NATIVE)
@pytest.mark.parametrize(
    "lengths",
    [[6000], [513, 5, 0, 2100], [600] * 9, [40] * 30, [3000, *[20] * 40]],
    ids=["one", "ragged", "alike", "short", "one long"],
)
def test_any_number_of_threads_finds_the_same(level: int, lengths: list[int]) -> None:
    case = paged(lengths, 8, 2, 64, torch.bfloat16)
    alone = case.decode(level, threads=1)
    compare(alone, expected(case))
    for threads in (2, 3, 8, None):
        assert torch.equal(case.decode(level, threads), alone)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_stored_is_what_is_read(level: int, dtype: torch.dtype) -> None:
    case = paged([50, 0, 200], 2, 2, 64, dtype, level=level)
    rows = case.cache.transpose(1, 2).flatten(0, 1)
    for i in (0, 2):
        row = case.block_table[i].to(torch.int64)
        found = rows[slots_of(row, len(case.keys[i]), 32)]
        assert torch.equal(found[:, :, :64], case.keys[i])
        assert torch.equal(found[:, :, 64:], case.values[i])
    assert case.cache.isnan().sum() == case.cache.numel() - 250 * 2 * 128


@pytest.mark.parametrize("level", [TORCH, BEST])
def test_padding_is_not_stored(level: int) -> None:
    cache = torch.zeros(3, 1, 16, 64)
    ones = torch.ones(3, 1, 32)
    store(ones, 2 * ones, cache, torch.tensor([-1, 20, -1]), level=level)
    assert (cache[1, 0, 4, :32] == 1.0).all()
    assert (cache[1, 0, 4, 32:] == 2.0).all()
    assert cache.sum() == 3 * 32


@pytest.mark.parametrize("level", [TORCH, BEST])
def test_keys_and_values_may_be_parts_of_larger_tensors(level: int) -> None:
    joined = torch.randn(100, 8, 64)
    for keys, values in (
        (joined[:, 2:4], joined[:, 4:6]),
        (joined[:, ::4], joined[:, 1::4]),
        (joined[:, :2].expand(100, 2, 64), joined[:1, :2].expand(100, 2, 64)),
    ):
        cache = torch.zeros(7, 2, 16, 128)
        store(keys, values, cache, torch.arange(100), level=level)
        rows = cache.transpose(1, 2).flatten(0, 1)
        assert torch.equal(rows[:100, :, :64], keys)
        assert torch.equal(rows[:100, :, 64:], values)


@pytest.mark.parametrize("level", LEVELS)
def test_queries_may_be_parts_of_larger_tensors(level: int) -> None:
    case = paged([70, 3], 4, 2, 64, torch.bfloat16)
    wide = torch.randn(2, 12, 64).to(torch.bfloat16)
    for queries in (wide[:, 4:8], wide[:, ::3]):
        out = torch.full((2, 4, 64), torch.nan, dtype=torch.bfloat16)
        rest = case.cache, case.block_table, case.lengths, case.scale
        assert decode(queries, *rest, out=out, level=level) is out
        assert torch.equal(out, decode(queries.contiguous(), *rest, level=level))


@pytest.mark.parametrize("level", LEVELS)
def test_a_block_table_may_be_part_of_a_larger_one(level: int) -> None:
    case = paged([70, 3, 90], 4, 2, 64, torch.float32)
    wider = torch.nn.functional.pad(case.block_table, (3, 5), value=10**6)
    table = wider[:, 3 : 3 + case.block_table.shape[1]]
    found = decode(
        *(case.queries, case.cache, table, case.lengths, case.scale), level=level
    )
    assert torch.equal(found, case.decode(level))


@pytest.mark.parametrize("level", LEVELS)
def test_large_products_do_not_overflow(level: int) -> None:
    case = paged([100, 600], 4, 2, 64, torch.float32)
    case.queries.mul_(1e4)
    found = case.decode(level)
    assert found.isfinite().all()
    compare(found, expected(case))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_are_rounded_to_even(level: int, dtype: torch.dtype) -> None:
    # Of two tokens with the same key the result is the mean, which lies between two
    # numbers that follow each other: all of them, up to half the largest.
    largest = torch.tensor(torch.finfo(dtype).max / 2).to(dtype).view(torch.int16)
    lower = torch.arange(int(largest) // 32 * 32).to(torch.int16).view(-1, 32)
    values = torch.stack([lower, lower + 1], 1).view(dtype)
    cache = torch.cat([torch.zeros_like(values), values], 2)[:, None]
    table = torch.arange(len(cache), dtype=torch.int32)[:, None]
    lengths = torch.full((len(cache),), 2, dtype=torch.int32)
    queries = torch.zeros(len(cache), 1, 32, dtype=dtype)
    found = decode(queries, cache, table, lengths, 1.0, level=level)
    assert torch.equal(found[:, 0], values.float().mean(1).to(dtype))
    found = decode(queries, -cache, table, lengths, 1.0, level=level)
    assert torch.equal(found[:, 0], -values.float().mean(1).to(dtype))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_none(level: int, dtype: torch.dtype) -> None:
    case = paged([5, 5], 2, 1, 64, dtype)
    slot = slots_of(case.block_table[0].to(torch.int64), 5, 32)[3]
    case.cache[slot // 32, 0, slot % 32, 64 + 7] = torch.nan
    found = case.decode(level)
    assert found.isnan().nonzero().tolist() == [[0, 0, 7], [0, 1, 7]]


@pytest.mark.skipif(not hasattr(mmap, "PROT_READ"), reason="no such memory")
@pytest.mark.parametrize("level", NATIVE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_behind_the_cache_is_read(level: int, dtype: torch.dtype) -> None:
    # The cache ends where memory begins that must not be touched: reading on crashes.
    case = paged([4, 5], 7, 1, 80, dtype, block_tokens=5)
    size = case.cache.nbytes
    kept = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    region = mmap.mmap(-1, kept + mmap.PAGESIZE)
    memory = torch.frombuffer(region, dtype=torch.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    behind = ctypes.c_void_p(memory.data_ptr() + kept), ctypes.c_size_t(mmap.PAGESIZE)
    assert libc.mprotect(*behind, 0) == 0, ctypes.get_errno()
    cache = memory[kept - size : kept].view(dtype).view(case.cache.shape)
    # Blocks are moved on, so that the last is the one of the second sequence.
    moved = torch.arange(len(cache)).roll(-1 - int(case.block_table[1, 0]))
    cache.copy_(case.cache[moved])
    table = (case.block_table + len(cache) - 1 - case.block_table[1, 0]) % len(cache)
    rest = table.to(torch.int32), case.lengths, case.scale
    compare(decode(case.queries, cache, *rest, level=level), expected(case))
    assert libc.mprotect(*behind, mmap.PROT_READ | mmap.PROT_WRITE) == 0


def test_no_sequences() -> None:
    case = paged([4], 2, 1, 32, torch.float32)
    for level in LEVELS:
        none = torch.empty(0, 2, 32), torch.empty(0, 1, dtype=torch.int32)
        lengths = torch.empty(0, dtype=torch.int32)
        found = decode(none[0], case.cache, none[1], lengths, 1.0, level=level)
        assert found.shape == (0, 2, 32)
        store(none[0][:, :1], none[0][:, :1], case.cache, lengths.long(), level=level)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize(("tokens", "new"), [(70, 70), (70, 20), (33, 1)])
def test_prefill_is_decoding_token_by_token(
    dtype: torch.dtype, heads: int, kv_heads: int, tokens: int, new: int
) -> None:
    case = paged([tokens], heads, kv_heads, 64, dtype)
    queries = torch.randn(new, heads, 64).to(dtype)
    found = prefill(queries, case.cache, case.block_table[0], tokens, case.scale)
    lengths = torch.arange(tokens - new + 1, tokens + 1, dtype=torch.int32)
    table = case.block_table.expand(new, -1)
    alone = decode(queries, case.cache, table, lengths, case.scale)
    tolerance = max(4.0 * torch.finfo(dtype).eps, 2e-5)
    torch.testing.assert_close(found, alone, rtol=tolerance, atol=tolerance)


def test_torch_is_exact_in_float64() -> None:
    case = paged(RAGGED, 6, 2, 40, torch.float64)
    torch.testing.assert_close(case.decode(BEST), expected(case), rtol=1e-12, atol=0)
    found = torch_attention.decode(
        case.queries, case.cache, case.block_table, case.lengths, case.scale
    )
    torch.testing.assert_close(found, expected(case), rtol=1e-12, atol=0)


@pytest.mark.skipif(not BUILT, reason="no kernels")
def test_torch_does_what_has_no_kernel() -> None:
    for dtype, dim, heads, level, reason in (
        (torch.float32, 64, 2, TORCH, "torch was asked for"),
        (torch.float64, 64, 2, BEST, "torch.float64"),
        (torch.float32, 40, 2, BEST, "heads of 40"),
        (torch.float32, 272, 2, BEST, "heads of 272"),
        (torch.bfloat16, 64, 17, BEST, "17 query heads"),
        (torch.float16, 64, 2, PORTABLE, "float16 without AVX2"),
    ):
        case = paged([3, 40], heads, 1, dim, dtype)
        compare(case.decode(level), expected(case))
        assert reason in str(host_attention.why_torch(dtype, dim, heads, level))
    assert host_attention.why_torch(torch.bfloat16, 128, 16) is None
    assert host_attention.why_torch(torch.float32, 64, 1, PORTABLE) is None


def test_without_kernels_torch_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    case = paged([3, 40], 4, 2, 64, torch.bfloat16)
    exact = expected(case)
    monkeypatch.setattr(host_attention, "library_or_reason", lambda: "no compiler")
    monkeypatch.delattr(host_attention, "library")
    assert host_attention.why_torch(torch.bfloat16, 64, 2) == "no compiler"
    compare(case.decode(BEST), exact)
    again = paged([3, 40], 4, 2, 64, torch.bfloat16)
    assert torch.equal(again.cache.nan_to_num(), case.cache.nan_to_num())


@pytest.mark.parametrize("level", [TORCH, BEST])
def test_wrong_tensors_are_refused(level: int) -> None:
    case = paged([20, 30], 4, 2, 64, torch.float32)
    good = {
        "queries": case.queries,
        "cache": case.cache,
        "block_table": case.block_table,
        "lengths": case.lengths,
    }
    for name, wrong, message in (
        ("queries", case.queries.bfloat16(), r"given queries in torch.bfloat16"),
        ("queries", case.queries[:, :, :32], r"takes torch.float32, \[any, any, 64\]"),
        ("queries", case.queries[0], r"given queries in torch.float32, \[4, 64\]"),
        ("queries", case.queries[:, :3], "3 query heads and 2 KV heads"),
        ("queries", case.queries[:, :0], "0 query heads"),
        ("queries", case.queries.mT.contiguous().mT, "the last dimension contiguous"),
        ("queries", case.queries.to("meta"), "on meta"),
        ("cache", case.cache.transpose(1, 2), "given cache .* contiguous"),
        ("cache", case.cache[0], "given cache"),
        ("cache", case.cache[:, :, :, :127].contiguous(), "it is .*2 . head_dim"),
        ("cache", case.cache[:, :0].contiguous(), "it is .*2 . head_dim"),
        ("block_table", case.block_table.long(), "given block_table in torch.int64"),
        ("block_table", case.block_table[:1], r"takes torch.int32, \[2, any\]"),
        ("lengths", case.lengths.long(), "given lengths in torch.int64"),
        ("lengths", case.lengths[:1], r"takes torch.int32, \[2\]"),
        ("lengths", case.lengths - 25, "sequences of -5 to 5 tokens"),
        ("lengths", case.lengths + 70, "90 to 100 tokens; .* columns for 0 to 96"),
        ("out", torch.empty(2, 4, 32), "given out"),
        ("out", torch.empty(4, 2, 64).transpose(0, 1), "given out .* contiguous"),
        ("threads", 0, "0 threads"),
    ):
        with pytest.raises(ValueError, match=f"^moe_offload: .*{message}"):
            decode(**(good | {name: wrong}), scale=1.0, level=level)


@pytest.mark.skipif(not BUILT, reason="no kernels")
@pytest.mark.parametrize("block", [-1, 6])
def test_blocks_outside_of_the_cache_are_refused(block: int) -> None:
    case = paged([20, 40], 4, 2, 64, torch.float32)
    assert len(case.cache) == 6
    case.block_table[1, 1] = block
    with pytest.raises(ValueError, match=r"block of sequence 1 .* 0 to 5"):
        case.decode(BEST)


@pytest.mark.parametrize("level", [TORCH, BEST])
def test_what_cannot_be_stored_is_refused(level: int) -> None:
    cache = torch.zeros(2, 2, 16, 64)
    new = torch.zeros(3, 2, 32)
    slots = torch.arange(3)
    for keys, values, where, message in (
        (new.half(), new, slots, "given keys in torch.float16"),
        (new, new[:2], slots, r"given values .* takes torch.float32, \[3, 2, 32\]"),
        (new, new, slots.int(), "given slots in torch.int32"),
        (new, new, slots + 30, "slot 32 .* 2 blocks of 16"),
    ):
        with pytest.raises(ValueError, match=f"^moe_offload: .*{message}"):
            store(keys, values, cache, where, level=level)
    assert not cache.any()


def test_what_cannot_be_prefilled_is_refused() -> None:
    case = paged([40], 2, 1, 32, torch.float32)
    queries = torch.zeros(10, 2, 32)
    row = case.block_table[0]
    for asking, block_row, tokens, message in (
        (queries, row, 9, "10 new tokens of 9"),
        (queries, row, 129, "of 129 in blocks for 128"),
        (queries[:0], row, 9, "0 new tokens"),
        (queries, row.long(), 40, "given block_row"),
        (queries.double(), row, 40, "given queries"),
    ):
        with pytest.raises(ValueError, match=f"^moe_offload: .*{message}"):
            prefill(asking, case.cache, block_row, tokens, 1.0)
