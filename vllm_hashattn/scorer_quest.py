# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Quest, the rival that needs no training: bounds of the dot products of a page.

Source: Quest (arXiv 2406.10774): the smallest and largest value of each channel over a
page of keys bound every dot product with them from above. Written from the formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .scorer import Scorer, by_group

PAGE_TOKENS = 16


class QuestScorer(Scorer):
    """Scores pages of consecutive tokens; all tokens of a page score alike.

    Args:
        head_dim: Channels of a key.
        page_tokens: Tokens of a page.
    """

    def __init__(self, head_dim: int, page_tokens: int = PAGE_TOKENS) -> None:
        self.page_tokens = page_tokens
        self.bits = 2 * 16 * head_dim // page_tokens

    def describe(self, keys: Tensor) -> Tensor:
        """Return bounds of each token's page, [tokens, kv heads, 2, head_dim].

        Kept once for each page in a real cache. A page that is not full yet is bounded
        by the keys that are there.
        """
        tokens = keys.shape[0]
        missing = -tokens % self.page_tokens
        # The last key again changes no bound.
        padded = torch.cat([keys, keys[-1:].expand(missing, -1, -1)])
        pages = torch.unflatten(padded, 0, (-1, self.page_tokens))
        bounds = torch.stack([pages.amin(dim=1), pages.amax(dim=1)], dim=2)
        return bounds.repeat_interleave(self.page_tokens, dim=0)[:tokens]

    def score(self, query: Tensor, described: Tensor) -> Tensor:
        """Largest dot product that a key of the page may have."""
        low, high = torch.unbind(described.float().permute(2, 1, 3, 0))
        above, below = query.float().clamp(min=0.0), query.float().clamp(max=0.0)
        return by_group(above, high) + by_group(below, low)
