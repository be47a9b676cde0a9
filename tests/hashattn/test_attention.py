# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Attention over chosen tokens, against loops in float64."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_hashattn.attention import attend, attention_weights

Floats = NDArray[np.float64]


def by_hand(
    query: Floats, keys: Floats, values: Floats, scale: float, chosen: list[list[int]]
) -> Floats:
    kv_heads = keys.shape[1]
    group = len(query) // kv_heads
    result = np.zeros_like(query)
    for head in range(len(query)):
        places = chosen[head // group]
        dots = [scale * float(query[head] @ keys[t, head // group]) for t in places]
        top = max(dots)
        weights = [math.exp(dot - top) for dot in dots]
        for weight, t in zip(weights, places, strict=True):
            result[head] += weight / sum(weights) * values[t, head // group]
    return result


def drawn(heads: int, kv_heads: int, dim: int, tokens: int) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(heads + kv_heads + dim + tokens)
    shapes = (heads, dim), (tokens, kv_heads, dim), (tokens, kv_heads, dim)
    return tuple(
        torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes
    )


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (9, 3), (14, 2), (8, 8)])
@pytest.mark.parametrize("dim", [64, 96, 128])
def test_chosen_tokens_are_attended_to(heads: int, kv_heads: int, dim: int) -> None:
    query, keys, values = drawn(heads, kv_heads, dim, 50)
    random = np.random.default_rng(heads)
    chosen = [sorted(random.permutation(50)[:17].tolist()) for _ in range(kv_heads)]
    expected = by_hand(query.numpy(), keys.numpy(), values.numpy(), dim**-0.5, chosen)
    found = attend(query, keys, values, dim**-0.5, torch.tensor(chosen))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_all_tokens_are_dense_attention() -> None:
    query, keys, values = drawn(6, 2, 64, 40)
    everything = torch.arange(40).expand(2, -1)
    dense = torch.nn.functional.scaled_dot_product_attention(
        query.unsqueeze(1),
        keys.permute(1, 0, 2).repeat_interleave(3, dim=0),
        values.permute(1, 0, 2).repeat_interleave(3, dim=0),
    ).squeeze(1)
    torch.testing.assert_close(attend(query, keys, values, 0.125, everything), dense)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_result_has_the_dtype_of_the_query(dtype: torch.dtype) -> None:
    query, keys, values = (x.to(dtype) for x in drawn(4, 2, 64, 30))
    chosen = torch.tensor([[0, 5, 29], [1, 2, 3]])
    found = attend(query, keys, values, 0.125, chosen)
    exact = attend(query.double(), keys.double(), values.double(), 0.125, chosen)
    assert found.dtype == dtype
    tolerance = 4.0 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


def test_weights_sum_to_one_and_give_the_dense_result() -> None:
    query, keys, values = drawn(6, 2, 64, 40)
    weights = attention_weights(query, keys, 0.125)
    torch.testing.assert_close(weights.sum(1), torch.ones(6, dtype=torch.float64))
    by_head = values.permute(1, 0, 2).repeat_interleave(3, dim=0)
    everything = torch.arange(40).expand(2, -1)
    torch.testing.assert_close(
        torch.einsum("ht,htd->hd", weights, by_head),
        attend(query, keys, values, 0.125, everything),
    )


def test_heads_that_cannot_share_are_refused() -> None:
    query, keys, values = drawn(5, 2, 64, 10)
    with pytest.raises(ValueError, match="5 query heads cannot share 2 KV heads"):
        attend(query, keys, values, 1.0, torch.zeros(2, 1, dtype=torch.int64))
