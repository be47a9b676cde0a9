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
        scores: Larger is more important, any real dtype, [heads, tokens].
        budget: How many, and which always.

    Returns:
        Positions in ascending order, int64 [heads, chosen].
    """
    heads, tokens = scores.shape
    chosen = budget.tokens(tokens)
    everything = torch.arange(tokens, device=scores.device)
    if chosen == tokens:
        return everything.expand(heads, tokens)
    recent_from = tokens - budget.recent_tokens
    always = (everything < budget.sink_tokens) | (everything >= recent_from)
    best = chosen - int(always.sum())
    candidates = everything[~always].flip(0)
    # Stable, and newest first before it: so equal scores keep the newest in front.
    order = torch.sort(scores[:, candidates], dim=1, descending=True, stable=True)
    picked = candidates[order.indices[:, :best]]
    kept = everything[always].expand(heads, -1)
    return torch.cat([kept, picked], dim=1).sort(dim=1).values
