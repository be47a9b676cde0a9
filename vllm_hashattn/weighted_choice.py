# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which tokens are read where their weight in attention can be estimated.

Reading only the best tokens gives them the weight of all others. Here every token has a
*chance* to be read, in proportion to its estimated weight and at most 1, and counts as
``1 / chance`` tokens where it is read. The sums of attention are then right on average
whatever the estimates are; good estimates make them precise. Tokens that stand out have
a chance of 1. How many they are differs from head to head and step to step: few where
attention is flat, nearly all that are read where it is sharp.

Source: sampling with probability proportional to size (Horvitz and Thompson 1952); that
sparse attention should correct what it leaves out is vAttention's idea
(arXiv 2510.05688). Ours: chances from codes, one choice for the query heads of a group,
and no dice: token ``t`` is read where its chance exceeds a number that runs through the
multiples of the golden ratio, so answers repeat.

All is done in whole numbers, so that every kernel chooses the same tokens:

* weights are counted in 1/32 octave below a fixed one; of the heads of a group the
  largest weight counts, relative to the head's sum over all tokens;
* that sum is estimated from a few groups of 16 tokens at even distances;
* a chance halves every 32 steps, and falls in a straight line between (32,768 is 1);
* the threshold below which chances fall is the largest with which the chances add up to
  at most the number of tokens wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .budget import Budget

_OCTAVE_BITS = 5
OCTAVE = 1 << _OCTAVE_BITS  # steps
NEAREST = 20 * OCTAVE  # of a token whose weight is the sum over all tokens
FARTHEST = 65535
CERTAIN = 32768
_LOWEST_THRESHOLD = -1024  # no chances at all
_STEPS_PER_NAT = OCTAVE * 1.4426950408889634
_STEP_PARTS = float(1 << 20)
_GROUP = 16
_FEWEST_GROUPS, _MOST_SAMPLED = 8, 1024
_GOLDEN, _OF_LENGTH, _OF_HEAD = 20251, 25173, 13849


def steps_of(units: Tensor) -> Tensor:
    """Return how many steps one unit of a dot product is, float32 like `units`."""
    return (units * _STEPS_PER_NAT * _STEP_PARTS).round() / _STEP_PARTS


def sample_stride(candidates: int) -> int:
    """Return of how many groups of 16 tokens one is sampled; a power of two."""
    stride = _FEWEST_GROUPS
    while candidates // stride > _MOST_SAMPLED:
        stride *= 2
    return stride


def distances(
    dots: Tensor,
    steps: Tensor,
    share: Tensor,
    kv_heads: int,
    candidates: tuple[int, int],
) -> Tensor:
    """Return how far below the fixed weight each token of one sequence is.

    Args:
        dots: Whole numbers, float32 [query heads, tokens].
        steps: From :func:`steps_of`, float32 [query heads].
        share: Of each query head, float32 [query heads].
        kv_heads: KV heads.
        candidates: The first token that is not always read, and the one after the last.

    Returns:
        From 0 to FARTHEST, int32 [kv heads, tokens]; of candidates only.
    """
    first, last = candidates
    stride = sample_stride(last - first)
    token = torch.arange(first, last, device=dots.device)
    sampled = token[token // _GROUP % stride == stride // 2]
    scale = steps.unsqueeze(1)
    of_sum = torch.zeros_like(steps)
    if len(sampled):
        octaves = dots[:, sampled] * (scale / OCTAVE)
        highest = octaves.amax(dim=1, keepdim=True)
        total = (octaves - highest).exp2().sum(dim=1)
        of_sum = highest.squeeze(1) + (total * stride).log2()
    offset = (OCTAVE * (of_sum - share.log2())).round()
    # In kernels a fused multiply and add, which rounds once.
    weights = (dots.double() * scale.double() - offset.double().unsqueeze(1)).float()
    best = torch.unflatten(weights, 0, (kv_heads, -1)).amax(dim=1)
    return (NEAREST - best).round().clamp(0, FARTHEST).to(torch.int32)


def chances(distance: Tensor, threshold: Tensor) -> Tensor:
    """Return chances of which CERTAIN is 1, int32 like `distance`."""
    below = (distance - threshold).clamp(min=0)
    # Shifts, because divisions of integers take several times as long.
    octaves, rest = below >> _OCTAVE_BITS, below & (OCTAVE - 1)
    part = CERTAIN - rest * (CERTAIN // (2 * OCTAVE))
    return part >> octaves.clamp(max=31)


def threshold(distance: Tensor, candidates: Tensor, wanted: Tensor) -> Tensor:
    """Return the largest threshold whose chances add up to at most `wanted`.

    Args:
        distance: From :func:`distances`, int32 [..., tokens].
        candidates: Which tokens take part, bool, broadcastable to `distance`.
        wanted: Tokens, int64 [..., 1].

    Returns:
        int32 [..., 1].
    """
    shape = (*distance.shape[:-1], 1)
    low = torch.full(
        shape, _LOWEST_THRESHOLD, dtype=torch.int32, device=distance.device
    )
    high = torch.full_like(low, FARTHEST)
    while bool((low < high).any()):
        middle = low + (high - low + 1) // 2
        found = (chances(distance, middle) * candidates).sum(dim=-1, keepdim=True)
        fits = found <= wanted * CERTAIN
        low = torch.where(fits, middle, low)
        high = torch.where(fits, high, middle - 1)
    return low


def hurdles(tokens: Tensor, length: Tensor, kv_head: Tensor) -> Tensor:
    """Return what the chance of a token must exceed, from 0 to CERTAIN - 1.

    Args:
        tokens: Positions, integers.
        length: Of the sequence, so that other steps read other tokens.
        kv_head: So that other heads do.
    """
    seed = length * _OF_LENGTH + kv_head * _OF_HEAD
    return (tokens * _GOLDEN + seed) % CERTAIN


def choice_bias(
    distance: Tensor, lengths: Tensor, wanted: Tensor, sink: int, recent: int
) -> Tensor:
    """Return what is added to the dot products of queries.

    Args:
        distance: From :func:`distances`, int32 [n, kv heads, tokens].
        lengths: Tokens that each row sees, int64 [n].
        wanted: Tokens each reads besides those always read, on average, int64 [n].
        sink: First tokens that are always read.
        recent: Newest tokens, likewise.

    Returns:
        0 for tokens always read, minus the logarithm of the chance for those drawn,
        minus infinity for others, float32 [n, kv heads, tokens].
    """
    token = torch.arange(distance.shape[2], device=distance.device)
    seen = lengths.to(distance.device).view(-1, 1, 1)
    candidates = (token >= sink) & (token < seen - recent)
    count = wanted.to(distance.device).view(-1, 1, 1)
    chance = chances(distance, threshold(distance, candidates, count))
    head = torch.arange(distance.shape[1], device=distance.device).view(1, -1, 1)
    drawn = candidates & (chance > hurdles(token, seen, head))
    bias = -(chance.clamp(min=1).float() / CERTAIN).log()
    bias = torch.where(drawn, bias, -torch.inf)
    always = (token < seen) & ~candidates
    return torch.where(always, torch.zeros_like(bias), bias)


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
            As of :func:`distances`, int32 [n, kv heads, tokens]; of tokens
            that are not always read only.
        """
        # Row by row: the numbers of one fit into a core's cache and those of many do
        # not, which takes four times as long.
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
            What is added to dot products, as of :func:`choice_bias`, float32 [n, kv
            heads, tokens].
        """
        always = budget.sink_tokens + budget.recent_tokens
        wanted = [max(budget.tokens(each) - always, 0) for each in lengths.tolist()]
        return choice_bias(
            self.distances(lengths, budget),
            *(lengths, torch.tensor(wanted, dtype=torch.int64)),
            *(budget.sink_tokens, budget.recent_tokens),
        )
