# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Triton kernels for attention over given positions, against attention.py."""

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tests.hashattn.test_triton_cases import RowCase, row_case
from tests.hashattn.test_triton_process import interpreted
from vllm_hashattn.attention import attend as reference
from vllm_hashattn.attention import attend_biased
from vllm_hashattn.budget import Budget
from vllm_hashattn.triton_attention import attend
from vllm_hashattn.triton_workspace import LevelBuffers, Workspace

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NONE_ALWAYS = Budget(1e-9, 0, sink_tokens=0, recent_tokens=1)


def random_positions(
    case: RowCase, chosen: list[int], before: int, space: Workspace
) -> None:
    for i, length in enumerate(case.tokens.tolist()):
        if chosen[i] < length:
            for head in range(case.data.shape[1]):
                mixed = torch.randperm(min(length, before))
                some = mixed[: chosen[i]].sort().values
                space.positions[i, head, : chosen[i]] = some


def run(
    case: RowCase,
    query: Tensor,
    chosen: list[int],
    scale: float,
    parts: int = 4,
    before: int = 1 << 20,
) -> tuple[Tensor, list[Tensor]]:
    """What the kernels say, and what is right in float64."""
    heads, dim = query.shape[1:]
    most = int(case.tokens.max())
    kv_heads = case.data.shape[1]
    space = Workspace.allocate(
        *(heads, kv_heads, dim, 128, most, max(max(chosen), 1), len(query)),
        *(parts, "cpu"),
    )
    for buffer in (space.tops, space.totals, space.sums):
        buffer.fill_(float("nan"))
    space.positions.fill_(1 << 30)
    random_positions(case, chosen, before, space)
    out = torch.full_like(query, float("nan"))
    attend(
        *(case.data, query, case.blocks, case.tokens),
        torch.tensor(chosen, dtype=torch.int32),
        *(NONE_ALWAYS, scale, space, out),
    )
    exact = []
    for i, (keys, values) in enumerate(zip(case.keys, case.values, strict=True)):
        positions = space.positions[i, :, : chosen[i]].long()
        if chosen[i] >= len(keys):
            positions = torch.arange(len(keys)).expand(kv_heads, -1)
        wide = [each.double() for each in (query[i], keys, values)]
        exact.append(reference(*wide, scale, positions))
    return out, exact


def compare(found: Tensor, exact: list[Tensor]) -> None:
    tolerance = max(4.0 * torch.finfo(found.dtype).eps, 2e-5)
    for one, wanted in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), wanted, rtol=tolerance, atol=tolerance)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(2, 2, 64), (15, 3, 96), (16, 1, 128)]
)
def test_attention_over_positions_and_over_all(
    dtype: torch.dtype, heads: int, kv_heads: int, dim: int
) -> None:
    case = row_case([1, 300, 90, 33], kv_heads, dim, dtype, block_tokens=48)
    query = torch.randn(4, heads, dim).to(dtype)
    compare(*run(case, query, [1, 150, 90, 7], dim**-0.5))


@interpreted
@pytest.mark.parametrize("parts", [1, 16])
@pytest.mark.parametrize("token_major", [False, True])
def test_any_number_of_parts_and_either_order_of_rows(
    parts: int, token_major: bool
) -> None:
    case = row_case([700, 64, 65], 2, 64, torch.bfloat16, token_major=token_major)
    # Queries as slices of a projection of queries, keys and values.
    query = torch.randn(3, 8, 64).to(torch.bfloat16)[:, 2:6]
    compare(*run(case, query, [129, 64, 64], 0.125, parts))


@interpreted
def test_sequences_of_no_tokens_give_zeros() -> None:
    case = row_case([0, 40, 0], 1, 64)
    query = torch.randn(3, 2, 64)
    out, exact = run(case, query, [0, 5, 3], 0.125)
    assert torch.equal(out[::2], torch.zeros(2, 2, 64))
    compare(out[1:2], exact[1:2])


@interpreted
def test_large_products_do_not_overflow() -> None:
    case = row_case([500], 1, 64)
    query = 1e4 * torch.randn(1, 2, 64)
    out, exact = run(case, query, [400], 1.0)
    assert out.isfinite().all()
    compare(out, exact)


@interpreted
def test_numbers_that_are_none_are_seen_only_where_they_are_read() -> None:
    case = row_case([200], 1, 64)
    query = torch.randn(1, 2, 64)
    block, offset = case.place(0)
    case.data[block[150:], :, offset[150:], :128] = float("nan")
    out, exact = run(case, query, [80], 0.125, before=150)
    compare(out, exact)
    assert run(case, query, [151], 0.125)[0].isnan().all()
    assert run(case, query, [200], 0.125)[0].isnan().all()


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
def test_drawn_tokens_count_for_as_many_as_they_stand_for(dtype: torch.dtype) -> None:
    case = row_case([300, 20, 90], 2, 64, dtype)
    query = torch.randn(3, 6, 64).to(dtype)
    space = Workspace.allocate(
        *(6, 2, 64, 128, 300, 60, 3, 4, "cpu"),
        levels=True,
    )
    buffers = space.buffers
    assert isinstance(buffers, LevelBuffers)
    space.positions.fill_(1 << 30)
    buffers.extras.fill_(float("nan"))
    # The second is read whole; of the others each head reads more or less than 60, and
    # of the last as many as there are, which is not the same as to read it whole.
    read = [[70, 41], [9, 9], [90, 1]]
    buffers.rows.copy_(torch.tensor(read))
    bias = [torch.full((2, n), -torch.inf) for n in case.tokens.tolist()]
    bias[1].fill_(0.0)
    for i in (0, 2):
        for head, count in enumerate(read[i]):
            some = torch.randperm(len(case.keys[i]))[:count].sort().values
            space.positions[i, head, :count] = some
            extra = 8.0 * torch.rand(count)
            buffers.extras[i, head, :count] = extra
            bias[i][head, some] = extra * math.log(2.0)
    out = torch.full_like(query, float("nan"))
    attend(
        *(case.data, query, case.blocks, case.tokens),
        torch.tensor([60, 60, 60], dtype=torch.int32),
        *(NONE_ALWAYS, 0.125, space, out),
    )
    exact = []
    for i, (keys, values) in enumerate(zip(case.keys, case.values, strict=True)):
        wide = [each.double() for each in (query[i], keys, values)]
        exact.append(attend_biased(*wide, 0.125, bias[i].double()))
    compare(out, exact)
