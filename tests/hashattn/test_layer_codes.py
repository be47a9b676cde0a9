# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Codes of a layer, of either kind of hash, on any tensor-parallel rank."""

import pytest
import torch

from tests.hashattn.paged_cases import paged, random_maps, whole_levels
from vllm_hashattn.attention import attend
from vllm_hashattn.budget import Budget
from vllm_hashattn.hash_file import HashFile
from vllm_hashattn.kernels import decode
from vllm_hashattn.layer_codes import LayerCodes, code_bytes, of_rank
from vllm_hashattn.paper_file import PaperFile, PaperNetworks
from vllm_hashattn.scorer import of_group
from vllm_hashattn.scorer_levels import LevelHash
from vllm_hashattn.scorer_linear import LinearHash
from vllm_hashattn.scorer_paper import HeadNetworks, PaperScorer
from vllm_hashattn.selection import pivotal_tokens


def networks(heads: int, dim: int, bits: int, seed: int = 0) -> PaperNetworks:
    random = torch.Generator().manual_seed(seed)

    def side() -> HeadNetworks:
        return HeadNetworks(
            [
                torch.randn(heads, dim, 128, generator=random),
                torch.randn(heads, 128, bits, generator=random),
            ],
            [
                torch.randn(heads, 128, generator=random),
                torch.randn(heads, bits, generator=random),
            ],
        )

    return PaperNetworks(side(), side())


def test_the_kernel_chooses_by_the_papers_codes_as_the_scorer_does() -> None:
    heads, kv_heads, dim, length = 6, 2, 64, 300
    maps = networks(heads, dim, 32)
    codes = LayerCodes(maps, kv_heads)
    case = paged([length], kv_heads, dim, torch.float32, None, code_bytes=12)
    token = torch.arange(length)
    block = case.blocks[0].to(torch.int64)[token // 32]
    made = codes.of_keys(case.keys[0])
    assert isinstance(made, torch.Tensor)
    case.cache.codes()[block, :, token % 32] = made
    query = torch.randn(1, heads, dim)
    budget = Budget(0.1, 0, 4, 8)
    chosen = torch.tensor([budget.tokens(length)], dtype=torch.int32)
    scale = dim**-0.5
    found = decode(
        *(case.cache, query, codes.of_queries(query), case.blocks, case.tokens),
        *(chosen, budget, scale),
    )
    scorer = PaperScorer(maps.keys, maps.queries, kv_heads)
    scores = scorer.score(query[0], scorer.describe(case.keys[0]))
    picked = pivotal_tokens(of_group(scores, kv_heads), budget)
    exact = attend(query[0], case.keys[0], case.values[0], scale, picked)
    torch.testing.assert_close(found[0], exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("ranks", "kv_each"), [(2, 2), (4, 1), (8, 1)])
def test_ranks_take_their_heads(ranks: int, kv_each: int) -> None:
    whole = random_maps(8, 4, 64, 128)
    each = 8 // ranks
    for rank in range(ranks):
        part = of_rank(whole, each, kv_each, lambda rank=rank: rank)
        assert isinstance(part, LinearHash)
        first = rank * each
        assert torch.equal(part.query_map, whole.query_map[first : first + each])
        group = 2
        kv = first // group
        assert torch.equal(part.key_map, whole.key_map[kv : kv + kv_each])
        assert torch.equal(part.key_bias, whole.key_bias[kv : kv + kv_each])


def test_ranks_take_their_heads_of_levels() -> None:
    whole = whole_levels(8, 4, 64, 128)
    part = of_rank(whole, 4, 2, lambda: 1)
    assert isinstance(part, LevelHash)
    assert torch.equal(part.query_map, whole.query_map[4:])
    assert torch.equal(part.share, whole.share[4:])
    assert torch.equal(part.key_map, whole.key_map[2:])
    assert torch.equal(part.key_bias, whole.key_bias[2:])


def test_ranks_take_their_heads_of_the_papers_networks() -> None:
    whole = networks(8, 64, 32)
    part = of_rank(whole, 4, 2, lambda: 1)
    assert isinstance(part, PaperNetworks)
    assert torch.equal(part.keys.weights[1], whole.keys.weights[1][4:])
    assert torch.equal(part.queries.biases[0], whole.queries.biases[0][4:])


def test_one_rank_takes_all() -> None:
    maps = random_maps(8, 4, 64, 128)
    assert of_rank(maps, 8, 4, lambda: 0) is maps


def test_sizes_of_codes() -> None:
    model = {"num_key_value_heads": 2}
    assert code_bytes(HashFile({0: random_maps(4, 2, 64, 256)}, model, {})) == 32
    assert code_bytes(HashFile({0: whole_levels(4, 2, 64, 128)}, model, {})) == 16
    assert code_bytes(PaperFile({0: networks(6, 64, 32)}, model, {})) == 12
    uneven = {0: random_maps(4, 2, 64, 128), 1: random_maps(4, 2, 64, 256)}
    with pytest.raises(ValueError, match=r"codes of \[16, 32\] bytes"):
        code_bytes(HashFile(uneven, model, {}))
