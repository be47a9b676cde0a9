# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What one step asks of each layer: which tokens decode, what they read, what prefills.

Planned once for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .budget import Budget

# So many new tokens of a sequence, as speculative decoding has to verify, are cheaper
# one by one, each with its own length, than as a prefill. They are read whole.
FEW_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Prefill:
    """Several new tokens of one sequence.

    Attributes:
        row: Of the block table.
        first: Place of the first token in the batch.
        new: How many.
        before: Tokens of the sequence before them.
    """

    row: int
    first: int
    new: int
    before: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step.

    Attributes:
        places: Of tokens that decode, in the batch, int64 [decodes].
        rows: Of their sequences in the block table, int64 [decodes].
        held: Tokens that each could read, int32 [decodes].
        chosen: Tokens that a sparse layer reads for each, int32 [decodes].
        prefills: The rest.
        in_order: The decoding tokens are the whole batch, in its order.
    """

    places: Tensor
    rows: Tensor
    held: Tensor
    chosen: Tensor
    prefills: tuple[Prefill, ...]
    in_order: bool


def plan_step(
    starts: Sequence[int],
    lengths: Sequence[int],
    budget: Budget,
    dense_below: int,
    densities: Sequence[float | None] | None = None,
) -> StepPlan:
    """Plan a step.

    Args:
        starts: Place of each sequence's first token in the batch, and the end.
        lengths: Of each sequence, with its new tokens.
        budget: Of a decoding token.
        dense_below: Shorter contexts are read whole.
        densities: What requests asked for in place of the budget's density.
    """
    places: list[int] = []
    rows: list[int] = []
    held: list[int] = []
    chosen: list[int] = []
    prefills: list[Prefill] = []
    for row, length in enumerate(lengths):
        first, new = starts[row], starts[row + 1] - starts[row]
        if new > FEW_TOKENS:
            prefills.append(Prefill(row, first, new, length - new))
            continue
        for place in range(new):
            seen = length - new + place + 1
            asked = densities[row] if densities else None
            own = budget if asked is None else replace(budget, density=asked)
            dense = new > 1 or seen < dense_below
            places.append(first + place)
            rows.append(row)
            held.append(seen)
            chosen.append(seen if dense else own.tokens(seen))
    return StepPlan(
        torch.tensor(places, dtype=torch.int64),
        torch.tensor(rows, dtype=torch.int64),
        torch.tensor(held, dtype=torch.int32),
        torch.tensor(chosen, dtype=torch.int32),
        tuple(prefills),
        in_order=places == list(range(starts[len(lengths)])),
    )
