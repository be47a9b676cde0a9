# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How many tokens a decode step reads, and which of them whatever their score."""

from __future__ import annotations

import math
from dataclasses import dataclass

SINK_TOKENS = 128
RECENT_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens that each KV head may read of a context.

    The first and the newest tokens are always read (attention sinks and the local
    window, as in the paper); the rest goes to the tokens with the best scores.

    Attributes:
        density: Share of the context, above 0 and at most 1.
        min_tokens: At least so many tokens, however short the context.
        sink_tokens: First tokens that are always read.
        recent_tokens: Newest tokens that are always read.

    Raises:
        ValueError: A number is out of range.
    """

    density: float
    min_tokens: int = 512
    sink_tokens: int = SINK_TOKENS
    recent_tokens: int = RECENT_TOKENS

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:
            raise ValueError(
                f"hashattn: density {self.density!r} was asked for; it is the share of "
                "the context that is read, above 0 and at most 1."
            )
        for name in ("min_tokens", "sink_tokens", "recent_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"hashattn: {name} {getattr(self, name)!r} was asked for; it must "
                    "be at least 0."
                )
        if self.recent_tokens < 1:
            raise ValueError(
                "hashattn: recent_tokens 0 was asked for; the newest token has to be "
                "read, so it must be at least 1."
            )

    def tokens(self, context_tokens: int) -> int:
        """Return how many tokens of a context are read, those always read included."""
        always = self.sink_tokens + self.recent_tokens
        wanted = max(math.ceil(self.density * context_tokens), self.min_tokens, always)
        return min(wanted, context_tokens)

    def is_dense(self, context_tokens: int) -> bool:
        """Whether the whole context is read."""
        return self.tokens(context_tokens) >= context_tokens
