# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Trains the linear hash of one layer on queries and keys of a real model.

The model stays as it is. For each query the keys with the largest dot products are
the ones to find; both sides are projected, squashed by tanh in place of the sign, and
the agreement is the logit of a weighted cross-entropy, which counts a missed key more
than a needless one.

Source: HashAttention (arXiv 2412.14468), section 4 and its published training: top 32
keys, class weight 20, Adam. Ours: linear maps, one for each KV head's keys, whose
logits have a scale and an offset that are learned, and start as random hyperplanes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .scorer_linear import LinearHash


@dataclass(frozen=True, slots=True)
class Captured:
    """What one layer computed for one document.

    Attributes:
        queries: After the rotary embedding, [queries, query heads, head_dim].
        positions: Of the queries in the document, int64 [queries].
        keys: After the rotary embedding, [tokens, kv heads, head_dim].
    """

    queries: Tensor
    positions: Tensor
    keys: Tensor


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a layer is trained.

    Attributes:
        bits: Of a key's code, a multiple of 64, or of 8 where they are signs.
        codes: What they are: "levels" or "signs".
        steps: Of the optimiser.
        queries: For each step, from one document.
        positives: Keys to find for each query.
        positive_weight: What missing one costs, in needless ones.
        learning_rate: Of Adam.
        sink_tokens: First tokens, read anyway and not learned.
        recent_tokens: Newest tokens, likewise.
        seed: For maps and samples.

    Raises:
        ValueError: There are no such codes, or not of so many bits.
    """

    bits: int = 128
    codes: str = "levels"
    steps: int = 400
    queries: int = 48
    positives: int = 32
    positive_weight: float = 20.0
    learning_rate: float = 1e-3
    sink_tokens: int = 64
    recent_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        multiple = {"levels": 64, "signs": 8}.get(self.codes)
        if multiple is None:
            raise ValueError(
                f"hashattn: codes {self.codes!r} were asked for; they can be levels or "
                "signs."
            )
        if self.bits < multiple or self.bits % multiple:
            raise ValueError(
                f"hashattn: {self.bits} bits were asked for; codes of {self.codes} "
                f"need a multiple of {multiple}."
            )


def train_layer(
    documents: Sequence[Captured], settings: TrainingSettings
) -> Iterator[tuple[float, LinearHash]]:
    """Train, and give the loss and the maps after each step.

    Args:
        documents: Of this layer, from texts that are not used for evaluation.
        settings: How.

    Raises:
        ValueError: No document is long enough to have keys to choose from.
    """
    usable = usable_documents(documents, settings)
    random = torch.Generator().manual_seed(settings.seed)
    maps = _Maps(usable[0], settings.bits, random)
    optimizer = torch.optim.Adam(maps.parameters, lr=settings.learning_rate)
    # The keys to find stay the same; looking for them takes longer than a step.
    wanted = [_wanted(document, settings) for document in usable]
    for step in range(settings.steps):
        number = step % len(usable)
        loss = _loss(maps, usable[number], wanted[number], settings, random)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield float(loss.detach()), maps.frozen()


def usable_documents(
    documents: Sequence[Captured], settings: TrainingSettings
) -> list[Captured]:
    """Return the documents with enough keys to choose from.

    Raises:
        ValueError: There is none.
    """
    always = settings.sink_tokens + settings.recent_tokens
    needed = always + 2 * settings.positives
    usable = [each for each in documents if len(each.keys) >= needed]
    if not usable:
        longest = max((len(each.keys) for each in documents), default=0)
        raise ValueError(
            f"hashattn: the longest document has {longest} tokens; training needs "
            f"{needed} or more, because the first {settings.sink_tokens} and newest "
            f"{settings.recent_tokens} are read anyway. Give longer texts."
        )
    return usable


class _Maps:
    """Maps while they are trained."""

    def __init__(self, like: Captured, bits: int, random: torch.Generator) -> None:
        kv_heads, head_dim = like.keys.shape[1:]
        heads = like.queries.shape[1]
        group = heads // kv_heads
        # The same hyperplanes on both sides: where nothing is learned yet, agreement
        # is that of the angles. Their offset cuts through the middle of the keys.
        planes = torch.randn(kv_heads, head_dim, bits, generator=random)
        planes = planes / like.keys.float().std(dim=(0, 2)).reshape(-1, 1, 1)
        middle = like.keys.float().mean(dim=0)
        self.key_map = planes / head_dim**0.5
        self.key_bias = -torch.einsum("hd,hdb->hb", middle, self.key_map)
        self.query_map = self.key_map.repeat_interleave(group, dim=0)
        self.query_bias = torch.zeros(heads, bits)
        self.scale = torch.full((heads, 1, 1), 8.0 / bits)
        self.offset = torch.full((heads, 1, 1), -2.0)
        self.parameters = [
            parameter.requires_grad_()
            for parameter in (
                *(self.key_map, self.key_bias, self.query_map, self.query_bias),
                *(self.scale, self.offset),
            )
        ]

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return [query heads, queries, tokens]."""
        asked = torch.einsum("qhd,hdb->hqb", queries, self.query_map)
        asked = torch.tanh(asked + self.query_bias.unsqueeze(1))
        stored = torch.einsum("thd,hdb->htb", keys, self.key_map)
        stored = torch.tanh(stored + self.key_bias.unsqueeze(1))
        grouped = torch.unflatten(asked, 0, (len(stored), -1)) @ stored.mT.unsqueeze(1)
        return self.scale * grouped.flatten(0, 1) + self.offset

    def frozen(self) -> LinearHash:
        """Return the maps as they are now."""
        return LinearHash(
            *(
                each.detach().clone()
                for each in (
                    *(self.key_map, self.key_bias),
                    *(self.query_map, self.query_bias),
                )
            )
        )


def _wanted(document: Captured, settings: TrainingSettings) -> Tensor:
    """Positions of the keys to find, int64 [query heads, queries, positives]."""
    keys = document.keys.float()
    found = []
    for start in range(0, len(document.queries), settings.queries):
        part = slice(start, start + settings.queries)
        learned = learnable(document.positions[part], len(keys), settings)
        queries = document.queries[part].float()
        found.append(pivotal_positions(queries, keys, learned, settings.positives))
    return torch.cat(found, dim=1)


def _loss(
    maps: _Maps,
    document: Captured,
    wanted: Tensor,
    settings: TrainingSettings,
    random: torch.Generator,
) -> Tensor:
    """Weighted cross-entropy, mean over the keys that each query may choose from.

    Of a key to find it is the weight times ``softplus(-logit)``, of another one
    ``softplus(logit)``.
    """
    picked = torch.randint(len(document.queries), (settings.queries,), generator=random)
    keys = document.keys.float()
    learned = learnable(document.positions[picked], len(keys), settings)
    logits = maps.logits(document.queries[picked].float(), keys)
    positions = wanted[:, picked]
    # Early queries have fewer keys to choose from than are wanted.
    there = learned.expand_as(logits).gather(2, positions)
    best = logits.gather(2, positions)
    missed = settings.positive_weight * softplus(-best) - softplus(best)
    total = (softplus(logits) * learned).sum() + (missed * there).sum()
    return total / (learned.sum() * logits.shape[0])


def learnable(positions: Tensor, tokens: int, settings: TrainingSettings) -> Tensor:
    """Which keys a query may choose from: earlier ones that are not read anyway.

    Args:
        positions: Of the queries, int64 [queries].
        tokens: Keys of the document.
        settings: What is read anyway.

    Returns:
        1 or 0, float32 [queries, tokens].
    """
    token = torch.arange(tokens)
    newest = positions.unsqueeze(1) - settings.recent_tokens
    return ((token >= settings.sink_tokens) & (token <= newest)).float()


def pivotal_positions(
    queries: Tensor, keys: Tensor, learned: Tensor, positives: int
) -> Tensor:
    """Where the keys to be found are: those with the largest dot products.

    Args:
        queries: [queries, query heads, head_dim].
        keys: [tokens, kv heads, head_dim].
        learned: From :func:`learnable`.
        positives: How many for each query.

    Returns:
        int64 [query heads, queries, positives].
    """
    grouped = torch.unflatten(queries.transpose(0, 1), 0, (keys.shape[1], -1))
    dots = (grouped @ keys.permute(1, 2, 0).unsqueeze(1)).flatten(0, 1)
    return dots.masked_fill(learned == 0.0, -torch.inf).topk(positives, dim=2).indices


def pivotal(queries: Tensor, keys: Tensor, learned: Tensor, positives: int) -> Tensor:
    """Which keys are to be found, 1 or 0, float32 [query heads, queries, tokens].

    Arguments are those of :func:`pivotal_positions`.
    """
    best = pivotal_positions(queries, keys, learned, positives)
    shape = *best.shape[:2], len(keys)
    return torch.zeros(shape).scatter_(2, best, 1.0) * learned
