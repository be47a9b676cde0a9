# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Paged caches with random contents, and the same contents without pages."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_hashattn.hash_file import LayerHash
from vllm_hashattn.kernels import store
from vllm_hashattn.paged_cache import PagedCache
from vllm_hashattn.scorer_levels import LevelHash, random_levels
from vllm_hashattn.scorer_linear import LinearHash, random_hash

SPARE_BLOCKS = 3


@dataclass(frozen=True)
class Paged:
    """Sequences in a paged cache.

    Attributes:
        cache: With the contents.
        blocks: int32 [sequences, blocks].
        tokens: int32 [sequences].
        keys: Of each sequence, [tokens, kv heads, head_dim].
        values: Likewise.
    """

    cache: PagedCache
    blocks: Tensor
    tokens: Tensor
    keys: list[Tensor]
    values: list[Tensor]


def random_maps(
    heads: int, kv_heads: int, dim: int, bits: int, seed: int = 0
) -> LinearHash:
    random = torch.Generator().manual_seed(seed)
    return random_hash(heads, kv_heads, dim, bits, random)


def random_level_maps(
    heads: int, kv_heads: int, dim: int, bits: int, seed: int = 0
) -> LevelHash:
    random = torch.Generator().manual_seed(seed)
    return random_levels(heads, kv_heads, dim, bits, random)


def whole_levels(
    heads: int, kv_heads: int, dim: int, bits: int, seed: int = 0
) -> LevelHash:
    """Maps of few digits, whose products with such queries are exact in any order."""
    maps = random_level_maps(heads, kv_heads, dim, bits, seed)
    random = torch.Generator().manual_seed(seed)
    return LevelHash(
        maps.key_map,
        maps.key_bias,
        (maps.query_map * 1024).round() / 1024,
        torch.rand(heads, generator=random) * 0.9 + 0.1,
    )


def whole_query(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=random) * 8).round() / 8


def paged(
    lengths: list[int],
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    maps: LayerHash | None,
    block_tokens: int = 32,
    code_bytes: int = 16,
    level: int = -1,
    seed: int = 0,
) -> Paged:
    """Fill a cache whose blocks lie in random order, token by token out of order."""
    random = torch.Generator().manual_seed(seed)
    per_sequence = [-(-length // block_tokens) for length in lengths]
    number = sum(per_sequence) + SPARE_BLOCKS
    row = 2 * dim * dtype.itemsize
    cell = block_tokens * (row + code_bytes)
    # What is not written must not matter: it is not even a number.
    data = torch.full((number, kv_heads, cell), 0xFF, dtype=torch.uint8)
    cache = PagedCache(data, block_tokens, dim, code_bytes, dtype)
    order = torch.randperm(number, generator=random).to(torch.int32)
    blocks = torch.full((len(lengths), max(per_sequence, default=0) + 1), number + 7)
    blocks = blocks.to(torch.int32)
    used = 0
    keys, values = [], []
    for i, (length, count) in enumerate(zip(lengths, per_sequence, strict=True)):
        blocks[i, :count] = order[used : used + count]
        used += count
        shape = (length, kv_heads, dim)
        keys.append(torch.randn(shape, generator=random).to(dtype))
        values.append(torch.randn(shape, generator=random).to(dtype))
        token = torch.arange(length)
        table = blocks[i].to(torch.int64)
        slots = table[token // block_tokens] * block_tokens + token % block_tokens
        mixed = torch.randperm(length, generator=random)
        store(cache, keys[i][mixed], values[i][mixed], slots[mixed], maps, level=level)
    return Paged(cache, blocks, torch.tensor(lengths, dtype=torch.int32), keys, values)
