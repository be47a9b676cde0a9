# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Attention over a paged KV cache in plain torch, on any machine and in any dtype.

It stands in for the kernels where there is no compiler, or another CPU, and does all of
prefill. With tensors in float64 it is what the kernels are compared with.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def store(keys: Tensor, values: Tensor, cache: Tensor, slots: Tensor) -> None:
    """Write keys and values; see :func:`moe_offload.host_attention.store`."""
    block_tokens = cache.shape[2]
    kept = slots >= 0
    block, offset = slots[kept] // block_tokens, slots[kept] % block_tokens
    # Indices around a slice come first: [tokens, kv_heads, 2 * head_dim].
    cache[block, :, offset] = torch.cat([keys, values], dim=2)[kept]


def decode(
    queries: Tensor,
    cache: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    scale: float,
    out: Tensor | None = None,
) -> Tensor:
    """Attend, sequence by sequence; see :func:`moe_offload.host_attention.decode`."""
    out = torch.empty_like(queries) if out is None else out
    heads = cache.shape[1], queries.shape[1] // cache.shape[1]
    for sequence, length in enumerate(lengths.tolist()):
        keys, values = gather(cache, block_table[sequence], length)
        # As if the heads of a group were tokens: a key is then read once for all.
        grouped = torch.unflatten(queries[sequence], 0, heads)
        found = scaled_dot_product_attention(
            grouped[None], keys[None], values[None], scale=scale
        )
        out[sequence] = found[0].flatten(0, 1) if length else 0
    return out


def prefill(
    queries: Tensor, cache: Tensor, block_row: Tensor, context_tokens: int, scale: float
) -> Tensor:
    """Attend causally; see :func:`moe_offload.host_attention.prefill`."""
    keys, values = gather(cache, block_row, context_tokens)
    place = torch.arange(context_tokens, device=cache.device)
    first = context_tokens - len(queries)
    found = scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=place <= place[first:, None] if first else None,
        is_causal=first == 0,
        scale=scale,
        enable_gqa=True,
    )
    return found[0].transpose(0, 1)


def gather(cache: Tensor, block_row: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Collect the beginning of a sequence; a copy.

    Args:
        cache: [blocks, kv_heads, block_tokens, 2 * head_dim].
        block_row: Block table of the sequence, [max_blocks].
        tokens: How many.

    Returns:
        Keys and values, each [kv_heads, tokens, head_dim].
    """
    used = block_row[: -(-tokens // cache.shape[2])]
    rows = cache.index_select(0, used).transpose(0, 1).flatten(1, 2)[:, :tokens]
    keys, values = rows.chunk(2, dim=2)
    return keys, values
