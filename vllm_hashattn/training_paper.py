# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Training of the paper's networks, to compare with them at equal terms.

Every query head learns by itself, from the queries and keys of one layer of a frozen
model, which of its keys have the largest dot products. In training, tanh stands in for
the sign, and the agreement of the two sides is the logit of a weighted cross-entropy.

Source: HashAttention (arXiv 2412.14468), section 4 and its published training: top 32
keys without the first and newest 128, class weight 20, Adam with 1e-3, no scale and no
offset for the logit. Ours: all heads at once, many queries at each step.

Memory: the keys' networks keep about ``4 * tokens * query heads * 600`` bytes for each
step, 170 MB for 8K tokens and 9 heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from .scorer_paper import HeadNetworks
from .training import (
    Captured,
    TrainingSettings,
    learnable,
    pivotal,
    usable_documents,
)

HIDDEN = 128
PAPER_SETTINGS = TrainingSettings(
    bits=32, codes="signs", sink_tokens=128, recent_tokens=128
)


def train_paper_layer(
    documents: Sequence[Captured], settings: TrainingSettings = PAPER_SETTINGS
) -> Iterator[tuple[float, HeadNetworks, HeadNetworks]]:
    """Train; give the loss and the networks for keys and queries after each step.

    Args:
        documents: Of this layer, from texts that are not used for evaluation.
        settings: How; `bits` are those of each query head.

    Raises:
        ValueError: No document is long enough, or the bits are no whole bytes.
    """
    if settings.bits % 8 or settings.bits <= 0:
        raise ValueError(
            f"hashattn: codes of {settings.bits} bits were asked for; codes are whole "
            "bytes, so the number of bits must be a multiple of 8."
        )
    usable = usable_documents(documents, settings)
    random = torch.Generator().manual_seed(settings.seed)
    heads, head_dim = usable[0].queries.shape[1:]
    sizes = (head_dim, HIDDEN, HIDDEN, settings.bits)
    for_keys, for_queries = (_untrained(heads, sizes, random) for _ in range(2))
    parameters = [
        parameter.requires_grad_()
        for networks in (for_keys, for_queries)
        for parameter in (*networks.weights, *networks.biases)
    ]
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
    for step in range(settings.steps):
        document = usable[step % len(usable)]
        size = (settings.queries,)
        picked = torch.randint(len(document.queries), size, generator=random)
        loss = paper_loss(for_keys, for_queries, document, picked, settings)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield float(loss.detach()), _frozen(for_keys), _frozen(for_queries)


def paper_loss(
    for_keys: HeadNetworks,
    for_queries: HeadNetworks,
    document: Captured,
    picked: torch.Tensor,
    settings: TrainingSettings,
) -> torch.Tensor:
    """Weighted cross-entropy over the keys that a query may choose from.

    Args:
        for_keys: Networks of the layer.
        for_queries: Networks of the layer.
        document: What it is measured on.
        picked: Which of its queries, int64 [queries].
        settings: What is to be found, and what missing it costs.

    Returns:
        Mean over query heads, queries and keys, float32 [].
    """
    queries, keys = document.queries[picked].float(), document.keys.float()
    learned = learnable(document.positions[picked], len(keys), settings)
    wanted = pivotal(queries, keys, learned, settings.positives)
    weight = learned * (1.0 + (settings.positive_weight - 1.0) * wanted)
    heads = queries.shape[1]
    repeated = keys.transpose(0, 1).repeat_interleave(heads // keys.shape[1], dim=0)
    stored = torch.tanh(for_keys(repeated))  # [query heads, tokens, bits]
    asked = torch.tanh(for_queries(queries.transpose(0, 1)))
    logits = torch.bmm(asked, stored.mT)
    total = binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")
    return total / (learned.sum() * heads)


def _untrained(
    heads: int, sizes: Sequence[int], random: torch.Generator
) -> HeadNetworks:
    """Uniform numbers that shrink with the inputs, as linear layers start in torch."""

    def drawn(*shape: int, inputs: int) -> torch.Tensor:
        end = inputs**-0.5
        return torch.empty(shape).uniform_(-end, end, generator=random)

    steps = list(pairwise(sizes))
    return HeadNetworks(
        [drawn(heads, inputs, outputs, inputs=inputs) for inputs, outputs in steps],
        [drawn(heads, outputs, inputs=inputs) for inputs, outputs in steps],
    )


def _frozen(networks: HeadNetworks) -> HeadNetworks:
    return HeadNetworks(
        [weight.detach().clone() for weight in networks.weights],
        [bias.detach().clone() for bias in networks.biases],
    )
