# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Step meter: lazy sums equal eager ones, and slopes are found again."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_program_sched.step_meter import StepMeter

STEPS = st.lists(
    st.tuples(st.floats(-1, 10), st.integers(0, 64), st.integers(0, 10**6)),
    max_size=60,
)


@given(STEPS)
def test_integrals_are_sums_over_steps(steps: list[tuple[float, int, int]]) -> None:
    meter = StepMeter()
    elapsed_s = share_s = 0.0
    for step_s, calls, tokens in steps:
        meter.step(step_s, calls, tokens)
        if calls:
            clamped = min(max(step_s, 0.0), 5.0)
            elapsed_s += clamped
            share_s += clamped / calls
    assert meter.elapsed_s == pytest.approx(elapsed_s)
    assert meter.share_s == pytest.approx(share_s)
    assert math.isfinite(meter.prefill_s_per_token)
    assert meter.prefill_s_per_token >= 0.0


def test_shares_of_a_step_add_up_to_the_step() -> None:
    meter = StepMeter()
    meter.step(0.6, 3, 10)
    assert 3 * meter.share_s == pytest.approx(meter.elapsed_s)


def test_marginal_token_time_is_the_slope() -> None:
    rng = random.Random(1)
    meter = StepMeter()
    for _ in range(500):
        tokens = rng.randint(1, 2000)
        meter.step(0.02 + 8e-4 * tokens + rng.gauss(0, 1e-3), 8, tokens)
    assert meter.prefill_s_per_token == pytest.approx(8e-4, rel=0.05)


def test_without_variation_it_is_the_mean_cost() -> None:
    meter = StepMeter()
    assert meter.prefill_s_per_token > 0
    for _ in range(50):
        meter.step(0.1, 4, 1000)
    assert meter.prefill_s_per_token == pytest.approx(1e-4)


def test_decode_steps_alone_do_not_make_prefill_look_dear() -> None:
    meter = StepMeter()
    for _ in range(50):
        meter.step(0.1, 4, 4)
    assert meter.prefill_s_per_token <= 1e-3


def test_release_interval_is_learned_and_grows_while_nothing_is_released() -> None:
    meter = StepMeter()
    assert meter.release_interval_s == 0.0
    for _ in range(200):
        meter.step(0.5, 1, 1)
        meter.released()
    assert meter.release_interval_s == pytest.approx(0.5)
    for _ in range(10):
        meter.step(0.5, 1, 1)
    assert meter.release_interval_s == pytest.approx(5.0)


def test_a_paused_engine_charges_nobody_for_the_pause() -> None:
    meter = StepMeter()
    meter.step(3600.0, 1, 1)
    assert meter.elapsed_s == 5.0
