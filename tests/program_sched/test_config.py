# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Options: defaults hold, bad values name the option and the remedy."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_program_sched.config import POLICIES, ConfigError, ProgramSchedConfig

BAD: list[tuple[str, Any, str]] = [
    ("policy", "lifo", "choose one of"),
    ("policy", 3, "choose one of"),
    ("service_unit", "flops", "choose one of"),
    ("prefill_weight", -0.1, "between"),
    ("prefill_weight", float("nan"), "between"),
    ("decode_weight", 0.0, "between"),
    ("decode_weight", "1", "give a number"),
    ("levels", 1, "between"),
    ("levels", 17, "between"),
    ("levels", 2.5, "give an integer"),
    ("levels", float("inf"), "give an integer"),
    ("levels", float("nan"), "give an integer"),
    ("levels", True, "give an integer"),
    ("level_bounds", [1.0, 2.0], "need 7"),
    ("level_bounds", [1, 2, 3, 4, 5, 7, 6], "ascending"),
    ("level_bounds", [0, 1, 2, 3, 4, 5, 6], "positive"),
    ("level_bounds", [1, 2, 3, 4, 5, 6, float("nan")], "finite"),
    ("level_bounds", "1,2", "list of"),
    ("quanta", [1.0], "give 8 positive"),
    ("quanta", [0.0] * 8, "give 8 positive"),
    ("quanta", [1.0] * 7 + [float("nan")], "finite"),
    ("quanta", [True] * 8, "list of"),
    ("prior_strength", 0.0, "between"),
    ("size_exponent", 3.0, "between"),
    ("class_prefix_tokens", 0, "between"),
    ("starvation_ratio", -1.0, "between"),
    ("starvation_floor_s", 0.0, "between"),
    ("preemption", "yes", "true or false"),
    ("preempt_every_step", 1, "true or false"),
    ("preempt_min_run_tokens", -1, "between"),
    ("preempt_hysteresis_levels", 0, "between"),
    ("preempt_max_per_step", -1, "between"),
    ("program_ttl_s", 0, "between"),
    ("max_programs", 0, "between"),
    ("max_id_length", 0, "between"),
    ("log_interval_s", -1, "between"),
    ("log_interval_s", None, "give a number"),
]


@pytest.mark.parametrize(("name", "value", "remedy"), BAD)
def test_bad_value_names_option_and_remedy(
    name: str, value: object, remedy: str
) -> None:
    with pytest.raises(ConfigError) as error:
        ProgramSchedConfig.from_options({name: value})
    assert f"program_sched.{name}" in str(error.value)
    assert remedy in str(error.value)


def test_every_option_is_checked() -> None:
    assert {name for name, _, _ in BAD} == set(ProgramSchedConfig.names())


def test_whole_floats_become_integers() -> None:
    # JSON knows no integers; `levels` feeds range() and the minimum run is shifted.
    config = ProgramSchedConfig.from_options(
        {"levels": 4.0, "preempt_min_run_tokens": 16.0, "preempt_max_per_step": 2.0}
    )
    for name in ("levels", "preempt_min_run_tokens", "preempt_max_per_step"):
        assert type(getattr(config, name)) is int


def test_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        ProgramSchedConfig().levels = 3  # type: ignore[misc]


@given(
    st.fixed_dictionaries(
        {
            "policy": st.sampled_from(POLICIES),
            "levels": st.integers(2, 16),
            "prefill_weight": st.floats(0, 1e6),
            "starvation_ratio": st.floats(0, 1e9),
            "preemption": st.booleans(),
            "preempt_hysteresis_levels": st.integers(1, 15),
        }
    ),
    st.booleans(),
)
def test_round_trip(options: dict[str, Any], fixed: bool) -> None:
    if fixed:
        levels = options["levels"]
        options["level_bounds"] = [float(i + 1) for i in range(levels - 1)]
        options["quanta"] = [1] * levels
    config = ProgramSchedConfig.from_options(options)
    assert ProgramSchedConfig.from_options(config.as_dict()) == config
