# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Attention of one layer where its KV cache lies: in host memory.

Keys and values take longer to reach a GPU than to be used here, so only queries and
results cross the link. C++ kernels decode, or torch where there are none.

The cache of a layer is [blocks, kv_heads, block_tokens, 2 * head_dim], contiguous. A
row is a token's key and then its value.

Source: MoE-Lightning (2411.11217), alg. 1, CPUAttn.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import torch_attention
from .native import Decode, library, library_or_reason

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
HEAD_DIMS = range(32, 257, 16)
MAX_GROUP = 16

# Instruction sets as the kernels number them, the best of this CPU, and none.
PORTABLE, AVX2, AVX512, AVX512_BF16 = range(4)
BEST, TORCH = -1, -2


def why_torch(
    dtype: torch.dtype, head_dim: int, group: int, level: int = BEST
) -> str | None:
    """Say why decoding is left to torch, which is slow; None where kernels do it.

    Args:
        dtype: Of the cache.
        head_dim: Of a key and of a value.
        group: Query heads of a KV head.
        level: Instruction set at most.
    """
    kernels = library_or_reason()
    if level == TORCH:
        return "torch was asked for"
    if isinstance(kernels, str):
        return kernels
    if dtype not in DTYPES:
        return f"there is no kernel for {dtype}"
    if head_dim not in HEAD_DIMS:
        return f"there is no kernel for heads of {head_dim}"
    if group > MAX_GROUP:
        return f"there is no kernel for {group} query heads to a KV head"
    if dtype == torch.float16 and PORTABLE in (level, kernels.moe_offload_level()):
        return "there is no kernel for torch.float16 without AVX2"
    return None


def store(
    keys: Tensor, values: Tensor, cache: Tensor, slots: Tensor, level: int = BEST
) -> None:
    """Write keys and values of new tokens into the cache.

    Args:
        keys: In the cache's dtype, [tokens, kv_heads, head_dim]; copied unless each
            token's heads lie side by side.
        values: Likewise.
        cache: Of the layer.
        slots: ``block * block_tokens + offset`` of each token, int64 [tokens]; below 0
            for padding, which is skipped.
        level: TORCH for no kernel.

    Raises:
        ValueError: Tensors do not fit each other, or a slot is not in the cache.
    """
    blocks, kv_heads, block_tokens, head_dim = _cache_shape(cache)
    _check("slots", slots, torch.int64, (None,))
    for name, each in (("keys", keys), ("values", values)):
        _check(name, each, cache.dtype, (len(slots), kv_heads, head_dim))
    if len(slots) and slots.max() >= blocks * block_tokens:
        raise ValueError(
            f"moe_offload: slot {int(slots.max())} was to be written; the cache has "
            f"{blocks} blocks of {block_tokens} tokens, so give less than the product."
        )
    kernels = library_or_reason()
    if level == TORCH or isinstance(kernels, str):
        torch_attention.store(keys, values, cache, slots)
        return
    size = head_dim * cache.element_size()
    for place, each in enumerate((keys, values)):
        rows = _side_by_side(each)
        kernels.moe_offload_store(
            *(rows.data_ptr(), rows.stride(0) * rows.element_size(), size),
            *(cache.data_ptr() + place * size, kv_heads, block_tokens),
            *(slots.data_ptr(), len(slots)),
        )


def decode(
    queries: Tensor,
    cache: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    scale: float,
    out: Tensor | None = None,
    threads: int | None = None,
    level: int = BEST,
) -> Tensor:
    """Attention of one new token of each sequence.

    Results of the kernels are the same for any number of threads.

    Args:
        queries: In the cache's dtype, [sequences, heads, head_dim]; copied unless each
            sequence's heads lie side by side.
        cache: Of the layer; the new tokens are in it.
        block_table: int32 [sequences, max_blocks], the last dimension contiguous.
        lengths: Tokens of each sequence with the new one, int32 [sequences]; where 0,
            results are zeros.
        scale: Of the dot products.
        out: Where to write, like `queries` and contiguous.
        threads: How many compute; None for what OpenMP has in this thread.
        level: Instruction set at most; TORCH for no kernel.

    Returns:
        Like `queries`, contiguous.

    Raises:
        ValueError: Tensors do not fit each other, or a block is not in the cache.
    """
    blocks, kv_heads, block_tokens, head_dim = _cache_shape(cache)
    heads = _check_queries(queries, cache)
    if out is None:
        out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    _check("out", out, cache.dtype, tuple(queries.shape), contiguous=True)
    _check("block_table", block_table, torch.int32, (len(queries), None))
    _check("lengths", lengths, torch.int32, (len(queries),))
    _check_lengths(lengths, block_table.shape[1] * block_tokens)
    if threads is not None and threads < 1:
        raise ValueError(
            f"moe_offload: {threads} threads asked for; ask for 1 or more."
        )
    if why_torch(cache.dtype, head_dim, heads // kv_heads, level):
        return torch_attention.decode(queries, cache, block_table, lengths, scale, out)
    rows = _side_by_side(queries)
    step = Decode(
        *(rows.data_ptr(), cache.data_ptr(), out.data_ptr()),
        *(block_table.data_ptr(), lengths.data_ptr()),
        *(rows.stride(0), block_table.stride(0), blocks),
        *(DTYPES[cache.dtype], len(rows), heads, kv_heads, head_dim, block_tokens),
        scale,
    )
    wrong = library().moe_offload_decode(ctypes.byref(step), level, threads or 0)
    if wrong >= 0:
        raise ValueError(
            f"moe_offload: attention was given a block of sequence {wrong} that is not "
            f"in the cache; give numbers from 0 to {blocks - 1}."
        )
    return out


def prefill(
    queries: Tensor, cache: Tensor, block_row: Tensor, context_tokens: int, scale: float
) -> Tensor:
    """Causal attention of several new tokens of one sequence.

    Args:
        queries: Of the last tokens, in the cache's dtype, [tokens, heads, head_dim].
        cache: Of the layer; the new tokens are in it.
        block_row: Block table of the sequence, int32 [max_blocks].
        context_tokens: Length of the sequence with the new tokens.
        scale: Of the dot products.

    Returns:
        Like `queries`.

    Raises:
        ValueError: Tensors do not fit each other or the length.
    """
    block_tokens = _cache_shape(cache)[2]
    _check_queries(queries, cache)
    _check("block_row", block_row, torch.int32, (None,))
    room = len(block_row) * block_tokens
    if not 0 < len(queries) <= context_tokens <= room:
        raise ValueError(
            f"moe_offload: attention was given {len(queries)} new tokens of "
            f"{context_tokens} in blocks for {room}; give 1 or more and blocks for all."
        )
    return torch_attention.prefill(queries, cache, block_row, context_tokens, scale)


def _cache_shape(cache: Tensor) -> tuple[int, int, int, int]:
    """Return blocks, kv_heads, block_tokens and head_dim, checked."""
    _check("cache", cache, cache.dtype, (None, None, None, None), contiguous=True)
    blocks, kv_heads, block_tokens, row = cache.shape
    if 0 in (kv_heads, block_tokens, row) or row % 2:
        raise ValueError(
            f"moe_offload: attention was given a cache of {list(cache.shape)}; it is "
            "[blocks, kv_heads, block_tokens, 2 * head_dim], a key and then its value."
        )
    return blocks, kv_heads, block_tokens, row // 2


def _check_queries(queries: Tensor, cache: Tensor) -> int:
    """Return the number of query heads, checked."""
    _check("queries", queries, cache.dtype, (None, None, cache.shape[3] // 2))
    heads, kv_heads = queries.shape[1], cache.shape[1]
    if not heads or heads % kv_heads:
        raise ValueError(
            f"moe_offload: attention was given {heads} query heads and {kv_heads} KV "
            "heads; each KV head has the same number of query heads, at least 1."
        )
    return heads


def _check_lengths(lengths: Tensor, room: int) -> None:
    if len(lengths) and (lengths.min() < 0 or lengths.max() > room):
        raise ValueError(
            f"moe_offload: attention was given sequences of {int(lengths.min())} to "
            f"{int(lengths.max())} tokens; the block table has columns for 0 to {room}."
        )


def _check(
    name: str,
    tensor: Tensor,
    dtype: torch.dtype,
    shape: tuple[int | None, ...],
    contiguous: bool = False,
) -> None:
    """Refuse a tensor that would be misread; None in a shape is any size."""
    fits = len(shape) == tensor.ndim and all(
        wanted in (None, size) for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    whole = tensor.is_contiguous() or (not contiguous and tensor.stride(-1) == 1)
    if fits and whole and tensor.dtype == dtype and tensor.device.type == "cpu":
        return
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    raise ValueError(
        f"moe_offload: attention was given {name} in {tensor.dtype}, "
        f"{list(tensor.shape)}, with strides {list(tensor.stride())}, on "
        f"{tensor.device}; it takes {dtype}, [{sizes}], in host memory, "
        f"{'' if contiguous else 'the last dimension '}contiguous."
    )


def _side_by_side(rows: Tensor) -> Tensor:
    return rows if rows.stride(1) == rows.shape[2] else rows.contiguous()
