# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Why a request is left alone, in words for whoever sent it."""

from __future__ import annotations

from collections.abc import Mapping

from .cacheability import Bypass

WORDS: Mapping[Bypass, str] = {
    Bypass.NOT_GENERATION: "the request does not generate text",
    Bypass.STREAMING_INPUT: "the prompt comes piece by piece",
    Bypass.UNRENDERED_PROMPT: "the prompt did not pass vLLM's renderer",
    Bypass.MULTIMODAL: "the prompt holds images, audio or video",
    Bypass.PROMPT_EMBEDS: "the prompt is given as embeddings",
    Bypass.ENCODER_DECODER: "the model has an encoder",
    Bypass.PROMPT_TOO_LONG: "the prompt is empty or fills the model's context",
    Bypass.SEVERAL_ANSWERS: "the request asks for several answers (n, best_of)",
    Bypass.LOGPROBS: "the request needs log probabilities, as beam search does",
    Bypass.FORCED_LENGTH: "the request forces a length (min_tokens, ignore_eos)",
    Bypass.NO_DETOKENIZATION: "the request asks for tokens instead of text",
    Bypass.DISAGGREGATED: "the request hands over the state of another server",
    Bypass.DEBUGGING: "the request asks for traces of the model",
    Bypass.SAMPLED: (
        "the temperature is above 0, and the server's option sampled is off; vLLM "
        "samples unless the request or the model's generation_config says otherwise"
    ),
    Bypass.UNKEYABLE: "a parameter cannot be compared",
    Bypass.NO_TENANT: "the request lacks the header that names its tenant",
    Bypass.SWITCHED_OFF: "the request switched the cache off (vectorq_mode)",
    Bypass.MALFORMED_CONTROL: "a vectorq_* field cannot be understood",
    Bypass.FAULT: "the plugin failed; the server's log says how",
}
