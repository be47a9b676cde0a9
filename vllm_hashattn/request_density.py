# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What single requests ask for: ``vllm_xargs={"hashattn_density": 1.0}`` reads all.

The density of a request replaces the server's for its own tokens; 1 opts out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FIELD = "hashattn_density"

# Of the batch that is being prepared, in its order.
_BATCH: list[Sequence[float | None] | None] = [None]


def density_of(extra_args: Mapping[str, Any] | None) -> float | None:
    """Return what a request asks for, if anything.

    Raises:
        ValueError: It is no density.
    """
    asked = (extra_args or {}).get(FIELD)
    if asked is None:
        return None
    if (
        isinstance(asked, bool)
        or not isinstance(asked, int | float)
        or not 0.0 < asked <= 1.0
    ):
        raise ValueError(
            f"hashattn: {FIELD} {asked!r} was asked for; it is the share of the "
            "context that is read, a number above 0 and at most 1 (1: all of it)."
        )
    return float(asked)


def note_batch(densities: Sequence[float | None] | None) -> None:
    """Remember what the requests of the next batch ask for; None: nothing."""
    _BATCH[0] = densities


def densities_of_batch(sequences: int) -> Sequence[float | None] | None:
    """Return what was noted for a batch of this size."""
    noted = _BATCH[0]
    return noted if noted is not None and len(noted) >= sequences else None
