# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Levels are trained to estimate the logits of attention."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.hashattn.test_training import BUDGET, document
from vllm_hashattn.attention import attention_weights
from vllm_hashattn.recall import measure_recall
from vllm_hashattn.scorer import of_group
from vllm_hashattn.scorer_levels import LevelHash, LevelScorer
from vllm_hashattn.scorer_linear import LinearScorer
from vllm_hashattn.training import Captured, TrainingSettings, train_layer
from vllm_hashattn.training_levels import train_levels

SETTINGS = TrainingSettings(
    bits=64, steps=60, queries=24, positives=8, sink_tokens=4, recent_tokens=16
)


def divergence(maps: LevelHash, held_out: Captured) -> float:
    """From the true weights of all tokens, mean over queries and heads, in nats."""
    scorer, found = LevelScorer(maps), []
    described = scorer.describe(held_out.keys)
    for query, place in zip(
        held_out.queries[::8], held_out.positions[::8].tolist(), strict=True
    ):
        part = slice(SETTINGS.sink_tokens, place + 1 - SETTINGS.recent_tokens)
        keys = held_out.keys[part]
        true = attention_weights(query, keys, keys.shape[2] ** -0.5).double()
        reached = scorer.score(query, described[part]).double().log_softmax(dim=1)
        found.append(float((true * (true.log() - reached)).sum(dim=1).mean()))
    return sum(found) / len(found)


def recall(scorer: LevelScorer | LinearScorer, held_out: Captured) -> float:
    found = []
    described = scorer.describe(held_out.keys)
    for query, place in zip(held_out.queries, held_out.positions.tolist(), strict=True):
        keys = held_out.keys[: place + 1]
        scores = of_group(scorer.score(query, described[: place + 1]), 2)
        found.append(measure_recall(scores, query, keys, BUDGET, 8).recall)
    return sum(found) / len(found)


@pytest.fixture(scope="module")
def trained() -> list[tuple[float, LevelHash]]:
    return list(train_levels([document(1), document(2)], SETTINGS))


def test_training_brings_estimates_closer(
    trained: list[tuple[float, LevelHash]],
) -> None:
    losses = [loss for loss, _ in trained]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    held_out = document(3)
    maps = trained[-1][1]
    first, last = (divergence(each, held_out) for each in (trained[0][1], maps))
    assert last < first
    # The estimates say more than that all tokens are alike.
    nothing = replace(maps, query_map=torch.zeros_like(maps.query_map))
    assert last < 0.5 * divergence(nothing, held_out)


def test_levels_find_more_than_signs_of_as_many_bits(
    trained: list[tuple[float, LevelHash]],
) -> None:
    settings = replace(SETTINGS, codes="signs", steps=150, learning_rate=3e-3)
    *_, (_, signs) = train_layer([document(1), document(2)], settings)
    held_out = document(3)
    of_signs = recall(LinearScorer(signs), held_out)
    assert recall(LevelScorer(trained[-1][1]), held_out) > of_signs


def test_the_loss_is_that_of_the_maps_as_they_are_used(
    trained: list[tuple[float, LevelHash]],
) -> None:
    # Straight-through rounding trains what the scorer computes, so a document that was
    # trained on shows about the last losses.
    last = sum(loss for loss, _ in trained[-10:]) / 10
    assert divergence(trained[-1][1], document(1)) == pytest.approx(last, rel=0.4)


def test_shares_are_attention_to_what_is_not_always_read() -> None:
    one = document(1)
    maps = next(iter(train_levels([one], SETTINGS)))[1]
    expected: list[Tensor] = []
    for query, place in zip(one.queries, one.positions.tolist(), strict=True):
        weights = attention_weights(query, one.keys[: place + 1], 32**-0.5)
        expected.append(weights[:, 4 : place + 1 - 16].sum(dim=1))
    torch.testing.assert_close(
        maps.share, torch.stack(expected).mean(dim=0).float(), rtol=1e-3, atol=1e-3
    )


def test_training_can_be_repeated() -> None:
    few = replace(SETTINGS, steps=3)
    one, again = (list(train_levels([document(1)], few)) for _ in range(2))
    assert [loss for loss, _ in one] == [loss for loss, _ in again]
    assert torch.equal(one[-1][1].key_map, again[-1][1].key_map)
    other = list(train_levels([document(1)], replace(few, seed=1)))
    assert [loss for loss, _ in one] != [loss for loss, _ in other]


@pytest.mark.parametrize("bits", [64, 128])
def test_keys_that_do_not_differ_break_nothing(bits: int) -> None:
    one = document(1)
    flat = Captured(one.queries, one.positions, torch.ones_like(one.keys))
    *_, (loss, maps) = train_levels([flat], replace(SETTINGS, bits=bits, steps=2))
    assert math.isfinite(loss) and loss < 1e-3
    for part in (maps.key_map, maps.key_bias, maps.query_map, maps.share):
        assert part.isfinite().all()


def test_documents_that_are_too_short_are_refused() -> None:
    short = document(1)
    short = Captured(short.queries, short.positions, short.keys[:30])
    with pytest.raises(ValueError, match="30 tokens; training needs 36"):
        next(train_levels([short], SETTINGS))


def test_codes_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ValueError, match="codes 'bits' were asked for"):
        TrainingSettings(codes="bits")
    with pytest.raises(ValueError, match="100 bits were asked for; codes of levels"):
        TrainingSettings(bits=100)


def test_more_channels_than_keys_have_are_refused() -> None:
    with pytest.raises(ValueError, match="levels of 128 bits at most"):
        next(train_levels([document(1)], replace(SETTINGS, bits=192)))


def test_queries_with_few_keys_do_not_count() -> None:
    one = document(1)
    early = torch.where(torch.arange(64) % 2 == 0, 70, one.positions)
    mixed = Captured(one.queries, early, one.keys)
    later = Captured(one.queries[1::2], one.positions[1::2], one.keys)
    few = replace(SETTINGS, steps=2)
    found, expected = (
        [loss for loss, _ in train_levels([each], few)] for each in (mixed, later)
    )
    assert found == expected
    none = Captured(one.queries, torch.full((64,), 70), one.keys)
    with pytest.raises(ValueError, match="no query in it has 64 keys"):
        next(train_levels([none], few))


def test_the_size_of_keys_does_not_matter() -> None:
    one = document(1)
    losses = []
    for size in (0.1, 1.0, 10.0):
        scaled = Captured(one.queries / size, one.positions, one.keys * size)
        losses.append([loss for loss, _ in train_levels([scaled], SETTINGS)][-1])
    assert max(losses) < 1.3 * min(losses)
