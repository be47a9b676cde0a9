# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How unlikely a text is under a model's logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

# Rows of logits that are held in float32 at once, because vocabularies are large.
_ROWS = 64


def nll_of_rows(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative logarithm of each target's probability.

    Args:
        logits: Floating dtype, [n, vocabulary].
        targets: int64 [n].

    Returns:
        float32 [n].
    """
    return torch.cat(
        [
            cross_entropy(
                logits[start : start + _ROWS].float(),
                targets[start : start + _ROWS],
                reduction="none",
            )
            for start in range(0, len(targets), _ROWS)
        ]
    )
