# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Levels of keys and units of queries, against their rules in plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.hashattn.paged_cases import random_level_maps, whole_levels, whole_query
from vllm_hashattn.scorer_levels import (
    LevelHash,
    LevelScorer,
    pack_levels,
    unpack_levels,
)


def project(vector: Tensor, columns: Tensor, bias: float) -> float:
    pairs = zip(vector.tolist(), columns.tolist(), strict=True)
    return math.fsum([bias, *(a * b for a, b in pairs)])


def test_a_level_is_the_integer_part_of_the_projection() -> None:
    maps = whole_levels(4, 2, 64, 128)
    keys = 3.0 * torch.randn(9, 2, 64, generator=torch.Generator().manual_seed(1))
    scorer = LevelScorer(maps)
    described = scorer.describe(keys)
    assert described.shape == (9, 2, 16) and scorer.bits == 128
    seen = set()
    for token in range(9):
        for head in range(2):
            for channel in range(32):
                exact = project(
                    keys[token, head],
                    maps.key_map[head, :, channel],
                    float(maps.key_bias[head, channel]),
                )
                wanted = min(max(math.floor(exact), 0), 15)
                byte = int(described[token, head, channel % 16])
                level = byte & 15 if channel < 16 else byte >> 4
                if abs(exact - round(exact)) > 1e-4:
                    assert level == wanted
                seen.add(level)
    assert len(seen) > 12


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.sampled_from([16, 32, 64]), st.integers(0, 1000))
def test_packing_loses_nothing(rows: int, channels: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 16, (rows, channels), generator=random)
    codes = pack_levels(levels.to(torch.uint8))
    assert codes.shape == (rows, channels // 2)
    assert torch.equal(unpack_levels(codes), levels.to(torch.uint8))


def test_queries_are_rounded_to_units() -> None:
    maps = whole_levels(4, 2, 64, 128)
    query = whole_query(3, 4, 64)
    asked, units = LevelScorer(maps).asked(query)
    assert asked.shape == (3, 4, 32) and units.shape == (3, 4)
    exact = torch.einsum("nhd,hdc->nhc", query.double(), maps.query_map.double())
    assert torch.equal(asked, asked.round())
    assert (asked.abs().amax(dim=2) == 127).all()
    off = asked.double() * units.double().unsqueeze(2) - exact
    assert (off.abs() <= 0.500001 * units.unsqueeze(2)).all()


def test_a_query_of_zeros_asks_for_nothing() -> None:
    asked, units = LevelScorer(random_level_maps(2, 1, 64, 64)).asked(
        torch.zeros(2, 64)
    )
    assert (asked == 0).all() and (units == 0).all()


def test_dot_products_are_exact() -> None:
    maps = whole_levels(6, 2, 64, 256)
    scorer = LevelScorer(maps)
    keys = torch.randn(40, 2, 64, generator=torch.Generator().manual_seed(1))
    described = scorer.describe(keys)
    asked, units = scorer.asked(whole_query(6, 64))
    found = scorer.dots(asked, described)
    levels = unpack_levels(described).to(torch.int64)
    for head in range(6):
        exact = levels[:, head // 3] @ asked[head].to(torch.int64)
        assert found[head].to(torch.int64).tolist() == exact.tolist()
    assert torch.equal(scorer.dots(asked, scorer.unpack(described)), found)
    scores = scorer.score(whole_query(6, 64), described)
    torch.testing.assert_close(scores, found * units.unsqueeze(1))


def test_maps_that_do_not_fit_together_are_refused() -> None:
    good = random_level_maps(4, 2, 64, 128)
    with pytest.raises(ValueError, match="share of a hash of levels has the shape"):
        LevelHash(good.key_map, good.key_bias, good.query_map, torch.ones(3))
    with pytest.raises(ValueError, match="channels must be a multiple of 16"):
        LevelHash(
            good.key_map[..., :8],
            good.key_bias[..., :8],
            good.query_map[..., :8],
            good.share,
        )
