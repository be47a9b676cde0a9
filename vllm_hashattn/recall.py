# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How much of what matters a scorer finds: recall and attention mass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import attention_weights
from .budget import Budget
from .scorer import of_group
from .selection import pivotal_tokens


@dataclass(frozen=True, slots=True)
class Recall:
    """Found by one choice per KV head, averaged over the query heads of the group.

    Attributes:
        recall: Share of each query head's keys with the largest dot products that are
            among the chosen tokens; those read anyway do not count.
        mass: Share of the attention weights that the chosen tokens hold.
        tokens: Tokens that were chosen.
    """

    recall: float
    mass: float
    tokens: int


def measure_recall(
    scores: Tensor, query: Tensor, keys: Tensor, budget: Budget, positives: int = 32
) -> Recall:
    """Compare the choice for one query with what attention would have read.

    Args:
        scores: A scorer's, [query heads, tokens], or those of groups, [kv heads,
            tokens].
        query: [query heads, head_dim].
        keys: All keys that the query sees, [tokens, kv heads, head_dim].
        budget: How many tokens are chosen.
        positives: Keys to be found for each query head.
    """
    tokens, kv_heads, head_dim = keys.shape
    grouped = scores if len(scores) == kv_heads else of_group(scores, kv_heads)
    chosen = pivotal_tokens(grouped, budget)
    read = torch.zeros(kv_heads, tokens).scatter_(1, chosen, 1.0)
    by_head = read.repeat_interleave(len(query) // kv_heads, dim=0)
    weights = attention_weights(query, keys, head_dim**-0.5).float()
    middle = slice(budget.sink_tokens, tokens - budget.recent_tokens)
    candidates = weights[:, middle]
    wanted = candidates.topk(min(positives, candidates.shape[1]), dim=1).indices
    found = by_head[:, middle].gather(1, wanted)
    return Recall(
        recall=float(found.mean()),
        mass=float((by_head * weights).sum(dim=1).mean()),
        tokens=chosen.shape[1],
    )
