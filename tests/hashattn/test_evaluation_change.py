# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How sure differences to dense decoding are."""

import math
import statistics

import pytest
import torch

from vllm_hashattn.evaluation_change import (
    block_means,
    change_of_blocks,
    change_of_pairs,
    mean_change,
)


def test_blocks_hold_all_tokens() -> None:
    differences = torch.arange(64.0)
    assert block_means(differences) == (7.5, 23.5, 39.5, 55.5)
    assert block_means(differences[:23]) == (5.5, 17.0)  # 12 tokens, and 11
    assert block_means(differences[:2]) == (0.0, 1.0)


@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_intervals_of_blocks_hold_the_mean_19_times_of_20(memory: float) -> None:
    """Also where a token's difference is much like that of the token before it."""
    random = torch.Generator().manual_seed(0)
    held = naive = 0
    for _ in range(400):
        noise = torch.randn(6, 256, generator=random)
        for token in range(1, 256):
            noise[:, token] += memory * noise[:, token - 1]
        differences = 0.3 + noise
        blocks = [mean for each in differences for mean in block_means(each)]
        change = change_of_blocks(blocks)
        low, high = change.interval
        assert change.mean == pytest.approx(float(differences.mean()), abs=1e-5)
        held += low < 0.3 < high
        half = 1.96 * float(differences.std()) / differences.numel() ** 0.5
        naive += abs(change.mean - 0.3) < half
    assert 0.92 <= held / 400 <= 0.98
    # Of single tokens the interval would be too narrow.
    assert memory == 0.0 or naive / 400 < 0.75


@pytest.mark.parametrize("lost, won", [(0, 0), (3, 0), (4, 2), (50, 0)])
def test_pairs_follow_the_formula(lost: int, won: int) -> None:
    differences = [-1.0] * lost + [1.0] * won + [0.0] * (50 - lost - won)
    change = change_of_pairs(differences)
    # Agresti and Min: half a pair more in each of the four cells.
    more, less, n = won + 0.5, lost + 0.5, 52.0
    middle = (more - less) / n
    error = math.sqrt(more + less - (more - less) ** 2 / n) / n
    assert change.middle == pytest.approx(middle)
    assert change.error == pytest.approx(error)
    low, high = change.interval
    assert low <= change.mean <= high
    assert change.mean == pytest.approx((won - lost) / 50)
    assert (low, high) == pytest.approx(
        (min(change.mean, middle - 1.96 * error), middle + 1.96 * error)
    )


def test_intervals_of_pairs_hold_the_mean_19_times_of_20() -> None:
    random = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(2000):
        drawn = torch.rand(50, generator=random)
        differences = ((drawn > 0.97).float() - (drawn < 0.08).float()).tolist()
        low, high = change_of_pairs(differences).interval
        held += low < 0.03 - 0.08 < high
    assert 0.93 <= held / 2000 <= 0.99


def test_the_mean_of_kinds_is_surer_than_each() -> None:
    kinds = [change_of_pairs([0.0] * 40 + [-1.0] * each) for each in (2, 5, 9)]
    found = mean_change(kinds)
    assert found.mean == pytest.approx(statistics.fmean(each.mean for each in kinds))
    squares = sum(each.error**2 for each in kinds)
    assert found.error == pytest.approx(math.sqrt(squares) / 3)
