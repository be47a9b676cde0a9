# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Scores of every scorer, against loops in float64."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from vllm_hashattn.attention import attention_weights
from vllm_hashattn.budget import Budget
from vllm_hashattn.codes import agreement, pack_signs
from vllm_hashattn.scorer import (
    OracleScorer,
    RandomScorer,
    Scorer,
    WindowScorer,
    by_group,
    of_group,
)
from vllm_hashattn.scorer_linear import LinearHash, LinearScorer
from vllm_hashattn.scorer_paper import HeadNetworks, PaperScorer
from vllm_hashattn.scorer_quest import QuestScorer
from vllm_hashattn.selection import pivotal_tokens

HEADS, KV_HEADS, DIM, TOKENS = 6, 2, 64, 45
GROUP = HEADS // KV_HEADS


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def query() -> Tensor:
    return normal(HEADS, DIM, seed=1)


@pytest.fixture
def keys() -> Tensor:
    return normal(TOKENS, KV_HEADS, DIM, seed=2)


def linear(bits: int = 128) -> LinearHash:
    return LinearHash(
        key_map=normal(KV_HEADS, DIM, bits, seed=3),
        key_bias=normal(KV_HEADS, bits, seed=4),
        query_map=normal(HEADS, DIM, bits, seed=5),
        query_bias=normal(HEADS, bits, seed=6),
    )


def networks(seed: int) -> HeadNetworks:
    sizes = (DIM, 128, 128, 32)
    return HeadNetworks(
        [
            normal(HEADS, i, o, seed=seed + i) / i**0.5
            for i, o in itertools.pairwise(sizes)
        ],
        [normal(HEADS, o, seed=seed + 7 * o) for o in sizes[1:]],
    )


def signs(values: np.ndarray) -> np.ndarray:
    return np.where(values >= 0, 1.0, -1.0)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_linear_scores_are_products_of_signs(
    query: Tensor, keys: Tensor, asymmetric: bool
) -> None:
    maps = linear()
    scorer = LinearScorer(maps, asymmetric=asymmetric)
    described = scorer.describe(keys)
    assert described.dtype == torch.uint8
    assert described.shape == (TOKENS, KV_HEADS, 16)
    found = scorer.score(query, described)
    for head in range(HEADS):
        kv = head // GROUP
        asked = query[head].double().numpy() @ maps.query_map[head].double().numpy()
        asked = asked + maps.query_bias[head].double().numpy()
        stored = keys[:, kv].double().numpy() @ maps.key_map[kv].double().numpy()
        stored = signs(stored + maps.key_bias[kv].double().numpy())
        expected = stored @ (asked if asymmetric else signs(asked))
        np.testing.assert_allclose(found[head].numpy(), expected, rtol=1e-4, atol=1e-3)


def by_layers(net: HeadNetworks, head: int, vector: np.ndarray) -> np.ndarray:
    for step, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        vector = vector @ weight[head].double().numpy() + bias[head].double().numpy()
        if step < 2:
            vector = vector / (1.0 + np.exp(-vector))  # SiLU
    return vector


def test_paper_scores_compare_a_code_for_each_query_head(
    query: Tensor, keys: Tensor
) -> None:
    key_nets, query_nets = networks(100), networks(200)
    scorer = PaperScorer(key_nets, query_nets, KV_HEADS)
    described = scorer.describe(keys)
    assert described.shape == (TOKENS, KV_HEADS, GROUP * 4)
    assert scorer.bits == 32 * GROUP
    found = scorer.score(query, described)
    for head in range(HEADS):
        asked = signs(by_layers(query_nets, head, query[head].double().numpy()))
        for token in range(TOKENS):
            key = keys[token, head // GROUP].double().numpy()
            stored = signs(by_layers(key_nets, head, key))
            assert found[head, token] == asked @ stored


def test_quest_bounds_every_dot_product_of_the_page(
    query: Tensor, keys: Tensor
) -> None:
    scorer = QuestScorer(DIM, page_tokens=16)
    found = scorer.score(query, scorer.describe(keys))
    dots = OracleScorer(DIM).score(query, keys)
    assert (found >= dots - 1e-4).all()
    for head in range(HEADS):
        for page in range(-(-TOKENS // 16)):
            members = keys[16 * page : 16 * page + 16, head // GROUP].double().numpy()
            asked = query[head].double().numpy()
            bound = np.maximum(
                asked * members.min(axis=0), asked * members.max(axis=0)
            ).sum()
            shown = found[head, 16 * page : 16 * page + 16].numpy()
            np.testing.assert_allclose(shown, bound, rtol=1e-5)


def test_oracle_scores_are_in_the_order_of_attention(
    query: Tensor, keys: Tensor
) -> None:
    found = OracleScorer(DIM).score(query, keys)
    weights = attention_weights(query, keys, DIM**-0.5)
    assert torch.equal(found.argsort(dim=1), weights.argsort(dim=1))


def test_window_reads_the_newest_tokens(query: Tensor, keys: Tensor) -> None:
    scorer = WindowScorer()
    scores = of_group(scorer.score(query, scorer.describe(keys)), KV_HEADS)
    budget = Budget(0.3, min_tokens=0, sink_tokens=2, recent_tokens=3)
    chosen = pivotal_tokens(scores, budget)
    assert chosen.tolist() == [[0, 1, *range(TOKENS - 12, TOKENS)]] * KV_HEADS


def test_random_scores_can_be_repeated(query: Tensor, keys: Tensor) -> None:
    one, again, other = (RandomScorer(seed) for seed in (1, 1, 2))
    found = [s.score(query, s.describe(keys)) for s in (one, again, other)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


SCORERS = {
    "linear": lambda: LinearScorer(linear()),
    "asymmetric": lambda: LinearScorer(linear(64), asymmetric=True),
    "paper": lambda: PaperScorer(networks(1), networks(2), KV_HEADS),
    "oracle": lambda: OracleScorer(DIM),
    "window": WindowScorer,
}


@pytest.mark.parametrize("name", SCORERS)
def test_descriptions_do_not_depend_on_how_keys_arrive(name: str, keys: Tensor) -> None:
    scorer: Scorer = SCORERS[name]()
    at_once = scorer.describe(keys)
    parts = [scorer.describe(keys[i : i + 7]) for i in range(0, TOKENS, 7)]
    assert torch.equal(torch.cat(parts), at_once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_takes_what_models_compute_in(
    name: str, dtype: torch.dtype, query: Tensor, keys: Tensor
) -> None:
    scorer: Scorer = SCORERS[name]()
    found = scorer.score(query.to(dtype), scorer.describe(keys.to(dtype)))
    assert found.shape == (HEADS, TOKENS)
    assert found.dtype == torch.float32


BATCHED = {
    **SCORERS,
    "quest": lambda: QuestScorer(DIM, page_tokens=16),
}


@pytest.mark.parametrize("leading", [(1,), (5,), (2, 3)])
@pytest.mark.parametrize("name", BATCHED)
def test_queries_of_many_steps_are_scored_as_each_is_alone(
    name: str, leading: tuple[int, ...], keys: Tensor
) -> None:
    scorer: Scorer = BATCHED[name]()
    queries = normal(*leading, HEADS, DIM, seed=9)
    described = scorer.describe(keys)
    found = scorer.score(queries, described)
    assert found.shape == (*leading, HEADS, TOKENS)
    alone = [scorer.score(each, described) for each in queries.flatten(0, -3)]
    expected = torch.stack(alone)
    torch.testing.assert_close(found.flatten(0, -3), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(scorer.score(queries, scorer.unpack(described)), found)


def test_random_scores_of_many_steps_differ(keys: Tensor) -> None:
    scorer = RandomScorer()
    found = scorer.score(normal(4, HEADS, DIM), scorer.describe(keys))
    assert found.shape == (4, HEADS, TOKENS)
    assert found.flatten().unique().numel() > 3 * HEADS * TOKENS


def test_codes_agree_as_their_bits_do(query: Tensor, keys: Tensor) -> None:
    maps = linear()
    described = LinearScorer(maps).describe(keys)
    projected = torch.einsum("hd,hdb->hb", query, maps.query_map) + maps.query_bias
    codes = pack_signs(projected).unsqueeze(1)
    stored = described.transpose(0, 1).repeat_interleave(GROUP, dim=0)
    found = LinearScorer(maps).score(query, described)
    assert torch.equal(found, agreement(codes, stored).float())


def test_scores_of_a_group_are_summed() -> None:
    scores = torch.arange(12.0).reshape(4, 3)
    assert of_group(scores, 2).tolist() == [[3.0, 5.0, 7.0], [15.0, 17.0, 19.0]]
    many = torch.stack([scores, -scores])
    assert torch.equal(of_group(many, 2)[1], -of_group(scores, 2))


@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_query_heads_are_multiplied_by_the_matrix_of_their_group(
    leading: tuple[int, ...],
) -> None:
    vectors, matrices = normal(*leading, HEADS, 5), normal(KV_HEADS, 5, 7, seed=1)
    by_head = matrices.repeat_interleave(GROUP, dim=0)
    expected = torch.einsum("...hi,hio->...ho", vectors, by_head)
    torch.testing.assert_close(by_group(vectors, matrices), expected)


def test_maps_that_do_not_fit_are_refused() -> None:
    good = linear()
    with pytest.raises(ValueError, match="query_bias of a linear hash"):
        LinearHash(good.key_map, good.key_bias, good.query_map, good.key_bias)
    with pytest.raises(ValueError, match="multiple of 8"):
        LinearHash(
            *(x[..., :12] for x in (good.key_map, good.key_bias)),
            *(x[..., :12] for x in (good.query_map, good.query_bias)),
        )


def test_networks_that_do_not_fit_are_refused() -> None:
    good = networks(0)
    with pytest.raises(ValueError, match="inputs come"):
        HeadNetworks(good.weights[::-1], good.biases[::-1])
    with pytest.raises(ValueError, match="one of each"):
        HeadNetworks(good.weights, good.biases[:2])
