# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Trains the levels of one layer, so that they estimate the logits of attention.

Training starts with the best linear approximation of its rank: of all maps to so many
channels the one whose products come closest to the logits of the captured queries and
keys, on average. Then the softmax of the estimates is made like that of the true
logits, because that is what tokens are drawn by. Rounding to levels and units lets
gradients pass as if it were not there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .scorer import by_group
from .scorer_levels import LEVELS, MOST_ASKED, LevelHash
from .training import Captured, TrainingSettings, learnable, usable_documents

# For keys whose channels have a standard deviation of 1.
_LEARNING_RATE = 4e-3
_REACH = 2.5  # standard deviations of a channel that the levels span
_FEWEST_KEYS = 64  # that a query has to choose from, to count
_LEAST_SHARE = 1e-4
_RIDGE = 1e-6


def train_levels(
    documents: Sequence[Captured], settings: TrainingSettings
) -> Iterator[tuple[float, LevelHash]]:
    """Train, and give the loss and the maps after each step.

    Args:
        documents: Of this layer, from texts that are not used for evaluation.
        settings: How. Positives and their weight do not matter here.

    Yields:
        Mean Kullback-Leibler divergence of the estimates' softmax from the true one, in
        nats, and the maps.

    Raises:
        ValueError: No document is long enough, or none has a query with enough keys to
            choose from, or keys have fewer channels than the code.
    """
    usable = _choosing(usable_documents(documents, settings), settings)
    random = torch.Generator().manual_seed(settings.seed)
    maps = _Maps(usable, settings)
    optimizer = torch.optim.Adam(maps.groups(), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    share = _share(documents, settings)
    for step in range(settings.steps):
        document = usable[step % len(usable)]
        picked = torch.randint(
            len(document.queries), (max(settings.queries // 2, 1),), generator=random
        )
        loss = _divergence(maps, document, picked, settings)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        yield float(loss.detach()), maps.frozen(share)


class _Maps:
    """Maps while they are trained: the levels' range is from -1 to 1."""

    def __init__(
        self, documents: Sequence[Captured], settings: TrainingSettings
    ) -> None:
        channels = settings.bits // 4
        keys = torch.cat([each.keys.float() for each in documents]).transpose(0, 1)
        queries = torch.cat([each.queries.float() for each in documents])
        kv_heads, _, head_dim = keys.shape
        if channels > head_dim:
            raise ValueError(
                f"hashattn: {settings.bits} bits were asked for; keys of {head_dim} "
                f"channels have codes of levels of {4 * head_dim} bits at most."
            )
        group = queries.shape[1] // kv_heads
        grouped = torch.unflatten(queries.transpose(0, 1), 0, (kv_heads, group))
        middle = keys.mean(dim=1, keepdim=True)
        size = float(keys.std(dim=1).mean())
        self._key_size = max(size, torch.finfo(torch.float32).tiny)
        key_maps, query_maps = [], []
        for head in range(kv_heads):
            asked = _root(grouped[head].flatten(0, 1))
            stored = _root((keys - middle)[head])
            left, sizes, right = torch.linalg.svd(asked @ stored)
            # (root of queries)^-1 U S of one side times V (root of keys)^-1 of the
            # other; channels of keys have a variance of 1.
            to_keys = torch.linalg.solve(stored, right.T[:, :channels]) / _REACH
            to_queries = torch.linalg.solve(
                asked, left[:, :channels] * sizes[:channels]
            )
            key_maps.append(to_keys)
            query_maps.append(to_queries * _REACH)
        self.key_map = torch.stack(key_maps)
        self.key_bias = -torch.einsum("hd,hdc->hc", middle[:, 0], self.key_map)
        self.query_map = torch.stack(query_maps).repeat_interleave(group, dim=0)
        self.query_map = self.query_map * head_dim**-0.5
        for each in (self.key_map, self.key_bias, self.query_map):
            each.requires_grad_()

    def groups(self) -> list[dict[str, object]]:
        """Return what Adam takes: both sides move by the same share of their size.

        Adam moves every entry alike, and those of larger keys' maps are smaller.
        """
        of_queries, of_keys = (
            float(each.detach().abs().mean()) for each in (self.query_map, self.key_map)
        )
        rate = _LEARNING_RATE / self._key_size
        return [
            {"params": [self.key_map], "lr": rate},
            {"params": [self.key_bias], "lr": _LEARNING_RATE},
            {"params": [self.query_map], "lr": rate * of_queries / of_keys},
        ]

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return estimates, [queries, query heads, tokens]."""
        asked = torch.einsum("qhd,hdc->qhc", queries, self.query_map)
        unit = asked.detach().abs().amax(dim=-1, keepdim=True) / MOST_ASKED
        unit = unit.clamp(min=torch.finfo(torch.float32).tiny)
        asked = _passed(asked, (asked / unit).round() * unit)
        stored = torch.einsum("thd,hdc->thc", keys, self.key_map) + self.key_bias
        level = ((stored + 1.0) * (LEVELS / 2)).floor().clamp(0, LEVELS - 1)
        # Beyond the range nothing is learned: the level stays.
        stored = _passed(stored.clamp(-1.0, 1.0), (level + 0.5) * (2 / LEVELS) - 1.0)
        return by_group(asked, stored.permute(1, 2, 0))

    def frozen(self, share: Tensor) -> LevelHash:
        """Return the maps as they are now, in whole levels."""
        half = LEVELS / 2
        with torch.no_grad():
            return LevelHash(
                self.key_map * half,
                (self.key_bias + 1.0) * half,
                self.query_map / half,
                share,
            )


def _choosing(
    documents: Sequence[Captured], settings: TrainingSettings
) -> list[Captured]:
    """Leave queries out that have too few keys to choose from."""
    found = []
    for each in documents:
        learned = learnable(each.positions, len(each.keys), settings)
        enough = learned.sum(dim=1) >= _FEWEST_KEYS
        if enough.any():
            kept = each.queries[enough], each.positions[enough]
            found.append(Captured(*kept, each.keys))
    if not found:
        longest = max(len(each.keys) for each in documents)
        raise ValueError(
            f"hashattn: the longest document has {longest} tokens, and no query in it "
            f"has {_FEWEST_KEYS} keys to choose from, because the first "
            f"{settings.sink_tokens} and newest {settings.recent_tokens} are read "
            "anyway. Give longer texts."
        )
    return found


def _passed(exact: Tensor, rounded: Tensor) -> Tensor:
    """Return rounded values whose gradient is that of the exact ones."""
    return exact + (rounded - exact).detach()


def _root(vectors: Tensor) -> Tensor:
    """Return the square root of a second moment, never singular.

    Args:
        vectors: float32 [n, head_dim].

    Returns:
        float32 [head_dim, head_dim].
    """
    moment = vectors.mT @ vectors / len(vectors)
    head_dim = len(moment)
    size = moment.trace().clamp(min=torch.finfo(torch.float32).tiny) / head_dim
    values, basis = torch.linalg.eigh(moment / size + _RIDGE * torch.eye(head_dim))
    root: Tensor = (basis * values.clamp(min=_RIDGE).sqrt()) @ basis.mT
    return root * size.sqrt()


def _divergence(
    maps: _Maps, document: Captured, picked: Tensor, settings: TrainingSettings
) -> Tensor:
    """Mean over queries and heads, float32 []."""
    keys = document.keys.float()
    learned = learnable(document.positions[picked], len(keys), settings)
    queries = document.queries[picked].float()
    hidden = (learned == 0.0).unsqueeze(1)
    true = _true_logits(queries, keys).masked_fill(hidden, -torch.inf)
    expected = true.log_softmax(dim=-1)
    reached = maps.logits(queries, keys).masked_fill(hidden, -torch.inf)
    # Where nothing is to be read both are minus infinity.
    apart = (expected - reached.log_softmax(dim=-1)).masked_fill(hidden, 0.0)
    found: Tensor = (expected.exp() * apart).sum(dim=-1).mean()
    return found


def _share(documents: Sequence[Captured], settings: TrainingSettings) -> Tensor:
    """Attention to tokens that are not always read, as a mean, [query heads]."""
    found = []
    for document in documents:
        keys = document.keys.float()
        token = torch.arange(len(keys))
        for start in range(0, len(document.queries), settings.queries):
            part = slice(start, start + settings.queries)
            positions = document.positions[part]
            unseen = (token > positions.unsqueeze(1)).unsqueeze(1)
            true = _true_logits(document.queries[part].float(), keys)
            weights = true.masked_fill(unseen, -torch.inf).softmax(dim=-1)
            learned = learnable(positions, len(keys), settings).unsqueeze(1)
            found.append((weights * learned).sum(dim=-1))
    return torch.cat(found).mean(dim=0).clamp(min=_LEAST_SHARE)


def _true_logits(queries: Tensor, keys: Tensor) -> Tensor:
    """Return [queries, query heads, tokens]."""
    dots = by_group(queries, keys.permute(1, 2, 0))
    return dots / math.sqrt(keys.shape[2])
