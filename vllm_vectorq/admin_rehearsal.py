# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a request would ask the engine for, without asking it.

vLLM's own handler is run with a stand-in for the engine, which takes note of the call
and ends it. So the prompt, the parameters and the adapter are exactly those of a real
request, whatever the server was started with.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from .engine_adapter import GenerateCall

if TYPE_CHECKING:
    from starlette.datastructures import State

# Where vLLM keeps its handlers, and what they are asked with.
CHAT_HANDLER = "openai_serving_chat"
COMPLETION_HANDLER = "openai_serving_completion"

# How the answer is sent does not matter.
_STREAMING = ("stream", "stream_options")


class HandlerRefusedError(Exception):
    """vLLM would not take the request.

    Attributes:
        answer: Its error, as JSON.
        status: HTTP status.
    """

    def __init__(self, answer: dict[str, Any], status: int) -> None:
        super().__init__(str(answer))
        self.answer = answer
        self.status = status


class _ReachedError(Exception):
    """The handler began to read the engine's answer."""


class _NoAnswer:
    """What the handler reads in place of an answer."""

    def __aiter__(self) -> _NoAnswer:
        return self

    async def __anext__(self) -> object:
        raise _ReachedError


class _EngineStandIn:
    """Takes note of calls; everything else is the real engine's."""

    def __init__(self, engine: Any) -> None:  # noqa: ANN401
        self._engine = engine
        self._signature = inspect.signature(engine.generate)
        self.calls: list[GenerateCall] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._engine, name)

    def generate(self, *args: object, **kwargs: object) -> _NoAnswer:
        """Note a call."""
        given = self._signature.bind(*args, **kwargs).arguments
        self.calls.append(GenerateCall.of(given))
        return _NoAnswer()

    async def notify_kv_transfer_request_rejected(
        self, *_: object, **__: object
    ) -> None:
        """Nothing was sent that could be rejected."""


async def rehearse(
    state: State,
    engine: Any,  # noqa: ANN401
    body: Mapping[str, Any],
) -> GenerateCall:
    """Return the call of the engine that a request leads to.

    Args:
        state: Of vLLM's application.
        engine: Its engine client.
        body: A chat completion request, or a completion request with one prompt.

    Raises:
        HandlerRefusedError: vLLM refuses the request.
        RequestValidationError: It is malformed.
        RuntimeError: vLLM's handler did not ask the engine.
    """
    chat = "messages" in body
    handler = copy.copy(getattr(state, CHAT_HANDLER if chat else COMPLETION_HANDLER))
    stand_in = handler.engine_client = _EngineStandIn(engine)
    create = handler.create_chat_completion if chat else handler.create_completion
    try:
        answer = await create(_request(body, chat))
    except _ReachedError:
        return stand_in.calls[0]
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse

    if isinstance(answer, ErrorResponse):
        raise HandlerRefusedError(answer.model_dump(), answer.error.code)
    raise RuntimeError("vectorq: vLLM answered a request without asking its engine.")


def _request(body: Mapping[str, Any], chat: bool) -> object:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    request_class = ChatCompletionRequest if chat else CompletionRequest
    fields = {name: value for name, value in body.items() if name not in _STREAMING}
    try:
        return request_class.model_validate(fields)
    except ValidationError as error:
        # As FastAPI does for vLLM's own routes.
        raise RequestValidationError(error.errors()) from error
