# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Drawing tokens by weight: the rules in plain Python, and what they promise."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vllm_hashattn.weighted_choice import (
    CERTAIN,
    FARTHEST,
    chances,
    choice_bias,
    distances,
    sample_stride,
    steps_of,
    threshold,
)


def plain_chance(distance: int, limit: int) -> int:
    below = max(distance - limit, 0)
    octaves, rest = divmod(below, 32)
    return int(CERTAIN * (1.0 - rest / 64) / 2**octaves)


def plain_distances(
    dots: list[list[int]], steps: list[float], share: list[float], first: int, last: int
) -> list[int]:
    """Of one KV head, by the documentation."""
    stride = 8
    while (last - first) // stride > 1024:
        stride *= 2
    sampled = [t for t in range(first, last) if t // 16 % stride == stride // 2]
    offsets = []
    for head, values in enumerate(dots):
        total = math.fsum(2.0 ** (values[t] * steps[head] / 32) for t in sampled)
        of_sum = math.log2(total * stride) if sampled else 0.0
        offsets.append(round(32 * (of_sum - math.log2(share[head]))))
    found = []
    for t in range(len(dots[0])):
        best = max(
            values[t] * steps[head] - offsets[head] for head, values in enumerate(dots)
        )
        found.append(min(max(round(640 - best), 0), FARTHEST))
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 700), st.integers(1, 3), st.integers(0, 2**20))
def test_distances_follow_the_rules(tokens: int, group: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    dots = torch.randint(-2000, 2000, (group, tokens), generator=random)
    # Steps of few digits, so that no rounding is in doubt.
    steps = torch.randint(1, 40, (group,), generator=random) / 256
    share = torch.randint(1, 8, (group,), generator=random) / 8
    first, last = 3, tokens - 5
    found = distances(dots.float(), steps, share, 1, (first, last))
    expected = plain_distances(
        dots.tolist(), steps.tolist(), share.tolist(), first, last
    )
    # A sum that is just between two whole steps may fall on either side.
    apart = (found[0] - torch.tensor(expected)).abs()
    assert int(apart.max()) <= 1
    assert found.shape == (1, tokens)


def test_groups_sample_no_more_than_needed() -> None:
    assert [sample_stride(n) for n in (0, 8199, 8200, 33_000, 131_072)] == [
        *(8, 8, 16, 64, 128)
    ]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 1500), min_size=1, max_size=60),
    st.integers(0, 70),
    st.integers(-1100, 1500),
)
def test_the_threshold_is_the_largest_that_fits(
    values: list[int], wanted: int, other: int
) -> None:
    distance = torch.tensor([values], dtype=torch.int32)
    everything = torch.ones_like(distance, dtype=torch.bool)
    limit = int(threshold(distance, everything, torch.tensor([[wanted]])))

    def total(at: int) -> int:
        return sum(plain_chance(value, at) for value in values)

    assert chances(distance, torch.tensor(other)).tolist() == [
        [plain_chance(value, other) for value in values]
    ]
    assert total(limit) <= wanted * CERTAIN
    assert limit == FARTHEST or total(limit + 1) > wanted * CERTAIN


def random_distance(tokens: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (600 + 90 * torch.randn(1, 2, tokens, generator=random)).to(torch.int32)


def test_as_many_are_read_as_wanted_on_average() -> None:
    for wanted in (0, 5, 60, 400):
        counts = []
        for length in range(1000, 1040):
            bias = choice_bias(
                random_distance(length, length),
                *(torch.tensor([length]), torch.tensor([wanted]), 4, 8),
            )
            read = bias > -torch.inf
            assert read[..., :4].all() and read[..., length - 8 :].all()
            counts += (read.sum(dim=2) - 12).flatten().tolist()
        mean = sum(counts) / len(counts)
        assert 0.94 * wanted - 0.5 <= mean <= 1.01 * wanted
        assert max(counts) <= wanted + max(16, wanted // 4)


def test_all_are_read_once_where_all_are_wanted() -> None:
    bias = choice_bias(
        *(random_distance(50, 0), torch.tensor([50]), torch.tensor([38]), 4, 8)
    )
    assert (bias == 0.0).all()


def test_sums_are_right_on_average_whatever_the_estimates_are() -> None:
    tokens, first = 600, 4
    random = torch.Generator().manual_seed(0)
    # What is summed has little to do with what tokens are drawn by.
    values = torch.rand(tokens + 400, generator=random)
    ratios = []
    for length in range(tokens, tokens + 400):
        distance = random_distance(length, 1)[:, :1]
        bias = choice_bias(
            *(distance, torch.tensor([length]), torch.tensor([100]), first, 8)
        )
        weights = bias[0, 0].exp()
        ratios.append(float((weights * values[:length]).sum() / values[:length].sum()))
    mean = sum(ratios) / len(ratios)
    assert abs(mean - 1.0) < 0.02
    assert 0.01 < torch.tensor(ratios).std() < 0.5


def test_rows_of_different_lengths_do_not_matter_to_each_other() -> None:
    distance = random_distance(400, 3).expand(2, -1, -1)
    lengths, wanted = torch.tensor([400, 150]), torch.tensor([50, 20])
    both = choice_bias(distance, lengths, wanted, 4, 8)
    alone = choice_bias(distance[:1, :, :150], lengths[1:], wanted[1:], 4, 8)
    assert torch.equal(both[1, :, :150], alone[0])
    assert (both[1, :, 150:] == -torch.inf).all()


def test_units_become_steps_of_a_millionth() -> None:
    steps = steps_of(torch.tensor([0.0, 0.01, 1.0]))
    assert torch.equal(steps * 2**20, (steps * 2**20).round())
    torch.testing.assert_close(
        steps, torch.tensor([0.0, 0.4616624, 46.16624]), rtol=1e-5, atol=1e-6
    )
