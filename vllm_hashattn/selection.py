# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which tokens are read: those always read, and the best of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from .budget import Budget


def pivotal_tokens(scores: Tensor, budget: Budget) -> Tensor:
    """Choose tokens by score.

    Of tokens with equal scores the newer ones are taken, because hash codes give many
    equal scores and new tokens are attended to more often. Kernels follow this rule, so
    that all choose the same tokens.

    Args:
        scores: Larger is more important, any real dtype, [..., heads, tokens].
        budget: How many, and which always.

    Returns:
        Positions in ascending order, int64 [..., heads, chosen].
    """
    *leading, tokens = scores.shape
    chosen = budget.tokens(tokens)
    everything = torch.arange(tokens, device=scores.device)
    if chosen == tokens:
        return everything.expand(scores.shape)
    recent_from = tokens - budget.recent_tokens
    always = (everything < budget.sink_tokens) | (everything >= recent_from)
    best = chosen - int(always.sum())
    candidates = everything[~always].flip(0)
    # Stable, and newest first before it: so equal scores keep the newest in front.
    order = torch.sort(scores[..., candidates], dim=-1, descending=True, stable=True)
    picked = candidates[order.indices[..., :best]]
    kept = everything[always].expand(*leading, -1)
    return torch.cat([kept, picked], dim=-1).sort(dim=-1).values


def causal_choice(scores: Tensor, lengths: Tensor, budget: Budget) -> Tensor:
    """Choose for many queries at once, each of which sees the first tokens only.

    The same choice as :func:`pivotal_tokens` makes of the first ``lengths[i]`` scores
    of row ``i``, without a sort: the smallest score that is taken parts the tokens, and
    of those that have just this score the newest are taken.

    Args:
        scores: Larger is more important, floating dtype, [n, heads, tokens]. Not a
            number nowhere; what is behind a row's length does not matter.
        lengths: Tokens that each row sees, at least 1, int64 [n].
        budget: How many, and which always, for each length.

    Returns:
        True for chosen tokens, bool [n, heads, tokens].
    """
    token = torch.arange(scores.shape[2], device=scores.device)
    seen = lengths.to(scores.device).unsqueeze(1)
    recent = (token >= seen - budget.recent_tokens) & (token < seen)
    always = recent | ((token < budget.sink_tokens) & (token < seen))  # [n, tokens]
    chosen = torch.tensor([budget.tokens(length) for length in lengths.tolist()])
    best = chosen.to(scores.device) - always.sum(dim=1)
    open_to_choice = ((token < seen) & ~always).unsqueeze(1)
    ranked = scores.masked_fill(~open_to_choice, -torch.inf)
    most = int(best.max())
    if most == 0:
        return always.unsqueeze(1).expand(scores.shape).clone()
    # Row by row the score of the last one taken, [n, heads, 1].
    last = (best.clamp(min=1) - 1).view(-1, 1, 1).expand(-1, scores.shape[1], 1)
    least = ranked.topk(most, dim=2).values.gather(2, last)
    above, level = ranked > least, (ranked == least) & open_to_choice
    missing = best.view(-1, 1, 1) - above.sum(dim=2, keepdim=True)
    # How many of the level ones are at this token or newer.
    counted = level.cumsum(dim=2, dtype=torch.int32)
    newer = counted[:, :, -1:] - counted + 1
    picked = (above | (level & (newer <= missing))) & (best > 0).view(-1, 1, 1)
    return picked | always.unsqueeze(1)
