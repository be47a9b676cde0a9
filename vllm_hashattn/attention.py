# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Attention of one decode step in plain torch: correct everywhere, fast nowhere."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, chosen: Tensor
) -> Tensor:
    """Attention of one token over chosen tokens.

    Args:
        query: Floating dtype, [query heads, head_dim].
        keys: [tokens, kv heads, head_dim].
        values: [tokens, kv heads, head_dim].
        scale: Of the dot products.
        chosen: Positions for each KV head, int64 [kv heads, chosen].

    Returns:
        In the query's dtype, [query heads, head_dim].

    Raises:
        ValueError: The query heads are no multiple of the KV heads.
    """
    bias = torch.full((keys.shape[1], len(keys)), -torch.inf, device=keys.device)
    bias.scatter_(1, chosen, 0.0)
    return attend_biased(query, keys, values, scale, bias)


def attend_biased(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, bias: Tensor
) -> Tensor:
    """Attention of one token over some of the tokens, which may stand for others.

    Args:
        query: Floating dtype, [query heads, head_dim].
        keys: [tokens, kv heads, head_dim].
        values: [tokens, kv heads, head_dim].
        scale: Of the dot products.
        bias: Added to them, [kv heads, tokens]: 0 for a token that is read, the
            logarithm of their number for one that stands for several, minus infinity
            for one that is not read. All query heads of a KV head read the same ones.

    Returns:
        In the query's dtype, [query heads, head_dim].

    Raises:
        ValueError: The query heads are no multiple of the KV heads.
    """
    kv_heads, head_dim = keys.shape[1:]
    if query.shape[0] % kv_heads:
        raise ValueError(
            f"hashattn: {query.shape[0]} query heads cannot share {kv_heads} KV heads; "
            "the first must be a multiple of the second."
        )
    wide = torch.promote_types(query.dtype, torch.float32)
    grouped = torch.unflatten(query.to(wide), 0, (kv_heads, -1))
    dots = scale * grouped @ keys.to(wide).permute(1, 2, 0)
    weights = torch.softmax(dots + bias.to(wide).unsqueeze(1), dim=-1)
    result = (weights @ values.to(wide).transpose(0, 1)).reshape(-1, head_dim)
    return result.to(query.dtype)


def attention_weights(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Return the softmax over the whole context, [query heads, tokens].

    Args:
        query: [query heads, head_dim].
        keys: [tokens, kv heads, head_dim].
        scale: Of the dot products.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    grouped = torch.unflatten(query.to(wide), 0, (keys.shape[1], -1))
    dots = grouped @ keys.to(wide).permute(1, 2, 0)
    return torch.softmax(scale * dots, dim=-1).flatten(0, 1)
