# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which requests the cache leaves alone, and why.

A request that is left alone reaches vLLM untouched. The reasons are a closed set:
they become a metric label and a response header.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

# Below this temperature vLLM takes the most probable token.
GREEDY_BELOW = 1e-5


class Bypass(StrEnum):
    """Why a request is left alone."""

    NOT_GENERATION = "not_generation"
    STREAMING_INPUT = "streaming_input"
    UNRENDERED_PROMPT = "unrendered_prompt"
    MULTIMODAL = "multimodal"
    PROMPT_EMBEDS = "prompt_embeds"
    ENCODER_DECODER = "encoder_decoder"
    PROMPT_TOO_LONG = "prompt_too_long"
    SEVERAL_ANSWERS = "several_answers"
    LOGPROBS = "logprobs"
    FORCED_LENGTH = "forced_length"
    NO_DETOKENIZATION = "no_detokenization"
    DISAGGREGATED = "disaggregated"
    DEBUGGING = "debugging"
    SAMPLED = "sampled"
    UNKEYABLE = "unkeyable_parameter"
    NO_TENANT = "no_tenant"
    SWITCHED_OFF = "switched_off"
    MALFORMED_CONTROL = "malformed_control"
    FAULT = "fault"


# Fields of SamplingParams that rule out a cached answer when they are not at their
# default: the answer would lack what they ask for, or they exist to make the model run.
_FIELDS: Mapping[str, Bypass] = {
    "n": Bypass.SEVERAL_ANSWERS,
    "best_of": Bypass.SEVERAL_ANSWERS,
    # Beam search and label reads call the engine with log probabilities, too.
    "logprobs": Bypass.LOGPROBS,
    "prompt_logprobs": Bypass.LOGPROBS,
    "logprob_token_ids": Bypass.LOGPROBS,
    "prompt_logprob_token_ids": Bypass.LOGPROBS,
    "prompt_logprob_start": Bypass.LOGPROBS,
    "min_tokens": Bypass.FORCED_LENGTH,
    "ignore_eos": Bypass.FORCED_LENGTH,
    "detokenize": Bypass.NO_DETOKENIZATION,
    "trace_decode_token_ids": Bypass.DEBUGGING,
    "routed_experts_prompt_start": Bypass.DEBUGGING,
}
_TRANSFERS = ("kv_transfer_params", "ec_transfer_params")

# What vLLM calls the forms of a rendered prompt.
_PROMPT_FORMS: Mapping[str, Bypass | None] = {
    "token": None,
    "multimodal": Bypass.MULTIMODAL,
    "embeds": Bypass.PROMPT_EMBEDS,
    "enc_dec": Bypass.ENCODER_DECODER,
}


def bypass_of_prompt(
    form: str | None, prompt_tokens: int, max_model_len: int
) -> Bypass | None:
    """Return why a prompt is left alone, None when it can be handled.

    Args:
        form: ``type`` of the rendered prompt; None when it is not rendered.
        prompt_tokens: Its length.
        max_model_len: Longest sequence of the model; a prompt that fills it is
            vLLM's to refuse.
    """
    if form is None:
        return Bypass.UNRENDERED_PROMPT
    reason = _PROMPT_FORMS.get(form, Bypass.UNRENDERED_PROMPT)
    if reason is None and not 0 < prompt_tokens < max_model_len:
        return Bypass.PROMPT_TOO_LONG
    return reason


def bypass_of_sampling(fields: Mapping[str, object], sampled: str) -> Bypass | None:
    """Return why sampling parameters rule out a cached answer, None if they do not.

    Args:
        fields: Sampling parameters that are not at their default, by name.
        sampled: The option of that name: what temperature > 0 may get.
    """
    for name, reason in _FIELDS.items():
        if name in fields:
            return reason
    xargs = fields.get("extra_args")
    if isinstance(xargs, Mapping) and any(xargs.get(name) for name in _TRANSFERS):
        return Bypass.DISAGGREGATED
    if sampled == "off" and not is_greedy(fields):
        return Bypass.SAMPLED
    return None


def exact_only(fields: Mapping[str, object], sampled: str) -> str:
    """Return why these sampling parameters allow exact matches only, or ``""``."""
    if fields.get("structured_outputs") is not None:
        return "the output must follow a schema"
    if sampled != "semantic" and not is_greedy(fields):
        return "temperature is above 0"
    return ""


def is_greedy(fields: Mapping[str, object]) -> bool:
    """Say whether vLLM takes the most probable token."""
    temperature = fields.get("temperature", 1.0)
    return isinstance(temperature, (int, float)) and temperature < GREEDY_BELOW


def deployment_warnings(
    *,
    api_servers: int,
    shared_store: bool,
    rust_frontend: bool,
    grpc: bool,
    separates_tenants: bool,
) -> list[str]:
    """List what keeps the cache from working fully on this server.

    Args:
        api_servers: API server processes, each with entries of its own.
        shared_store: Whether all of them learn from one store.
        rust_frontend: Whether vLLM's Rust frontend serves the requests.
        grpc: Whether requests come by gRPC instead of HTTP.
        separates_tenants: Whether answers are kept apart by caller.
    """
    found = []
    if rust_frontend:
        found.append(
            "vectorq: the Rust frontend (VLLM_USE_RUST_FRONTEND) does not run Python "
            "request handlers, so nothing is cached; unset it to use the cache."
        )
    if api_servers > 1 and not shared_store:
        found.append(
            f"vectorq: {api_servers} API servers keep separate caches, so hit rates "
            "are lower than with one; use --api-server-count 1 or a store that they "
            "share, for instance --additional-config.vectorq.store postgresql://..."
        )
    if grpc and separates_tenants:
        found.append(
            "vectorq: gRPC requests carry no API key or header, so all callers share "
            "answers as if they were one tenant; serve HTTP, or separate them with "
            "--additional-config.vectorq.namespace on servers of their own."
        )
    return found
