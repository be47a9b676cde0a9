# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The cache in front of ``generate``: mechanics, with a model of a few lines."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from tests.vectorq.memory_cache import MemoryCache
from vllm_vectorq.compat import ModelFacts
from vllm_vectorq.engine_adapter import ATTRIBUTE, EngineAdapter
from vllm_vectorq.hooks_engine import caching
from vllm_vectorq.http_identity import HttpCall, current_call
from vllm_vectorq.partition import ANNOTATION_KEY, Annotation
from vllm_vectorq.request import Answer, Hit

KINDS = list(RequestOutputKind)
WORDS = ("it ", "is ", "fine ", "today ", "really")


class Model:
    """Where ``AsyncLLM`` stands: an engine whose answer is always the same."""

    errored = False

    def __init__(self, cache: MemoryCache | None) -> None:
        self.renderer = SimpleNamespace(tokenizer=None)
        self.calls = 0
        self.closed = 0
        self.finish_reason = "stop"
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None
        if cache is not None:
            facts = ModelFacts("model", "build", "tokenizer", 100, 1)
            setattr(self, ATTRIBUTE, EngineAdapter(cache, facts, None))

    async def generate(
        self,
        prompt: Any,  # noqa: ANN401
        sampling_params: SamplingParams,
        request_id: str,
        *,
        lora_request: Any = None,  # noqa: ANN401
        priority: int = 0,
        reasoning_ended: bool | None = None,
        reasoning_parser_kwargs: dict[str, Any] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        self.calls += 1
        kind = sampling_params.output_kind
        try:
            if self.gate is not None:
                await self.gate.wait()
            for place in range(len(WORDS)):
                last = place == len(WORDS) - 1
                if self.error is not None and place == 2:
                    raise self.error
                if kind == RequestOutputKind.FINAL_ONLY and not last:
                    continue
                first = place if kind == RequestOutputKind.DELTA else 0
                completion = CompletionOutput(
                    index=0,
                    text="".join(WORDS[first : place + 1]),
                    token_ids=list(range(first, place + 1)),
                    cumulative_logprob=None,
                    logprobs=None,
                    finish_reason=self.finish_reason if last else None,
                )
                yield RequestOutput(request_id, "p", [1], None, [completion], last)
                await asyncio.sleep(0)
        finally:
            self.closed += 1


class CachedModel(Model):
    """The same with the cache in front of it."""

    generate = caching(Model.generate)  # type: ignore[assignment]


def prompt(text: str = "hi") -> dict[str, Any]:
    rendered = f"U: {text} A:"
    return {
        "type": "token",
        "prompt": rendered,
        "prompt_token_ids": list(rendered.encode()),
        ANNOTATION_KEY: Annotation("chat", (text,)),
    }


def greedy(**options: Any) -> SamplingParams:  # noqa: ANN401
    options = {"output_kind": RequestOutputKind.FINAL_ONLY, **options}
    return SamplingParams(temperature=0.0, **options)


async def ask(
    model: Model,
    text: str = "hi",
    request_id: str = "r",
    **options: Any,  # noqa: ANN401
) -> list[RequestOutput]:
    params = greedy(**options)
    return [o async for o in model.generate(prompt(text), params, request_id)]


def answer_of(outputs: list[RequestOutput], kind: RequestOutputKind) -> Any:  # noqa: ANN401
    completions = [o.outputs[0] for o in outputs]
    if kind != RequestOutputKind.DELTA:
        completions = completions[-1:]
    ids = [i for c in completions for i in c.token_ids]
    return "".join(c.text for c in completions), ids, completions[-1].finish_reason


def run(main: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(asyncio.wait_for(main, 20))


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_a_repeat_is_answered_without_the_model(
    first: RequestOutputKind, second: RequestOutputKind
) -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        miss = await ask(model, output_kind=first)
        hit = await ask(model, request_id="other", output_kind=second)
        assert model.calls == 1
        assert answer_of(hit, second) == answer_of(miss, first)
        assert {o.request_id for o in hit} == {"other"}
        assert hit[-1].finished
        assert (cache.open, cache.faults) == (set(), [])

    run(main())


def test_an_engine_without_the_cache_is_not_touched() -> None:
    async def main() -> None:
        model = CachedModel(None)
        stream = model.generate(prompt(), greedy(), "r")
        assert stream.ag_code is Model.generate.__code__  # type: ignore[attr-defined]
        await ask(model)
        await ask(model)
        assert model.calls == 2

    run(main())


def test_another_question_is_a_miss() -> None:
    async def main() -> None:
        model = CachedModel(MemoryCache())
        await ask(model, "hi")
        await ask(model, "ho")
        assert model.calls == 2

    run(main())


def test_a_semantic_hit_is_served_and_not_shared_with_those_who_wait() -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        cache.semantic = Hit(
            Answer("yes", (7,), None, 1.0), "semantic", 1, 0.9, 0.99, 5
        )
        first, second = await asyncio.gather(ask(model), ask(model))
        assert first[0].outputs[0].text == second[0].outputs[0].text == "yes"
        assert len(cache.requests) == 2
        assert model.calls == 0

    run(main())


def test_a_hit_that_is_longer_than_the_request_allows_is_a_miss() -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        long = Answer("yes" * 9, tuple(range(9)), None, 1.0)
        cache.semantic = Hit(long, "semantic", 1, 0.9, 0.99, 5)
        await ask(model, max_tokens=8)
        assert model.calls == 1
        await ask(model, max_tokens=9)
        assert model.calls == 1

    run(main())


@pytest.mark.parametrize("reason", ["length", "abort", "error", "repetition"])
def test_only_complete_answers_are_kept(reason: str) -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        model.finish_reason = reason
        await ask(model)
        assert (cache.answers, cache.open, cache.abandoned) == ({}, set(), 1)

    run(main())


def test_a_client_that_leaves_leaves_nothing_behind() -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        params = greedy(output_kind=RequestOutputKind.DELTA)
        stream = model.generate(prompt(), params, "r")
        await anext(stream)
        await stream.aclose()
        assert (model.closed, cache.abandoned, cache.open) == (1, 1, set())
        assert cache.answers == {}

    run(main())


def test_a_cancelled_request_leaves_nothing_behind() -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        model.gate = asyncio.Event()
        task = asyncio.create_task(ask(model))
        await settled()
        task.cancel()
        await settled()
        assert task.cancelled()
        assert (model.closed, cache.abandoned, cache.open) == (1, 1, set())
        model.gate.set()
        await ask(model)
        assert len(cache.answers) == 1

    run(main())


def test_an_error_of_the_engine_arrives_unchanged_and_once() -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        model.error = RuntimeError("out of memory")
        received = []
        params = greedy(output_kind=RequestOutputKind.DELTA)
        with pytest.raises(RuntimeError) as caught:
            async for output in model.generate(prompt(), params, "r"):
                received.append(output)
        assert caught.value is model.error
        assert len(received) == 2
        assert (model.calls, cache.abandoned, cache.faults) == (1, 1, [])

    run(main())


def test_a_fault_of_the_cache_is_a_miss() -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        cache.broken = ZeroDivisionError()
        outputs = await ask(model)
        assert answer_of(outputs, RequestOutputKind.FINAL_ONLY)[0] == "".join(WORDS)
        assert model.calls == 1
        assert {where for where, _ in cache.faults} == {"enter", "lookup"}

    run(main())


def test_a_fault_while_planning_leaves_the_request_alone() -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        broken = {**prompt(), "prompt_token_ids": ["x"]}
        stream = model.generate(broken, greedy(), "r")
        assert len([o async for o in stream]) == 1
        assert cache.metrics.bypasses == {"fault": 1}
        assert [where for where, _ in cache.faults] == ["plan"]

    run(main())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"temperature": 1.0}, "sampled"),
        ({"n": 2, "temperature": 1.0}, "several_answers"),
        ({"logprobs": 1}, "logprobs"),
        ({"ignore_eos": True}, "forced_length"),
        ({"extra_args": {"vectorq_mode": "off"}}, "switched_off"),
        ({"extra_args": {"vectorq_mode": "of"}}, "malformed_control"),
        ({"extra_args": {"bias": object()}}, "unkeyable_parameter"),
    ],
)
def test_what_is_left_alone_is_counted(changes: dict[str, Any], reason: str) -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        params = SamplingParams(**{"temperature": 0.0, **changes})
        for _ in range(2):
            stream = model.generate(prompt(), params, "r")
            assert stream.ag_code is Model.generate.__code__  # type: ignore[attr-defined]
            assert [o async for o in stream]
        assert model.calls == 2
        assert cache.metrics.bypasses == {reason: 2}

    run(main())


@pytest.mark.parametrize("given", ["raw text", [1, 2], {"prompt": "raw"}])
def test_a_prompt_that_is_not_rendered_is_left_alone(given: object) -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        assert [o async for o in model.generate(given, greedy(), "r")]
        assert cache.metrics.bypasses == {"unrendered_prompt": 1}

    run(main())


def test_a_dead_engine_is_asked_although_the_answer_is_known() -> None:
    async def main() -> None:
        model = CachedModel(MemoryCache())
        await ask(model)
        model.errored = True
        await ask(model)
        assert model.calls == 2

    run(main())


def test_wrong_arguments_are_refused_by_the_engine_itself() -> None:
    async def main() -> None:
        model = CachedModel(MemoryCache())
        with pytest.raises(TypeError, match="request_id"):
            model.generate(prompt(), greedy())  # type: ignore[call-arg]

    run(main())


def test_identical_requests_in_flight_ask_the_model_once() -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        model.gate = asyncio.Event()
        tasks = [asyncio.create_task(ask(model, request_id=str(i))) for i in range(4)]
        await settled()
        assert model.calls == 1
        model.gate.set()
        answers = await asyncio.gather(*tasks)
        assert model.calls == 1
        assert [outputs[0].request_id for outputs in answers] == list("0123")
        assert len({outputs[0].outputs[0].text for outputs in answers}) == 1
        assert cache.metrics.hits == {"coalesced": 3}

    run(main())


def test_when_the_first_of_identical_requests_leaves_the_next_one_asks() -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        model.gate = asyncio.Event()
        tasks = [asyncio.create_task(ask(model)) for _ in range(3)]
        await settled()
        tasks[0].cancel()
        await settled()
        assert model.calls == 2
        model.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert all(isinstance(outputs, list) for outputs in answers[1:])
        assert model.calls == 2

    run(main())


def test_without_coalescing_nobody_waits() -> None:
    async def main() -> None:
        model = CachedModel(MemoryCache(coalesce=False))
        model.gate = asyncio.Event()
        tasks = [asyncio.create_task(ask(model)) for _ in range(3)]
        await settled()
        assert model.calls == 3
        model.gate.set()
        await asyncio.gather(*tasks)

    run(main())


def test_an_answer_that_must_not_be_stored_is_not() -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        await ask(model, extra_args={"vectorq_no_store": 1})
        assert cache.answers == {}
        await ask(model)
        await ask(model, extra_args={"vectorq_no_store": 1})
        assert model.calls == 2

    run(main())


def test_the_answer_is_known_before_its_last_piece_is_handed_over() -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        stream = model.generate(prompt(), greedy(), "r")
        await anext(stream)
        assert len(cache.answers) == 1
        await stream.aclose()
        assert (cache.abandoned, cache.open) == (0, set())

    run(main())


def test_limits_filled_in_from_the_prompts_length_do_not_separate() -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        for text in ("hi", "a longer question"):
            room = 100 - len(prompt(text)["prompt_token_ids"])
            await ask(model, text, max_tokens=room)
        await ask(model, "hi", max_tokens=None)
        await ask(model, "hi", max_tokens=20)
        assert model.calls == 3
        partitions = [r.partition.digest for r in cache.requests]
        assert partitions[0] == partitions[1] != partitions[-1]

    run(main())


def test_callers_are_told_apart_when_the_server_does() -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        calls = [HttpCall(tenant=t, principal=t.encode()) for t in ("a", "a", "b")]
        for call in calls:
            current_call.set(call)
            await ask(model)
        assert model.calls == 2
        assert [c.outcomes[0].result for c in calls] == ["miss", "hit", "miss"]
        assert [r.principal for r in cache.requests] == [b"a", b"b"]
        nameless = HttpCall(tenant_missing=True)
        current_call.set(nameless)
        await ask(model)
        assert nameless.outcomes[0].reason == "no_tenant"

    run(main())


def test_the_caller_is_the_one_who_called_not_the_one_who_reads() -> None:
    async def main() -> None:
        cache = MemoryCache()
        model = CachedModel(cache)
        caller = HttpCall(tenant="caller")
        current_call.set(caller)
        stream = model.generate(prompt(), greedy(), "r")
        current_call.set(HttpCall(tenant="reader"))
        assert [o async for o in stream]
        assert cache.requests[0].partition.facts["tenant"] == "caller"
        assert len(caller.outcomes) == 1

    run(main())
