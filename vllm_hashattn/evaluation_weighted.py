# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Logits that many decode steps estimate for the tokens of one layer.

The rules are those of :mod:`~vllm_hashattn.weighted_choice`. Distances are asked of it
row by row: the numbers of one row fit into a core's cache and those of many do not,
which takes four times as long.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .budget import Budget
from .scorer import OracleScorer, Scorer
from .scorer_levels import LevelScorer
from .weighted_choice import choice_bias, distances, steps_of


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


@dataclass(frozen=True, slots=True)
class Estimates:
    """Logits of each row, but for a constant of each head.

    Attributes:
        dots: Float32 [n, query heads, tokens].
        units: Of a logit, what one of `dots` is, float32 [n, query heads].
        share: Of attention that goes to tokens not always read, float32 [query heads].
        kv_heads: KV heads.
    """

    dots: Tensor
    units: Tensor
    share: Tensor
    kv_heads: int

    def distances(self, lengths: Tensor, budget: Budget) -> Tensor:
        """Find how far below a fixed weight tokens are.

        Args:
            lengths: Tokens that each row sees, int64 [n].
            budget: Which of them are always read.

        Returns:
            As of `weighted_choice.distances`, int32 [n, kv heads, tokens]; of tokens
            that are not always read only.
        """
        steps, found = steps_of(self.units), []
        for row, length in enumerate(lengths.tolist()):
            first = min(budget.sink_tokens, length)
            candidates = first, max(length - budget.recent_tokens, first)
            estimate = self.dots[row], steps[row], self.share, self.kv_heads
            found.append(distances(*estimate, candidates))
        return torch.stack(found)

    def drawn(self, lengths: Tensor, budget: Budget) -> Tensor:
        """Draw tokens by their weight; rows that are read whole draw all of them.

        Args:
            lengths: Tokens that each row sees, int64 [n].
            budget: How many are read on average, and which always.

        Returns:
            What is added to dot products, as of `weighted_choice.choice_bias`, float32
            [n, kv heads, tokens].
        """
        always = budget.sink_tokens + budget.recent_tokens
        wanted = [max(budget.tokens(each) - always, 0) for each in lengths.tolist()]
        return choice_bias(
            self.distances(lengths, budget),
            *(lengths, torch.tensor(wanted, dtype=torch.int64)),
            *(budget.sink_tokens, budget.recent_tokens),
        )


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
