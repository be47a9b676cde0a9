# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the backend of this process did: how much it read of what it held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class StepCounts:
    """Counted once for a step, as a sparse layer sees it.

    Attributes:
        sparse: Decoded tokens whose context was read in part.
        dense: Decoded tokens whose context was read whole.
        tokens_held: Tokens of all contexts of decoded tokens.
        tokens_read: Of these, read.
    """

    sparse: int = 0
    dense: int = 0
    tokens_held: int = 0
    tokens_read: int = 0

    def count(
        self, lengths: Sequence[int], rows: Sequence[int], kept: Sequence[int]
    ) -> None:
        """Add a step.

        Args:
            lengths: Of all sequences of the batch.
            rows: Of those that decode.
            kept: Tokens that each of these reads.
        """
        for row, read in zip(rows, kept, strict=True):
            held = lengths[row]
            self.tokens_held += held
            self.tokens_read += read
            if read < held:
                self.sparse += 1
            else:
                self.dense += 1


STEPS = StepCounts()
