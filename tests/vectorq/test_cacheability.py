# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which requests are left alone."""

import pytest

from vllm_vectorq.cacheability import (
    Bypass,
    bypass_of_prompt,
    bypass_of_sampling,
    deployment_warnings,
    exact_only,
)

GREEDY: dict[str, object] = {"temperature": 0.0}
QUIET = {
    "api_servers": 1,
    "shared_store": False,
    "rust_frontend": False,
    "grpc": False,
    "separates_tenants": True,
}


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("token", None),
        (None, Bypass.UNRENDERED_PROMPT),
        ("multimodal", Bypass.MULTIMODAL),
        ("embeds", Bypass.PROMPT_EMBEDS),
        ("enc_dec", Bypass.ENCODER_DECODER),
        ("a form of a later vLLM", Bypass.UNRENDERED_PROMPT),
    ],
)
def test_only_prompts_of_tokens_are_handled(
    form: str | None, expected: Bypass | None
) -> None:
    assert bypass_of_prompt(form, 10, 100) == expected


@pytest.mark.parametrize("tokens", [0, 100, 101])
def test_a_prompt_that_vllm_refuses_is_left_to_vllm(tokens: int) -> None:
    assert bypass_of_prompt("token", tokens, 100) == Bypass.PROMPT_TOO_LONG


def test_a_prompt_that_leaves_room_for_one_token_is_handled() -> None:
    assert bypass_of_prompt("token", 99, 100) is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"n": 2}, Bypass.SEVERAL_ANSWERS),
        ({"logprobs": 0}, Bypass.LOGPROBS),
        ({"prompt_logprobs": 1}, Bypass.LOGPROBS),
        ({"logprob_token_ids": [1]}, Bypass.LOGPROBS),
        ({"prompt_logprob_token_ids": [[1]]}, Bypass.LOGPROBS),
        ({"min_tokens": 5}, Bypass.FORCED_LENGTH),
        ({"ignore_eos": True}, Bypass.FORCED_LENGTH),
        ({"detokenize": False}, Bypass.NO_DETOKENIZATION),
        ({"trace_decode_token_ids": [1]}, Bypass.DEBUGGING),
        ({"routed_experts_prompt_start": 3}, Bypass.DEBUGGING),
        ({"extra_args": {"kv_transfer_params": {"a": 1}}}, Bypass.DISAGGREGATED),
        ({"extra_args": {"ec_transfer_params": {"a": 1}}}, Bypass.DISAGGREGATED),
        ({"extra_args": {"program_id": "p"}}, None),
        ({"stop": ["x"], "top_k": 3, "presence_penalty": 0.5}, None),
        ({"structured_outputs": object()}, None),
    ],
)
def test_sampling_parameters_that_rule_a_cached_answer_out(
    fields: dict[str, object], expected: Bypass | None
) -> None:
    assert bypass_of_sampling({**GREEDY, **fields}, "off") == expected


@pytest.mark.parametrize(
    ("fields", "sampled", "expected"),
    [
        ({}, "off", Bypass.SAMPLED),
        ({"temperature": 0.7}, "off", Bypass.SAMPLED),
        ({"temperature": 0.7, "seed": 1}, "off", Bypass.SAMPLED),
        ({"temperature": 0.7}, "exact", None),
        ({"temperature": 0.7}, "semantic", None),
        ({"temperature": 1e-6}, "off", None),
        ({"temperature": 0}, "off", None),
    ],
)
def test_sampled_answers_are_the_operators_choice(
    fields: dict[str, object], sampled: str, expected: Bypass | None
) -> None:
    assert bypass_of_sampling(fields, sampled) == expected


def test_schemas_and_sampled_answers_are_matched_exactly() -> None:
    assert exact_only(GREEDY, "off") == ""
    assert "schema" in exact_only({**GREEDY, "structured_outputs": object()}, "off")
    assert "temperature" in exact_only({"temperature": 0.7}, "exact")
    assert exact_only({"temperature": 0.7}, "semantic") == ""


def test_reasons_can_be_labels_and_header_values() -> None:
    values = [reason.value for reason in Bypass]
    assert len(values) == len(set(values))
    assert all(value.replace("_", "").isalpha() for value in values)
    assert all(value.isascii() for value in values)


def test_an_ordinary_deployment_has_no_warnings() -> None:
    assert deployment_warnings(**QUIET) == []  # type: ignore[arg-type]
    shared = {**QUIET, "api_servers": 4, "shared_store": True}
    assert deployment_warnings(**shared) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"api_servers": 4}, "--api-server-count 1"),
        ({"rust_frontend": True}, "VLLM_USE_RUST_FRONTEND"),
        ({"grpc": True}, "gRPC"),
    ],
)
def test_what_weakens_the_cache_is_named(
    changed: dict[str, object], named: str
) -> None:
    [warning] = deployment_warnings(**{**QUIET, **changed})  # type: ignore[arg-type]
    assert warning.startswith("vectorq: ")
    assert named in warning


def test_tenants_that_are_shared_anyway_need_no_warning() -> None:
    options = {**QUIET, "grpc": True, "separates_tenants": False}
    assert deployment_warnings(**options) == []  # type: ignore[arg-type]
