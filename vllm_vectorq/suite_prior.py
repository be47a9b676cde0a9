# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the policy believes about a partition before it has labels of its own.

Fitted to the first 600 questions of eight shuffles each of banking77, CLINC150 and
HWU64, and to question pairs of fow-cache, with all-MiniLM-L6-v2 and the lexical guards.
Left out one at a time, each of the three sets had fewer wrong answers than expected
where the model expects less than a tenth; adversarial pairs had up to ten times as
many. Hence the large factors. ``benchmarks/vectorq/fit_prior.py`` makes the numbers.
"""

from __future__ import annotations

import numpy as np

from .suite_budget import Correction
from .suite_model import ErrorModel

# In the order of suite_features.NAMES.
PRIOR = ErrorModel(
    np.array(
        [
            -4.4888,
            -4.7706,
            24.2808,
            -0.8896,
            0.4101,
            -4.7706,
            -0.8896,
            -0.4949,
            8.2012,
            8.2893,
            0.4389,
            0.6648,
            3.7666,
            0.0207,
            -15.3909,
            7.2434,
            0.3277,
            0.7025,
            0.1183,
        ]
    )
)
PRIOR_CORRECTION = Correction(factors=(3.0,) * 5)
