# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Codes: their bits, their order, and what agreement means."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_hashattn.codes import agreement, pack_signs, unpack_signs

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 16))


def test_bit_order_is_least_significant_first() -> None:
    projections = -torch.ones(1, 16)
    projections[0, 0] = projections[0, 9] = 1.0
    assert pack_signs(projections).tolist() == [[0b1, 0b10]]


def test_zero_counts_as_positive_and_so_does_minus_zero() -> None:
    assert pack_signs(torch.tensor([[0.0, -0.0] + [-1e-30] * 6])).tolist() == [[0b11]]


def test_no_number_counts_as_negative() -> None:
    assert pack_signs(torch.full((1, 8), torch.nan)).tolist() == [[0]]


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.integers(0, 2**31))
def test_agreement_is_the_dot_product_of_signs(
    shape: tuple[int, int, int], seed: int
) -> None:
    rows, columns, width = shape
    random = torch.Generator().manual_seed(seed)
    one = torch.randn(rows, 1, 8 * width, generator=random)
    other = torch.randn(columns, 8 * width, generator=random)
    signs = [torch.where(x >= 0, 1.0, -1.0).double() for x in (one, other)]
    expected = (signs[0] * signs[1]).sum(-1)
    found = agreement(pack_signs(one), pack_signs(other))
    assert found.dtype == torch.int32
    assert torch.equal(found.double(), expected)
    assert torch.equal(unpack_signs(pack_signs(one)).double(), signs[0])


def test_codes_are_whole_bytes() -> None:
    with pytest.raises(ValueError, match="12 bits was asked for"):
        pack_signs(torch.zeros(1, 12))
