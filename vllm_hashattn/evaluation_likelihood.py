# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How unlikely a text is under a model's logits, and how far they are from others.

Logits of bfloat16 have three digits. Their rounding adds about a thousandth to a
divergence, in all arms alike but in those that read everything.
"""

from __future__ import annotations

from collections.abc import Iterator

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
            cross_entropy(logits[part].float(), targets[part], reduction="none")
            for part in _parts(len(targets))
        ]
    )


def divergence_of_rows(logits: Tensor, dense: Tensor) -> Tensor:
    """Return how much worse each row foretells what follows than dense attention's.

    Args:
        logits: Floating dtype, [n, vocabulary].
        dense: Of the same places, likewise.

    Returns:
        Kullback-Leibler divergence from dense attention's distribution in nats, at
        least 0, float32 [n].
    """
    found = []
    for part in _parts(len(logits)):
        expected = dense[part].float().log_softmax(dim=-1)
        reached = logits[part].float().log_softmax(dim=-1)
        found.append((expected.exp() * (expected - reached)).sum(dim=-1).clamp(min=0))
    return torch.cat(found)


def same_top_of_rows(logits: Tensor, dense: Tensor) -> Tensor:
    """Return where the most likely token is dense attention's, bool [n].

    Args:
        logits: Floating dtype, [n, vocabulary].
        dense: Of the same places, likewise.
    """
    return logits.argmax(dim=-1) == dense.argmax(dim=-1)


def _parts(rows: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, rows, _ROWS))
