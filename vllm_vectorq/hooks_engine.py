# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The cache in front of ``AsyncLLM.generate``, where all online requests pass.

Chat, completions, Responses and Anthropic messages, streamed or not, call it behind
authentication, model check and rendering. An engine without the cache pays for one
attribute look-up per call.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from .compat import wrap
from .engine_adapter import ATTRIBUTE, EngineAdapter, GenerateCall, Planned, coalesced
from .hit_output import AnswerCollector, Recipient, replay
from .hooks_lifecycle import attaching, wrap_changes
from .request import Answer, Hit
from .single_flight import Lead

Generator = AsyncGenerator[Any, None]


def install() -> None:
    """Wrap the methods of ``AsyncLLM``; without the option they behave as before.

    Raises:
        RuntimeError: This vLLM lacks one of them.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    wrap(AsyncLLM, "__init__", attaching)
    wrap(AsyncLLM, "generate", caching)
    wrap_changes(
        AsyncLLM,
        {
            "update_weights": "",
            "finish_weight_update": "weight_version",
            "update_weight_version": "new_version",
        },
    )


def caching(generate: Callable[..., Generator]) -> Callable[..., Generator]:
    """Return ``generate`` with the cache in front of it."""
    signature = inspect.signature(generate)

    # A plain function: the caller's context is read when it calls, not when somebody
    # begins to read the answer.
    def generate_with_cache(self: Any, *args: Any, **kwargs: Any) -> Generator:
        adapter: EngineAdapter | None = getattr(self, ATTRIBUTE, None)
        # A dead engine has to say so itself.
        if adapter is None or self.errored:
            return generate(self, *args, **kwargs)
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError:
            return generate(self, *args, **kwargs)
        planned = adapter.plan(GenerateCall.of(given))
        if planned is None:
            return generate(self, *args, **kwargs)
        to = Recipient(
            request_id=given["request_id"],
            prompt=given["prompt"],
            params=given["sampling_params"],
            lora=given.get("lora_request"),
            tokenizer=self.renderer.tokenizer,
            stream_interval=adapter.model.stream_interval,
        )
        start = partial(generate, self, *args, **kwargs)
        return _answers(adapter, planned, to, start)

    return generate_with_cache


async def _answers(
    adapter: EngineAdapter,
    planned: Planned,
    to: Recipient,
    start: Callable[[], Generator],
) -> Generator:
    """Yield a stored answer, or the model's while learning it."""
    entered = await adapter.enter(planned)
    lead = entered if isinstance(entered, Lead) else None
    ticket = stream = None
    try:
        hit = entered if isinstance(entered, Hit) else None
        if hit is None:
            hit, ticket = await adapter.lookup(planned)
        outputs = None if hit is None else _replayed(adapter, to, hit.answer)
        planned.note(None if outputs is None else hit)
        if hit is not None and outputs is not None:
            if lead is not None:
                # Those who wait may have asked for exact matches only.
                lead.settle(hit if hit.stage == "exact" else None)
            for output in outputs:
                yield output
                await asyncio.sleep(0)
            return
        collector = AnswerCollector(to.params)
        stream = start()
        async for output in stream:
            answer = adapter.collected(collector.add, output)
            if output.finished:
                # Before it is handed over: nobody has to read on after the last one.
                adapter.conclude(ticket, answer)
                ticket = None
                if lead is not None:
                    lead.settle(None if answer is None else coalesced(answer))
            yield output
    finally:
        if lead is not None:
            lead.settle(None)
        adapter.conclude(ticket, None)
        if stream is not None:
            await stream.aclose()


def _replayed(
    adapter: EngineAdapter, to: Recipient, answer: Answer
) -> Iterator[Any] | None:
    """Return the pieces of a stored answer; None when the first cannot be made."""
    try:
        outputs = replay(to, answer, partial(adapter.cache.fault, "replay"))
        return chain([next(outputs)], outputs)
    except Exception as error:
        adapter.cache.fault("replay", error)
        return None
