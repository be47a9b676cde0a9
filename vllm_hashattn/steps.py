# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the backend of this process did: how much it read of what it held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass
class StepCounts:
    """Counted once for a step, as a sparse layer sees it.

    Attributes:
        sparse: Decoded tokens whose context was read in part.
        dense: Decoded tokens whose context was read whole.
        tokens_held: Tokens of all contexts of decoded tokens.
        tokens_read: Of these, read.
        tokens_scanned: Of these, compared by their codes.
    """

    sparse: int = 0
    dense: int = 0
    tokens_held: int = 0
    tokens_read: int = 0
    tokens_scanned: int = 0

    def count(self, held: Sequence[int], chosen: Sequence[int]) -> None:
        """Add a step.

        Args:
            held: Tokens that each decoding token could read.
            chosen: Of these, read; all where it is read whole.
        """
        for could, takes in zip(held, chosen, strict=True):
            self.tokens_held += could
            self.tokens_read += takes
            if takes < could:
                self.sparse += 1
                self.tokens_scanned += could
            else:
                self.dense += 1

    def copy(self) -> StepCounts:
        """Return the counts as they are now."""
        return replace(self)


STEPS = StepCounts()
