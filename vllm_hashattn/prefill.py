# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Attention of several new tokens of one sequence: always dense."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .kernels import PagedCache


def prefill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache: PagedCache,
    blocks: Tensor,
    before: int,
    scale: float,
) -> Tensor:
    """Attend causally to the new tokens and to all before them.

    Args:
        query: [new, query heads, head_dim].
        key: Of the new tokens, [new, kv heads, head_dim].
        value: Likewise.
        cache: Holds the tokens before.
        blocks: Block table of the sequence, int32 [blocks].
        before: Tokens before the new ones.
        scale: Of the dot products.

    Returns:
        [new, query heads, head_dim].
    """
    new = len(query)
    mask = None
    if before:
        used = blocks[: -(-before // cache.block_tokens)].to(torch.int64)
        # [blocks, kv heads, block_tokens, 2, head_dim]
        rows = cache.rows()[used].transpose(1, 2).flatten(0, 1)[:before]
        key = torch.cat([rows[:, :, 0], key])
        value = torch.cat([rows[:, :, 1], value])
        place = torch.arange(before + new)
        mask = place <= place[before:].unsqueeze(1)
    q, k, v = (each.transpose(0, 1).unsqueeze(0) for each in (query, key, value))
    result = scaled_dot_product_attention(
        q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )
    return result[0].transpose(0, 1)
