# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The pages of an expert: what is stored, moved and computed with as one.

An expert has two pages, as in the paper: the gate and up projections, which the kernel
reads as one matrix, and the down projection.

Source: MoE-Lightning (2411.11217), appendix A.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch

# Direct reads from a disk need addresses, offsets and lengths that are multiples of it.
ALIGNMENT = 4096


class Part(IntEnum):
    """Which page of an expert."""

    GATE_UP = 0
    DOWN = 1


@dataclass(frozen=True, slots=True)
class ExpertFormat:
    """Form of the pages of every expert of a model, as the kernel wants them.

    Attributes:
        gate_up: Shape of the first page, [2 * intermediate, hidden] or what the kernel
            makes of it.
        down: Shape of the second page, [hidden, intermediate] or what the kernel makes
            of it.
        dtype: Of both.
    """

    gate_up: tuple[int, ...]
    down: tuple[int, ...]
    dtype: torch.dtype

    def shape(self, part: Part) -> tuple[int, ...]:
        """Return the shape of a page."""
        return self.gate_up if part is Part.GATE_UP else self.down

    def page_bytes(self, part: Part) -> int:
        """Return how large a page is."""
        return math.prod(self.shape(part)) * self.dtype.itemsize

    def stored_bytes(self, part: Part) -> int:
        """Return how much room a page takes in a file, a multiple of ``ALIGNMENT``."""
        return -(-self.page_bytes(part) // ALIGNMENT) * ALIGNMENT

    @property
    def expert_bytes(self) -> int:
        """How large both pages are."""
        return sum(self.page_bytes(part) for part in Part)

    @property
    def expert_stored_bytes(self) -> int:
        """How much room both pages take in a file."""
        return sum(self.stored_bytes(part) for part in Part)
