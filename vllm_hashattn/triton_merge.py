# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
# mypy: disable-error-code="import-untyped,untyped-decorator"
"""Triton kernel that joins what the programs of one sequence found.

Not run on a GPU; see triton_encode.py for that and for the rules of kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .triton_workspace import Workspace

_LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def _merge(
    tops: tl.tensor,
    totals: tl.tensor,
    sums: tl.tensor,
    out: tl.tensor,
    out_sequence: int,
    out_head: int,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROOM: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    """Grid: sequences, query heads. Zeros for a sequence of no tokens."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    part = (sequence.to(tl.int64) * HEADS + head) * PARTS + tl.arange(0, PARTS)
    dim = tl.arange(0, ROOM)
    inside = dim < HEAD_DIM
    top = tl.load(tops + part)
    total = tl.load(totals + part)
    used = total > 0.0
    # Finite even if no part has read anything; parts that have not weigh nothing.
    highest = tl.maximum(tl.max(top, axis=0), _LOWEST)
    by = tl.exp2(top - highest)
    all_weights = tl.sum(by * total, axis=0)
    parts = tl.load(
        sums + part[:, None] * HEAD_DIM + dim[None, :],
        mask=used[:, None] & inside[None, :],
        other=0.0,
    )
    result = tl.sum(parts * by[:, None], axis=0)
    result = result / tl.where(all_weights != 0.0, all_weights, 1.0)
    place = out + sequence * out_sequence + head * out_head + dim
    tl.store(place, result.to(out.dtype.element_ty), mask=inside)


def merge(workspace: Workspace, out: Tensor) -> None:
    """Write the attention of all parts together.

    Args:
        workspace: What ``triton_attention.attend`` found.
        out: [sequences, query heads, head_dim], the last dimension contiguous.
    """
    sequences, heads, head_dim = out.shape
    _merge[(sequences, heads)](
        *(workspace.tops, workspace.totals, workspace.sums, out),
        *out.stride()[:2],
        HEADS=heads,
        HEAD_DIM=head_dim,
        ROOM=triton.next_power_of_2(head_dim),
        PARTS=workspace.tops.shape[2],
    )
