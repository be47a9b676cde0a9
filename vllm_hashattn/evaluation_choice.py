# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What each of many decode steps reads, as a bias of its dot products."""

from __future__ import annotations

import torch
from torch import Tensor

from .budget import Budget
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
) -> Tensor:
    """Let each row read what it chooses, once for each KV head.

    Args:
        scorer: Of the layer.
        query: [n, query heads, head_dim].
        described: Keys of the context, and those of all branches; [tokens, kv heads,
            ...] each.
        own: Which of the branches' tokens are of the row's branch, int64 [n, tokens].
        lengths: Tokens that each row sees, int64 [n].
        budget: How many it reads.

    Returns:
        Float32 [n, kv heads, context + branch tokens], or [n, 1, ...] where all rows
        read everything.
    """
    tokens = len(described[0]) + own.shape[1]
    if all(budget.is_dense(length) for length in lengths.tolist()):
        return seen_bias(lengths, tokens)
    kv_heads = described[0].shape[1]
    of_context, of_branches = (
        of_group(scorer.score(query, each), kv_heads) for each in described
    )
    mine = own.unsqueeze(1).expand(-1, kv_heads, -1)
    scores = torch.cat([of_context, of_branches.gather(2, mine)], dim=2)
    chosen = causal_choice(scores, lengths, budget)
    return residual_bias_rows(chosen, lengths, budget.sample_tokens)


def residual_bias_rows(chosen: Tensor, lengths: Tensor, samples: int) -> Tensor:
    """Return what is added to the dot products of many queries.

    The same as `residual.residual_bias` returns for the first ``lengths[i]`` tokens of
    row ``i``.

    Args:
        chosen: Which tokens were chosen, none behind the row's length; the same number
            in all heads of a row, bool [n, heads, tokens].
        lengths: Tokens that each row sees, int64 [n].
        samples: How many of the others are read besides.

    Returns:
        0 for chosen tokens, the logarithm of what they stand for where samples are,
        minus infinity for others, float32 [n, heads, tokens].
    """
    rows, heads, tokens = chosen.shape
    # One more place takes the samples of rows that have fewer than others.
    bias = torch.zeros(rows, heads, tokens + 1, device=chosen.device)
    bias[:, :, :tokens].masked_fill_(~chosen, -torch.inf)
    if samples:
        others = lengths.to(chosen.device) - chosen[:, 0].sum(dim=1)  # [n]
        count = others.clamp(max=samples).unsqueeze(1)
        sample = torch.arange(samples, device=chosen.device)
        divisor = 2 * count.clamp(min=1)
        rank = (2 * sample + 1) * others.unsqueeze(1) // divisor  # [n, samples]
        rank = rank.where(sample < count, tokens + 1)
        # What is left out, counted from 1; behind the length it does not matter.
        left_out = (~chosen).cumsum(dim=2)
        wanted = (rank + 1).unsqueeze(1).expand(-1, heads, -1).contiguous()
        places = torch.searchsorted(left_out, wanted).clamp(max=tokens)
        stands_for = (others / count.squeeze(1).clamp(min=1)).log()
        bias.scatter_(
            2, places, stands_for.float().view(-1, 1, 1).expand(-1, heads, samples)
        )
    return bias[:, :, :tokens]
