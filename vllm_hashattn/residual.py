# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""An even sample of the tokens that were not chosen, which stands for all of them.

Attention over chosen tokens alone gives them the whole weight, also where much of it
belongs to many tokens of little weight each. A sample of those estimates their part in
the sums of attention.

Source: the idea is vAttention's (arXiv 2510.05688): the best tokens exactly, and the
rest by a sample. Ours: no chance in it, every n-th token, so that answers repeat.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def residual_bias(chosen: Tensor, samples: int) -> Tensor:
    """Return what is added to the dot products of one query.

    Of `n` tokens that were not chosen, in their order, number ``(2 i + 1) n // (2 m)``
    is read for each ``i`` below ``m``, and counts as ``n / m`` tokens.

    Args:
        chosen: Which tokens were chosen, bool [heads, tokens], the same number in each.
        samples: How many of the others are read besides.

    Returns:
        0 for chosen tokens, the logarithm of ``n / m`` for samples, minus infinity for
        others, float32 [heads, tokens].
    """
    bias = torch.zeros(chosen.shape).masked_fill(~chosen, -torch.inf)
    others = chosen.shape[1] - int(chosen[0].sum())
    count = min(samples, others)
    if count:
        left_out = (~chosen).nonzero()[:, 1].view(len(chosen), others)
        picked = (2 * torch.arange(count) + 1) * others // (2 * count)
        bias.scatter_(1, left_out[:, picked], math.log(others / count))
    return bias
