# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Real engines, offline and online, answer repeats from the cache."""

import asyncio
import gc
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.common.offline import OfflineInferenceMixin
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.outputs import RequestOutput
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor import Executor

import vllm_vectorq
from tests.vectorq.memory_cache import MemoryCache
from vllm_vectorq import hooks

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

PROMPTS = [
    "The capital of France is",
    "My favourite colour is",
    "The capital of France is",
    "Water boils at",
]
ENGINE: dict[str, Any] = {
    "enforce_eager": True,
    "dtype": "float32",
    "max_model_len": 512,
    "block_size": 32,
}
PATCHED = (AsyncLLM, LLMEngine, OnlineRenderer, OfflineInferenceMixin)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryCache]:
    """The cache of every engine that the test makes; vLLM is unpatched afterwards."""
    originals = [(owner, dict(vars(owner))) for owner in PATCHED]
    cache = MemoryCache()
    service: Any = SimpleNamespace(cache_for=lambda config: cache)
    monkeypatch.setitem(sys.modules, "vllm_vectorq.service", service)
    monkeypatch.setattr(vllm_vectorq, "service", service, raising=False)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    # The hooks are put in by the test, in this process only.
    monkeypatch.setenv("VLLM_PLUGINS", "")
    hooks.install()
    hooks.install()
    yield cache
    for owner, attributes in originals:
        for name, value in attributes.items():
            if callable(value) and vars(owner)[name] is not value:
                setattr(owner, name, value)


def plain(output: RequestOutput) -> tuple[Any, ...]:
    [completion] = output.outputs
    return (
        output.prompt,
        list(output.prompt_token_ids or ()),
        completion.text,
        list(completion.token_ids),
        completion.finish_reason,
        completion.stop_reason,
    )


def greedy(**options: Any) -> SamplingParams:  # noqa: ANN401
    fields = {"temperature": 0.0, "max_tokens": 64, "stop": [".", "\n", ","]}
    return SamplingParams(**{**fields, **options})


def test_offline_repeats_need_no_step(
    cache: MemoryCache, model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    llm = LLM(model_path, **ENGINE)
    core: Any = llm.llm_engine.engine_core
    steps: list[int] = []
    get_output = core.get_output
    monkeypatch.setattr(core, "get_output", lambda: steps.append(1) or get_output())

    first = [plain(o) for o in llm.generate(PROMPTS, greedy())]
    assert steps
    assert [p[4] for p in first] == ["stop"] * 4
    assert first[0] == first[2]
    assert cache.metrics.hits == {"coalesced": 1}
    steps.clear()
    second = [plain(o) for o in llm.generate(PROMPTS, greedy())]
    assert steps == []
    assert second == first

    # Hits and misses in one batch, in the order of the prompts.
    mixed = [plain(o) for o in llm.generate([*PROMPTS, "Snow is"], greedy())]
    assert steps
    assert mixed[:4] == first

    conversations: Any = [[{"role": "user", "content": f"Name {n}."}] for n in "ab"]
    chats = [
        [plain(o) for o in llm.chat(conversations, greedy(), use_tqdm=False)]
        for _ in range(2)
    ]
    assert chats[0] == chats[1]
    requests = cache.requests[-2:]
    assert [r.text for r in requests] == ["Name a.", "Name b."]
    assert requests[0].partition == requests[1].partition
    assert (cache.faults, cache.open) == ([], set())
    llm.llm_engine.engine_core.shutdown()
    del llm, core
    gc.collect()


def test_online_hits_equal_misses_streamed_or_not(
    cache: MemoryCache, model_path: str
) -> None:
    arguments = AsyncEngineArgs(model=model_path, disable_log_stats=True, **ENGINE)
    config = arguments.create_engine_config()
    asyncio.run(_online(cache, config))
    assert (cache.faults, cache.open) == ([], set())


async def _online(cache: MemoryCache, config: Any) -> None:  # noqa: ANN401
    engine = AsyncLLM(
        vllm_config=config, executor_class=Executor.get_class(config), log_stats=False
    )
    try:
        renderer = OnlineRenderer(
            config.model_config,
            engine.renderer,
            request_logger=None,
            chat_template=None,
            chat_template_content_format="auto",
        )
        for place, question in enumerate(("What is rain?", "What is snow?")):
            messages: Any = [{"role": "user", "content": question}]
            request = ChatCompletionRequest(model="m", messages=messages)
            rendered = await renderer.render_chat(request)
            assert isinstance(rendered, tuple)
            [prompt] = rendered[1]
            # The first question is missed as a stream, the second one as a whole.
            kinds = [RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY]
            kinds = kinds if place == 0 else kinds[::-1]
            answers = [
                await _ask(engine, prompt, kind, f"{place}-{number}")
                for number, kind in enumerate([*kinds, RequestOutputKind.CUMULATIVE])
            ]
            assert answers[0] == answers[1] == answers[2]
            assert answers[0][2] == "stop"
            assert cache.metrics.hits["exact"] == 2 * (place + 1)
        first, second = cache.requests
        assert (first.text, second.text) == ("What is rain?", "What is snow?")
        assert first.partition == second.partition
    finally:
        engine.shutdown()


async def _ask(
    engine: AsyncLLM,
    prompt: Any,  # noqa: ANN401
    kind: RequestOutputKind,
    request_id: str,
) -> tuple[Any, ...]:
    params = greedy(output_kind=kind)
    outputs = [o async for o in engine.generate(prompt, params, request_id)]
    assert [o.finished for o in outputs] == [False] * (len(outputs) - 1) + [True]
    assert {o.request_id for o in outputs} == {request_id}
    completions = [o.outputs[0] for o in outputs]
    if kind != RequestOutputKind.DELTA:
        completions = completions[-1:]
    text = "".join(c.text for c in completions)
    token_ids = [t for c in completions for t in c.token_ids]
    last = completions[-1]
    return text, token_ids, last.finish_reason, last.stop_reason
