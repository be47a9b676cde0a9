# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Training finds the keys that matter, better than random hyperplanes do."""

import pytest
import torch
from torch import Tensor

from vllm_hashattn.budget import Budget
from vllm_hashattn.recall import measure_recall
from vllm_hashattn.scorer import OracleScorer, RandomScorer, Scorer
from vllm_hashattn.scorer_linear import LinearScorer
from vllm_hashattn.training import (
    Captured,
    TrainingSettings,
    learnable,
    pivotal,
    train_layer,
)

HEADS, KV_HEADS, DIM, TOKENS = 4, 2, 32, 600
SETTINGS = TrainingSettings(
    codes="signs",
    bits=64, steps=150, queries=24, positives=8, sink_tokens=4, recent_tokens=16,
    learning_rate=3e-3,
)  # fmt: skip
BUDGET = Budget(0.1, min_tokens=0, sink_tokens=4, recent_tokens=16)


def document(seed: int) -> Captured:
    """Keys with a large common part; queries look at a few directions of the rest."""
    random = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(99)
    middle = 4.0 * torch.randn(KV_HEADS, DIM, generator=shared)
    looks = torch.randn(HEADS, DIM, 6, generator=shared)
    keys = middle + torch.randn(TOKENS, KV_HEADS, DIM, generator=random)
    wishes = torch.randn(64, HEADS, 6, generator=random)
    queries = torch.einsum("qhr,hdr->qhd", wishes, looks)
    positions = torch.arange(TOKENS - 64, TOKENS)
    return Captured(queries, positions, keys)


def recall(scorer: Scorer, held_out: Captured) -> float:
    found = []
    for query, position in zip(
        held_out.queries, held_out.positions.tolist(), strict=True
    ):
        keys = held_out.keys[: position + 1]
        scores = scorer.score(query, scorer.describe(keys))
        found.append(measure_recall(scores, query, keys, BUDGET, 8).recall)
    return sum(found) / len(found)


def test_trained_hash_finds_more_than_random_hyperplanes() -> None:
    steps = list(train_layer([document(1), document(2)], SETTINGS))
    losses = [loss for loss, _ in steps]
    held_out = document(3)
    random, trained = (
        recall(LinearScorer(maps), held_out) for maps in (steps[0][1], steps[-1][1])
    )
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    oracle = recall(OracleScorer(DIM), held_out)
    chance = recall(RandomScorer(), held_out)
    assert chance < random < trained < oracle
    assert trained - chance > 1.5 * (random - chance)


def test_training_can_be_repeated() -> None:
    few = TrainingSettings(
        codes="signs",
        bits=16,
        steps=3,
        queries=4,
        positives=4,
        sink_tokens=2,
        recent_tokens=4,
    )
    one, again = (list(train_layer([document(1)], few)) for _ in range(2))
    assert [loss for loss, _ in one] == [loss for loss, _ in again]
    assert torch.equal(one[-1][1].key_map, again[-1][1].key_map)
    assert not torch.equal(one[0][1].key_map, one[-1][1].key_map)


def test_documents_that_are_too_short_are_refused() -> None:
    short = document(1)
    short = Captured(short.queries, short.positions, short.keys[:30])
    with pytest.raises(ValueError, match="30 tokens; training needs 36"):
        next(train_layer([short], SETTINGS))


def test_only_earlier_keys_that_are_not_read_anyway_are_learned() -> None:
    positions = torch.tensor([20, 40])
    found = learnable(positions, 50, SETTINGS)
    assert [row.nonzero().flatten().tolist() for row in found] == [
        [4],
        list(range(4, 25)),
    ]


def test_keys_to_find_have_the_largest_products() -> None:
    queries, keys = torch.ones(1, 1, 1), torch.arange(10.0).reshape(10, 1, 1)
    learned = torch.tensor([[0.0] + [1.0] * 7 + [0.0, 0.0]])
    found: Tensor = pivotal(queries, keys, learned, 3)
    assert found[0, 0].nonzero().flatten().tolist() == [5, 6, 7]
    # With fewer candidates than keys to find, the others are not to be found.
    few = torch.tensor([[0.0] * 8 + [1.0, 0.0]])
    assert pivotal(queries, keys, few, 3)[0, 0].nonzero().flatten().tolist() == [8]
