# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a request may ask of the cache."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_vectorq.request import Mode
from vllm_vectorq.tightening import (
    UNCHANGED,
    MalformedControlError,
    Tightening,
    parse_controls,
    tightest,
    tightest_mode,
    without_controls,
)

MODES: tuple[Mode, ...] = ("off", "exact", "semantic")


def test_a_request_without_controls_changes_nothing() -> None:
    assert parse_controls({}) == UNCHANGED
    assert parse_controls({"program_id": "p", "temperature_boost": 3}) == UNCHANGED


@pytest.mark.parametrize(
    ("xargs", "expected"),
    [
        ({"vectorq_mode": "off"}, Tightening(mode="off")),
        ({"vectorq_mode": "exact"}, Tightening(mode="exact")),
        ({"vectorq_delta": 0.01}, Tightening(delta=0.01)),
        ({"vectorq_delta": "0.01"}, Tightening(delta=0.01)),
        ({"vectorq_ttl": 60}, Tightening(ttl_s=60.0)),
        ({"vectorq_no_store": 1}, Tightening(store=False)),
        ({"vectorq_no_store": "true"}, Tightening(store=False)),
        ({"vectorq_no_store": True}, Tightening(store=False)),
        ({"vectorq_no_store": 0}, Tightening(store=True)),
    ],
)
def test_controls_are_read(xargs: dict[str, object], expected: Tightening) -> None:
    assert parse_controls(xargs) == expected


@pytest.mark.parametrize(
    "xargs",
    [
        {"vectorq_mode": "fuzzy"},
        {"vectorq_mode": 1},
        {"vectorq_delta": 0},
        {"vectorq_delta": 1},
        {"vectorq_delta": -0.1},
        {"vectorq_delta": "nan"},
        {"vectorq_delta": True},
        {"vectorq_delta": [0.1]},
        {"vectorq_ttl": 0},
        {"vectorq_ttl": "inf"},
        {"vectorq_ttl": 10**400},
        {"vectorq_ttl": "soon"},
        {"vectorq_no_store": 2},
        {"vectorq_no_store": [1]},
        {"vectorq_no_store": 1.0},
        {"vectorq_threshold": 0.1},
    ],
)
def test_what_is_not_understood_is_an_error_that_names_it(
    xargs: dict[str, object],
) -> None:
    with pytest.raises(MalformedControlError) as error:
        parse_controls(xargs)
    [name] = xargs
    assert error.value.name == name
    assert name in str(error.value)


@given(st.sampled_from(MODES), st.sampled_from([*MODES, None]))
def test_a_mode_is_never_widened(allowed: Mode, asked: Mode | None) -> None:
    result = tightest_mode(allowed, asked)
    assert MODES.index(result) <= MODES.index(allowed)
    assert asked is None or MODES.index(result) <= MODES.index(asked)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6) | st.none())
def test_a_limit_is_never_loosened(allowed: float, asked: float | None) -> None:
    result = tightest(allowed, asked)
    if asked is None:
        assert result is None
    else:
        assert result is not None
        assert result <= allowed
        assert result <= asked
        assert math.isfinite(result)


def test_controls_are_taken_out_and_nothing_else() -> None:
    xargs = {"vectorq_mode": "exact", "vector": 1, "program_id": "p"}
    assert without_controls(xargs) == {"vector": 1, "program_id": "p"}
