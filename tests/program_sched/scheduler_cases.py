# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the tests on vLLM's scheduler classes have in common."""

import random

import pytest

BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
# Preempts as soon as a shorter program waits.
EAGER_SRPT = {
    "policy": "srpt",
    "preempt_min_run_tokens": 4,
    "preempt_hysteresis_levels": 1,
}


def prompt(rng: random.Random, length: int) -> list[int]:
    """A prompt of made-up tokens."""
    return [rng.randrange(1, 1000) for _ in range(length)]
