# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Stored answers in the form of vLLM's outputs, and vLLM's outputs as answers.

vLLM's serving layer takes the outputs from here on: it parses reasoning and tool
calls, counts usage and writes JSON or events, for a hit as for a miss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from .request import Answer

# Parsers of reasoning and tool calls are written for small pieces.
REPLAY_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Recipient:
    """The request that gets a stored answer.

    Attributes:
        request_id: As its caller knows it.
        prompt: Its rendered prompt, a dict of vLLM.
        params: Its sampling parameters.
        lora: The adapter it asked for.
        tokenizer: The engine's, None when it has none.
        stream_interval: Tokens per streamed chunk at least, for all requests.
    """

    request_id: str
    prompt: dict[str, Any]
    params: SamplingParams
    lora: Any
    tokenizer: Any
    stream_interval: int


def whole(to: Recipient, answer: Answer) -> RequestOutput:
    """Return the answer in one piece."""
    return _output(to, answer, answer.text, answer.token_ids, finished=True)


def replay(
    to: Recipient, answer: Answer, on_fault: Callable[[Exception], None]
) -> Iterator[RequestOutput]:
    """Return the answer in the pieces that the request's output kind asks for.

    Text and tokens of a piece belong together: the pieces come from vLLM's own
    detokeniser. Where its text departs from the stored one, what is left follows in
    one piece.

    Args:
        to: Who gets it.
        answer: What was stored.
        on_fault: Called when the detokeniser fails.
    """
    if to.params.output_kind == RequestOutputKind.FINAL_ONLY:
        yield whole(to, answer)
        return
    delta = to.params.output_kind == RequestOutputKind.DELTA
    step = max(to.params.stream_interval or 1, to.stream_interval, REPLAY_TOKENS)
    sent_chars = sent_tokens = 0
    for end, chars in _borders(to, answer, step, on_fault):
        first_char, first_token = (sent_chars, sent_tokens) if delta else (0, 0)
        text = answer.text[first_char:chars]
        yield _output(to, answer, text, answer.token_ids[first_token:end])
        sent_chars, sent_tokens = chars, end
    if not delta:
        sent_chars = sent_tokens = 0
    yield _output(
        to,
        answer,
        answer.text[sent_chars:],
        answer.token_ids[sent_tokens:],
        finished=True,
    )


def _borders(
    to: Recipient, answer: Answer, step: int, on_fault: Callable[[Exception], None]
) -> Iterator[tuple[int, int]]:
    """Yield where pieces end, in tokens and characters; the last one is left out."""
    chars = 0
    try:
        detokenizer = _detokenizer(to)
        for start in range(0, len(answer.token_ids) - step, step):
            end = start + step
            detokenizer.update(list(answer.token_ids[start:end]), False)
            piece = detokenizer.get_next_output_text(False, True)
            if not answer.text.startswith(piece, chars):
                return
            chars += len(piece)
            yield end, chars
    except Exception as error:
        on_fault(error)


def _detokenizer(to: Recipient) -> IncrementalDetokenizer:
    request = EngineCoreRequest(
        request_id=to.request_id,
        prompt_token_ids=to.prompt["prompt_token_ids"],
        mm_features=None,
        sampling_params=to.params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    return IncrementalDetokenizer.from_new_request(to.tokenizer, request)


def _output(
    to: Recipient,
    answer: Answer,
    text: str,
    token_ids: tuple[int, ...],
    finished: bool = False,
) -> RequestOutput:
    completion = CompletionOutput(
        index=0,
        text=text,
        token_ids=list(token_ids),
        cumulative_logprob=None,
        logprobs=None,
        finish_reason="stop" if finished else None,
        stop_reason=answer.stop_reason if finished else None,
    )
    return RequestOutput(
        request_id=to.request_id,
        prompt=to.prompt.get("prompt"),
        prompt_token_ids=to.prompt["prompt_token_ids"],
        prompt_logprobs=None,
        outputs=[completion],
        finished=finished,
        lora_request=to.lora,
        num_cached_tokens=0,
        num_cache_creation_tokens=0,
    )


class AnswerCollector:
    """Puts the answer to a miss together while its outputs pass by.

    Args:
        params: The request's sampling parameters.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._delta = params.output_kind == RequestOutputKind.DELTA
        self._started_s = time.monotonic()
        self._text: list[str] = []
        self._token_ids: list[int] = []

    def add(self, output: Any) -> Answer | None:
        """Take note of an output.

        Returns:
            The answer if this output completes one that can be kept.
        """
        if len(output.outputs) != 1:
            return None
        [completion] = output.outputs
        if not self._delta:
            self._text.clear()
            self._token_ids.clear()
        if self._delta or output.finished:
            self._text.append(completion.text)
            self._token_ids.extend(completion.token_ids)
        if not output.finished or not _is_plain(completion):
            return None
        text = "".join(self._text)
        if not text.strip():
            return None
        return Answer(
            text=text,
            token_ids=tuple(self._token_ids),
            stop_reason=completion.stop_reason,
            generation_s=time.monotonic() - self._started_s,
        )


def _is_plain(completion: Any) -> bool:
    """Say whether a finished completion is nothing but text of one set of weights."""
    versions = getattr(completion, "weight_versions", None) or ()
    return (
        completion.finish_reason == "stop"
        and completion.index == 0
        and len({span.version for span in versions}) <= 1
        and all(
            getattr(completion, extra, None) is None
            for extra in ("logprobs", "routed_experts", "sampling_mask")
        )
    )
