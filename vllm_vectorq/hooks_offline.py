# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The cache in front of ``LLMEngine``, through which ``LLM`` runs its batches.

Hits come out of ``step`` beside the engine's own outputs; ``LLM`` sorts all of them by
request id, so answers keep the order of the prompts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from .compat import wrap
from .engine_adapter import ATTRIBUTE, EngineAdapter, GenerateCall
from .hit_output import Recipient
from .hooks_lifecycle import attaching, wrap_changes
from .offline_batch import OfflineBatch

BATCH = "_vectorq_batch"


def install() -> None:
    """Wrap the methods of ``LLMEngine``; without the option they behave as before.

    Raises:
        RuntimeError: This vLLM lacks one of them.
    """
    from vllm.v1.engine.llm_engine import LLMEngine

    wrap(LLMEngine, "__init__", attaching)
    wrap(LLMEngine, "add_request", _add_request)
    wrap(LLMEngine, "step", _step)
    wrap(LLMEngine, "has_unfinished_requests", _has_unfinished_requests)
    wrap(LLMEngine, "get_num_unfinished_requests", _get_num_unfinished_requests)
    wrap(LLMEngine, "abort_request", _abort_request)
    wrap_changes(LLMEngine, {"set_weight_version": "weight_version"})


def _batch(engine: Any) -> OfflineBatch | None:
    """Return the engine's batch; None for an engine without the cache."""
    adapter: EngineAdapter | None = getattr(engine, ATTRIBUTE, None)
    if adapter is None:
        return None
    batch: OfflineBatch | None = getattr(engine, BATCH, None)
    if batch is None:
        batch = OfflineBatch(adapter)
        setattr(engine, BATCH, batch)
    return batch


def _add_request(add_request: Callable[..., str]) -> Callable[..., str]:
    signature = inspect.signature(add_request)

    def add_request_with_cache(self: Any, *args: Any, **kwargs: Any) -> str:
        batch = _batch(self)
        if batch is None:
            return add_request(self, *args, **kwargs)
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError:
            return add_request(self, *args, **kwargs)
        lora = given.get("lora_request")
        call = GenerateCall(given["prompt"], given["params"], lora)
        planned = batch.adapter.plan(call)
        if planned is None or not isinstance(given["request_id"], str):
            return add_request(self, *args, **kwargs)
        to = Recipient(
            request_id=given["request_id"],
            prompt=given["prompt"],
            params=given["params"],
            lora=lora,
            tokenizer=self.renderer.tokenizer,
            stream_interval=batch.adapter.model.stream_interval,
        )
        return str(batch.add(planned, to, partial(add_request, self, *args, **kwargs)))

    return add_request_with_cache


def _step(step: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    def step_with_cache(self: Any, *args: Any, **kwargs: Any) -> list[Any]:
        batch = _batch(self)
        if batch is None:
            return step(self, *args, **kwargs)
        outputs: list[Any] = []
        # A step without requests would wait for outputs that never come.
        if (
            not batch.has_ready
            or self.should_execute_dummy_batch
            or self.output_processor.has_unfinished_requests()
        ):
            outputs = step(self, *args, **kwargs)
            batch.learn(outputs)
        return [*outputs, *batch.take_ready()]

    return step_with_cache


def _has_unfinished_requests(ask: Callable[..., bool]) -> Callable[..., bool]:
    def has_unfinished_with_cache(self: Any, *args: Any, **kwargs: Any) -> bool:
        # Always asked: with data parallelism all ranks have to.
        unfinished = ask(self, *args, **kwargs)
        batch = _batch(self)
        return unfinished or (batch is not None and len(batch) > 0)

    return has_unfinished_with_cache


def _get_num_unfinished_requests(count: Callable[..., int]) -> Callable[..., int]:
    def count_with_cache(self: Any, *args: Any, **kwargs: Any) -> int:
        batch = _batch(self)
        return count(self, *args, **kwargs) + (0 if batch is None else len(batch))

    return count_with_cache


def _abort_request(abort: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(abort)

    def abort_with_cache(self: Any, *args: Any, **kwargs: Any) -> None:
        batch = _batch(self)
        if batch is None:
            return abort(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs)
        given = bound.arguments
        ids = list(given["request_ids"])
        given["request_ids"] = [batch.engine_id(one) for one in ids]
        abort(*bound.args, **bound.kwargs)
        batch.abort(ids, bool(given.get("internal")))
        return None

    return abort_with_cache
