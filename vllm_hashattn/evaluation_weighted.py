# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Logits that many decode steps estimate for the tokens of one layer."""

from __future__ import annotations

import torch
from torch import Tensor

from .scorer import OracleScorer, Scorer
from .scorer_levels import LevelScorer
from .weighted_choice import Estimates


class LogitOracle(OracleScorer):
    """The true logits: what weights that are estimated from codes can only approach.

    Args:
        head_dim: Channels of a key; its root divides the dot products in attention.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__(head_dim)
        self.unit = head_dim**-0.5


def joined(of_context: Tensor, of_branches: Tensor, own: Tensor) -> Tensor:
    """Put numbers of each row's own branch behind those of the context.

    Args:
        of_context: [n, heads, context tokens].
        of_branches: Of all branches, [n, heads, held].
        own: Which of those are of the row's branch, int64 [n, branch tokens].

    Returns:
        [n, heads, context + branch tokens].
    """
    mine = own.unsqueeze(1).expand(-1, of_branches.shape[1], -1)
    return torch.cat([of_context, of_branches.gather(2, mine)], dim=2)


def estimates(
    scorer: Scorer, query: Tensor, described: tuple[Tensor, Tensor], own: Tensor
) -> Estimates | None:
    """Estimate the logits of all tokens, where the scorer can.

    Args:
        scorer: Of the layer.
        query: [n, query heads, head_dim].
        described: Keys of the context, and those of all branches; [tokens, kv heads,
            ...] each.
        own: As of :func:`joined`.

    Returns:
        None for scorers that only rank.
    """
    if isinstance(scorer, LevelScorer):
        asked, units = scorer.asked(query)
        first, second = (scorer.dots(asked, each) for each in described)
        share = scorer.maps.share.to(query.device)
    elif isinstance(scorer, LogitOracle):
        first, second = (scorer.score(query, each) for each in described)
        units = torch.full(query.shape[:2], scorer.unit, device=query.device)
        share = torch.ones(query.shape[1], device=query.device)
    else:
        return None
    return Estimates(joined(first, second, own), units, share, described[0].shape[1])
