# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Storing keys and decode attention on a paged KV cache, by kernel or in torch."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from .budget import Budget
from .native import library
from .scorer_linear import LinearHash

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
HEAD_DIMS = (64, 96, 128)
MAX_GROUP = 16
MAX_BITS = 512


@dataclass(frozen=True, slots=True)
class PagedCache:
    """The KV cache of one layer as the kernels see it.

    A cell belongs to one block and one KV head: rows of a key and its value, side by
    side, for each token of the block, then a code for each token.

    Attributes:
        data: uint8 [blocks, kv heads, bytes of a cell], the last dimension contiguous.
        block_tokens: Tokens of a block.
        head_dim: Of a key and of a value.
        code_bytes: Of a key's code.
        dtype: Of keys and values.

    Raises:
        ValueError: The cells have another size.
    """

    data: Tensor
    block_tokens: int
    head_dim: int
    code_bytes: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        cell = self.block_tokens * (self.row_bytes + self.code_bytes)
        if self.data.dtype != torch.uint8 or self.data.shape[2] != cell:
            raise ValueError(
                f"hashattn: a KV cache of {self.data.dtype} with cells of "
                f"{self.data.shape[2]}; {self.block_tokens} tokens with heads of "
                f"{self.head_dim} in {self.dtype} and codes of {self.code_bytes} bytes "
                f"need cells of {cell} bytes."
            )

    @property
    def row_bytes(self) -> int:
        """Bytes of a key and its value."""
        return 2 * self.head_dim * self.dtype.itemsize

    def rows(self) -> Tensor:
        """Keys and values, [blocks, kv heads, block_tokens, 2, head_dim]; a view."""
        size = self.block_tokens * self.row_bytes
        flat = self.data[:, :, :size].view(self.dtype)
        return torch.unflatten(flat, 2, (self.block_tokens, 2, self.head_dim))

    def codes(self) -> Tensor:
        """Codes, uint8 [blocks, kv heads, block_tokens, code_bytes]; a view."""
        start = self.block_tokens * self.row_bytes
        flat = self.data[:, :, start:]
        return torch.unflatten(flat, 2, (self.block_tokens, self.code_bytes))


def store(
    cache: PagedCache,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    maps: LinearHash | None,
    level: int = -1,
) -> None:
    """Write keys, values and codes of new tokens into the cache.

    Args:
        cache: Of the layer.
        keys: In the cache's dtype, [tokens, kv heads, head_dim]; copied unless each
            token's heads lie side by side.
        values: Likewise.
        slots: ``block * block_tokens + offset`` of each token, int64 [tokens]; below 0
            for padding, which is skipped.
        maps: For the codes; None writes none.
        level: Instruction set at most; -1 the best.
    """
    kv_heads, head_dim = keys.shape[1:]
    keys, values = (
        each if each.stride()[1:] == (head_dim, 1) else each.contiguous()
        for each in (keys, values)
    )
    status = library().hashattn_store(
        *_head(cache, level),
        _pointer(keys),
        _pointer(values),
        ctypes.c_int64(keys.stride(0)),
        ctypes.c_int64(values.stride(0)),
        _pointer(slots),
        _pointer(None if maps is None else maps.key_map),
        _pointer(None if maps is None else maps.key_bias),
        len(slots),
        kv_heads,
    )
    _check(status, cache)


def decode(
    cache: PagedCache,
    query: Tensor,
    maps: LinearHash | None,
    blocks: Tensor,
    tokens: Tensor,
    chosen: Tensor,
    budget: Budget,
    scale: float,
    level: int = -1,
) -> Tensor:
    """Attention of one new token of each sequence.

    Args:
        cache: Of the layer; the new tokens are in it.
        query: In the cache's dtype, contiguous, [sequences, query heads, head_dim].
        maps: For the codes of the queries; None where all sequences are read whole.
        blocks: Block table, int32 [sequences, blocks].
        tokens: Length of each sequence, int32 [sequences].
        chosen: How many tokens of each are read, int32 [sequences].
        budget: Which tokens are always read.
        scale: Of the dot products.
        level: Instruction set at most; -1 the best.

    Returns:
        Like `query`; undefined for sequences of no tokens.
    """
    out = torch.empty_like(query)
    sequences, heads, _ = query.shape
    status = library().hashattn_decode(
        *_head(cache, level),
        budget.sink_tokens,
        budget.recent_tokens,
        _pointer(query),
        _pointer(out),
        _pointer(None if maps is None else maps.query_map),
        _pointer(None if maps is None else maps.query_bias),
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


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _check(status: int, cache: PagedCache) -> None:
    if status:
        raise ValueError(
            f"hashattn: no kernel for {cache.dtype}, heads of {cache.head_dim} and "
            f"codes of {cache.code_bytes} bytes."
        )
