# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the lexical guards say about a request and its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import guards
from .record import Vector


def lexical_evidence(
    signature: guards.Signature | None, others: Sequence[guards.Signature | None]
) -> tuple[NDArray[np.bool_], Vector]:
    """Compare a request with its neighbours.

    Args:
        signature: Of the request; None: the guards are off and forbid nothing.
        others: Of the neighbours; one without a signature cannot be compared, so it
            is forbidden.

    Returns:
        Which neighbours are forbidden, bool [k]; agreement with each in [0, 1],
        float32 [k].
    """
    conflicts = np.zeros(len(others), dtype=np.bool_)
    agreement = np.zeros(len(others), dtype=np.float32)
    if signature is None:
        return conflicts, agreement
    for place, other in enumerate(others):
        if other is None or guards.conflict(signature, other) is not None:
            conflicts[place] = True
        else:
            agreement[place] = guards.agreement(signature, other)
    return conflicts, agreement
