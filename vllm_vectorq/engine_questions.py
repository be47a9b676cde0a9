# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Asks the served model itself, past the cache and behind everybody else's requests."""

from __future__ import annotations

import asyncio
import uuid
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

from vllm.renderers.params import ChatParams
from vllm.sampling_params import RequestOutputKind, SamplingParams

from .config import ConfigError
from .tightening import MODE

# Only "yes" or "no" is wanted; some models open with a blank or a quote.
MAX_TOKENS = 4
# With priority scheduling, larger is later. Without it vLLM ignores the number.
LAST = 1_000_000


def questions_to(
    engine: Any,  # noqa: ANN401
) -> tuple[Callable[[str], Coroutine[Any, Any, str]], asyncio.AbstractEventLoop]:
    """Return what generates the reply to a prompt, and the loop that it runs on.

    Args:
        engine: An ``AsyncLLM``; it is not kept alive.

    Raises:
        ConfigError: The engine cannot be asked.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigError(
            "vectorq.judges='model' cannot be used: only a server can ask its model "
            "while it serves; with LLM choose other judges"
        ) from None
    if not getattr(engine.renderer.tokenizer, "chat_template", None):
        raise ConfigError(
            "vectorq.judges='model' cannot be used: this model has no chat template, "
            "so it does not answer questions; choose other judges"
        )
    known = weakref.ref(engine)

    async def ask(prompt: str) -> str:
        live = known()
        if live is None:
            raise RuntimeError("the engine was shut down")
        messages = [{"role": "user", "content": prompt}]
        _, prompts = await live.renderer.render_chat_async([messages], ChatParams())
        params = SamplingParams(
            temperature=0.0,
            max_tokens=MAX_TOKENS,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={MODE: "off"},
        )
        text = ""
        request_id = f"vectorq-judge-{uuid.uuid4().hex}"
        async for output in live.generate(
            prompts[0], params, request_id, priority=LAST
        ):
            text = output.outputs[0].text
        return text

    return ask, loop
