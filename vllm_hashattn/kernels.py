# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Attention on a paged KV cache with codes: by C++ kernels, or in torch without them.

Codes of queries and keys come from a hash, which the kernels apply themselves, or are
given as bytes. Where a hash of levels chooses, tokens are drawn by their estimated
weight; else those whose codes agree most are taken.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import torch_kernels
from .budget import Budget
from .hash_file import LayerHash
from .native import library_or_none
from .paged_cache import PagedCache
from .scorer_levels import LevelHash
from .scorer_linear import LinearHash

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
HEAD_DIMS = (64, 96, 128)
MAX_GROUP = 16
MAX_BITS = 512

# Kinds of codes, and instruction sets, as the kernels number them.
SIGNS, LEVELS = 0, 1
TORCH = -2
BEST = -1


def store(
    cache: PagedCache,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    codes: LayerHash | Tensor | None,
    level: int = BEST,
) -> None:
    """Write keys, values and codes of new tokens into the cache.

    Args:
        cache: Of the layer.
        keys: In the cache's dtype, [tokens, kv heads, head_dim]; copied unless each
            token's heads lie side by side.
        values: Likewise.
        slots: ``block * block_tokens + offset`` of each token, int64 [tokens]; below 0
            for padding, which is skipped.
        codes: What makes them, or uint8 [tokens, kv heads, code_bytes]; None writes
            none.
        level: Instruction set at most; TORCH for none.
    """
    kernels = library_or_none() if level != TORCH else None
    if kernels is None:
        torch_kernels.store(cache, keys, values, slots, codes)
        return
    kv_heads, head_dim = keys.shape[1:]
    keys, values = (
        each if each.stride()[1:] == (head_dim, 1) else each.contiguous()
        for each in (keys, values)
    )
    maps = None if codes is None or isinstance(codes, Tensor) else codes
    status = kernels.hashattn_store(
        *_head(cache, level),
        _kind(codes),
        _pointer(keys),
        _pointer(values),
        ctypes.c_int64(keys.stride(0)),
        ctypes.c_int64(values.stride(0)),
        _pointer(slots),
        _pointer(None if maps is None else maps.key_map),
        _pointer(None if maps is None else maps.key_bias),
        _pointer(codes.contiguous() if isinstance(codes, Tensor) else None),
        len(slots),
        kv_heads,
    )
    _check(status, cache)


def decode(
    cache: PagedCache,
    query: Tensor,
    codes: LayerHash | Tensor | None,
    blocks: Tensor,
    tokens: Tensor,
    chosen: Tensor,
    budget: Budget,
    scale: float,
    out: Tensor | None = None,
    level: int = BEST,
) -> Tensor:
    """Attention of one new token of each sequence.

    Args:
        cache: Of the layer; the new tokens are in it.
        query: In the cache's dtype, contiguous, [sequences, query heads, head_dim].
        codes: What makes those of the queries, or uint8 [sequences, kv heads, codes,
            code_bytes], whose distances are summed; None where all sequences are read
            whole.
        blocks: Block table, int32 [sequences, blocks].
        tokens: Length of each sequence, int32 [sequences].
        chosen: How many tokens of each are read, on average where they are drawn,
            int32 [sequences].
        budget: Which tokens are always read.
        scale: Of the dot products.
        out: Where to write, like `query`.
        level: Instruction set at most; TORCH for none.

    Returns:
        Like `query`; undefined for sequences of no tokens.
    """
    out = torch.empty_like(query) if out is None else out
    kernels = library_or_none() if level != TORCH else None
    if kernels is None:
        torch_kernels.decode(
            cache, query, codes, blocks, tokens, chosen, budget, scale, out
        )
        return out
    sequences, heads, _ = query.shape
    maps = None if codes is None or isinstance(codes, Tensor) else codes
    given = codes.contiguous() if isinstance(codes, Tensor) else None
    status = kernels.hashattn_decode(
        *_head(cache, level),
        budget.sink_tokens,
        budget.recent_tokens,
        _kind(codes),
        _pointer(query),
        _pointer(out),
        _pointer(None if maps is None else maps.query_map),
        _pointer(maps.query_bias if isinstance(maps, LinearHash) else None),
        _pointer(maps.share if isinstance(maps, LevelHash) else None),
        _pointer(given),
        0 if given is None else given.shape[2],
        _pointer(blocks),
        ctypes.c_int64(blocks.stride(0)),
        _pointer(tokens),
        _pointer(chosen),
        sequences,
        heads,
        cache.data.shape[1],
        ctypes.c_float(scale),
    )
    _check(status, cache)
    return out


def prefill(
    cache: PagedCache,
    query: Tensor,
    blocks: Tensor,
    before: int,
    scale: float,
    out: Tensor,
    level: int = BEST,
) -> None:
    """Causal attention of several new tokens of one sequence, always dense.

    Args:
        cache: Of the layer; the new tokens are in it.
        query: In the cache's dtype, [new, query heads, head_dim]; each token's heads
            lie side by side.
        blocks: Block table of the sequence, int32 [blocks], contiguous.
        before: Tokens before the new ones.
        scale: Of the dot products.
        out: Where to write, like `query`.
        level: Instruction set at most; TORCH for none.
    """
    kernels = library_or_none() if level != TORCH else None
    if kernels is None:
        torch_kernels.prefill(cache, query, blocks, before, scale, out)
        return
    count, heads, _ = query.shape
    status = kernels.hashattn_prefill(
        *_head(cache, level),
        _pointer(query),
        _pointer(out),
        ctypes.c_int64(query.stride(0)),
        ctypes.c_int64(out.stride(0)),
        _pointer(blocks),
        before,
        count,
        heads,
        cache.data.shape[1],
        ctypes.c_float(scale),
    )
    _check(status, cache)


def _head(cache: PagedCache, level: int) -> tuple[object, ...]:
    return (
        level,
        DTYPES[cache.dtype],
        cache.head_dim,
        _pointer(cache.data),
        ctypes.c_int64(cache.data.stride(0)),
        ctypes.c_int64(cache.data.stride(1)),
        cache.block_tokens,
        cache.row_bytes,
        cache.code_bytes,
    )


def _kind(codes: LayerHash | Tensor | None) -> int:
    return LEVELS if isinstance(codes, LevelHash) else SIGNS


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _check(status: int, cache: PagedCache) -> None:
    if status:
        raise ValueError(
            f"hashattn: no kernel for {cache.dtype}, heads of {cache.head_dim} and "
            f"codes of {cache.code_bytes} bytes."
        )
