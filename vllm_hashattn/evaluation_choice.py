# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What each of many decode steps reads, as a bias of its dot products."""

from __future__ import annotations

import torch
from torch import Tensor

from .budget import Budget
from .evaluation_weighted import estimates, joined
from .scorer import Scorer, of_group
from .selection import causal_choice


def seen_bias(lengths: Tensor, tokens: int) -> Tensor:
    """Let each row read all that it sees.

    Args:
        lengths: Tokens that each row sees, int64 [n].
        tokens: There are, seen or not.

    Returns:
        0 or minus infinity, float32 [n, 1, tokens].
    """
    token = torch.arange(tokens, device=lengths.device)
    hidden = token >= lengths.view(-1, 1, 1)
    return torch.zeros(hidden.shape, device=lengths.device).masked_fill_(
        hidden, -torch.inf
    )


def choice_bias(
    scorer: Scorer,
    query: Tensor,
    described: tuple[Tensor, Tensor],
    own: Tensor,
    lengths: Tensor,
    budget: Budget,
    *,
    weighs: bool = True,
) -> Tensor:
    """Let each row read what it chooses, once for each KV head.

    By a hash of levels tokens are drawn and weighed, by most others the best are taken.

    Args:
        scorer: Of the layer.
        query: [n, query heads, head_dim].
        described: Keys of the context, and those of all branches; [tokens, kv heads,
            ...] each.
        own: Which of the branches' tokens are of the row's branch, int64 [n, tokens].
        lengths: Tokens that each row sees, int64 [n].
        budget: How many it reads.
        weighs: Draw tokens by their weight, where the scorer estimates it, and not
            those of the largest weights.

    Returns:
        Added to dot products, float32 [n, kv heads, context + branch tokens], or [n,
        1, ...] where all rows read everything.
    """
    tokens = len(described[0]) + own.shape[1]
    if all(budget.is_dense(length) for length in lengths.tolist()):
        return seen_bias(lengths, tokens)
    estimated = estimates(scorer, query, described, own)
    if estimated is None:
        scores = _group_scores(scorer, query, described, own)
    elif weighs:
        return estimated.drawn(lengths, budget)
    else:
        scores = -estimated.distances(lengths, budget).float()
    chosen = causal_choice(scores, lengths, budget)
    return torch.zeros_like(scores).masked_fill_(~chosen, -torch.inf)


def _group_scores(
    scorer: Scorer, query: Tensor, described: tuple[Tensor, Tensor], own: Tensor
) -> Tensor:
    kv_heads = described[0].shape[1]
    first, second = (
        of_group(scorer.score(query, each), kv_heads) for each in described
    )
    return joined(first, second, own)
