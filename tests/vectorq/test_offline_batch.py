# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The cache in front of an offline engine: mechanics, with a model of a few lines."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from tests.vectorq.memory_cache import MemoryCache
from vllm_vectorq import hooks_offline
from vllm_vectorq.compat import ModelFacts
from vllm_vectorq.engine_adapter import ATTRIBUTE, EngineAdapter
from vllm_vectorq.partition import ANNOTATION_KEY, Annotation


class Engine:
    """Where ``LLMEngine`` stands: finishes its oldest request with every step."""

    should_execute_dummy_batch = False

    def __init__(self, cache: MemoryCache | None) -> None:
        self.renderer = SimpleNamespace(tokenizer=None)
        self.running: dict[str, tuple[str, dict[str, Any]]] = {}
        self.output_processor = SimpleNamespace(
            has_unfinished_requests=lambda: bool(self.running)
        )
        self.served: list[str] = []
        self.finish_reason = "stop"
        self.error: Exception | None = None
        if cache is not None:
            facts = ModelFacts("model", "build", "tokenizer", 100, 1)
            setattr(self, ATTRIBUTE, EngineAdapter(cache, facts, None))

    def add_request(
        self,
        request_id: str,
        prompt: Any,  # noqa: ANN401
        params: Any,  # noqa: ANN401
        arrival_time: float | None = None,
        lora_request: Any = None,  # noqa: ANN401
    ) -> str:
        if self.error is not None:
            raise self.error
        internal = f"{request_id}-0123abcd"
        self.running[internal] = request_id, prompt
        return internal

    def step(self) -> list[RequestOutput]:
        assert self.running, "a real engine would wait for ever"
        internal = next(iter(self.running))
        request_id, prompt = self.running.pop(internal)
        self.served.append(request_id)
        text = f"answer to {prompt['prompt']}"
        completion = CompletionOutput(
            0, text, [1, 2], None, None, finish_reason=self.finish_reason
        )
        ids = prompt["prompt_token_ids"]
        return [
            RequestOutput(request_id, prompt["prompt"], ids, None, [completion], True)
        ]

    def has_unfinished_requests(self) -> bool:
        return bool(self.running)

    def get_num_unfinished_requests(self) -> int:
        return len(self.running)

    def abort_request(self, request_ids: list[str], internal: bool = False) -> None:
        for own, (request_id, _) in list(self.running.items()):
            if (own if internal else request_id) in request_ids:
                del self.running[own]


class CachedEngine(Engine):
    """The same with the cache in front of it."""

    add_request = hooks_offline._add_request(Engine.add_request)
    step = hooks_offline._step(Engine.step)
    has_unfinished_requests = hooks_offline._has_unfinished_requests(
        Engine.has_unfinished_requests
    )
    get_num_unfinished_requests = hooks_offline._get_num_unfinished_requests(
        Engine.get_num_unfinished_requests
    )
    abort_request = hooks_offline._abort_request(Engine.abort_request)


def prompt(text: str) -> dict[str, Any]:
    return {
        "type": "token",
        "prompt": text,
        "prompt_token_ids": list(text.encode()),
        ANNOTATION_KEY: Annotation("completions", (text,)),
    }


def add(engine: Engine, request_id: str, text: str, **options: Any) -> str:  # noqa: ANN401
    kind = RequestOutputKind.FINAL_ONLY
    params = SamplingParams(temperature=0.0, output_kind=kind, **options)
    return engine.add_request(request_id, prompt(text), params)


def generate(engine: Engine, texts: list[str], first: int = 0) -> dict[str, str]:
    """Run a batch as ``LLM`` does."""
    for place, text in enumerate(texts):
        add(engine, str(first + place), text)
    assert engine.get_num_unfinished_requests() == len(texts)
    return drain(engine)


def drain(engine: Engine) -> dict[str, str]:
    answers: dict[str, str] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert output.finished
            assert output.request_id not in answers
            answers[output.request_id] = output.outputs[0].text
    return answers


def test_a_second_batch_needs_no_step() -> None:
    cache = MemoryCache()
    engine = CachedEngine(cache)
    first = generate(engine, ["a", "b"])
    second = generate(engine, ["b", "a"], 2)
    assert engine.served == ["0", "1"]
    assert second == {"2": first["1"], "3": first["0"]}


def test_hits_and_misses_come_out_together() -> None:
    engine = CachedEngine(MemoryCache())
    generate(engine, ["a"])
    answers = generate(engine, ["a", "b", "a", "c"], 1)
    assert sorted(answers) == ["1", "2", "3", "4"]
    assert engine.served == ["0", "2", "4"]


def test_identical_prompts_of_one_batch_run_once() -> None:
    cache = MemoryCache()
    engine = CachedEngine(cache)
    answers = generate(engine, ["a", "b", "a", "a"])
    assert engine.served == ["0", "1"]
    assert answers["0"] == answers["2"] == answers["3"] == "answer to a"
    assert cache.metrics.hits == {"coalesced": 2}


def test_without_coalescing_all_of_them_run() -> None:
    engine = CachedEngine(MemoryCache(coalesce=False))
    generate(engine, ["a", "a"])
    assert engine.served == ["0", "1"]


def test_when_an_answer_cannot_be_shared_all_who_waited_run() -> None:
    cache = MemoryCache()
    engine = CachedEngine(cache)
    engine.finish_reason = "length"
    answers = generate(engine, ["a", "a", "a"])
    assert sorted(answers) == ["0", "1", "2"]
    assert engine.served == ["0", "1", "2"]
    assert (cache.abandoned, cache.open, cache.answers) == (1, set(), {})


@pytest.mark.parametrize("internal", [True, False])
def test_aborting_the_first_lets_the_others_run(internal: bool) -> None:
    cache = MemoryCache()
    engine = CachedEngine(cache)
    handles = [add(engine, name, "a") for name in "xyz"]
    engine.abort_request([handles[0]] if internal else ["x"], internal)
    assert engine.get_num_unfinished_requests() == 2
    assert sorted(drain(engine)) == ["y", "z"]
    assert cache.abandoned == 1


@pytest.mark.parametrize("internal", [True, False])
def test_aborting_one_who_waits_affects_nobody_else(internal: bool) -> None:
    engine = CachedEngine(MemoryCache())
    handles = [add(engine, name, "a") for name in "xyz"]
    engine.abort_request([handles[1]] if internal else ["y"], internal)
    assert sorted(drain(engine)) == ["x", "z"]
    assert engine.served == ["x"]


def test_aborting_one_who_waited_and_runs_now_reaches_the_engine() -> None:
    engine = CachedEngine(MemoryCache())
    handles = [add(engine, name, "a") for name in "xyz"]
    engine.abort_request([handles[0]], True)
    engine.abort_request([handles[1]], True)
    assert sorted(drain(engine)) == ["z"]


@pytest.mark.parametrize("internal", [True, False])
def test_aborting_a_hit_takes_it_back(internal: bool) -> None:
    engine = CachedEngine(MemoryCache())
    generate(engine, ["a"])
    handles = [add(engine, name, "a") for name in "xy"]
    engine.abort_request([handles[0]] if internal else ["x"], internal)
    assert sorted(drain(engine)) == ["y"]


def test_aborting_a_whole_batch_leaves_nothing() -> None:
    cache = MemoryCache()
    engine = CachedEngine(cache)
    handles = [add(engine, str(i), "a") for i in range(3)]
    engine.abort_request(handles, internal=True)
    assert not engine.has_unfinished_requests()
    assert engine.get_num_unfinished_requests() == 0
    assert cache.open == set()


def test_an_error_of_the_engine_arrives_unchanged() -> None:
    cache = MemoryCache()
    engine = CachedEngine(cache)
    engine.error = ValueError("prompt too long")
    with pytest.raises(ValueError) as caught:
        add(engine, "0", "a")
    assert caught.value is engine.error
    assert (cache.abandoned, cache.open, cache.faults) == (1, set(), [])


def test_a_fault_of_the_cache_is_a_miss() -> None:
    cache = MemoryCache()
    engine = CachedEngine(cache)
    cache.broken = ZeroDivisionError()
    assert sorted(generate(engine, ["a", "b"])) == ["0", "1"]
    assert engine.served == ["0", "1"]
    assert {where for where, _ in cache.faults} == {"lookup"}


def test_requests_of_one_id_all_end() -> None:
    cache = MemoryCache()
    engine = CachedEngine(cache)
    add(engine, "x", "a")
    engine.running["other"] = engine.running.pop("x-0123abcd")
    add(engine, "x", "b")
    while engine.has_unfinished_requests():
        engine.step()
    assert engine.served == ["x", "x"]
    assert cache.open == set()
    assert [a.text for _, a in cache.answers.values()] == ["answer to a"]


def test_an_engine_without_the_cache_is_not_touched() -> None:
    engine = CachedEngine(None)
    assert generate(engine, ["a", "a"]) == {"0": "answer to a", "1": "answer to a"}
    assert add(engine, "x", "a") == "x-0123abcd"
    engine.abort_request(["x"])
    assert not engine.has_unfinished_requests()
    assert vars(engine).keys() == vars(Engine(None)).keys()


@given(st.lists(st.sampled_from("abc"), max_size=8), st.booleans(), st.booleans())
def test_every_prompt_gets_its_answer(texts: str, stops: bool, twice: bool) -> None:
    cache = MemoryCache()
    engine = CachedEngine(cache)
    engine.finish_reason = "stop" if stops else "length"
    for round_ in range(1 + twice):
        answers = generate(engine, list(texts), 10 * round_)
        expected = {str(10 * round_ + i): f"answer to {t}" for i, t in enumerate(texts)}
        assert answers == expected
    assert cache.open == set()
    if stops:
        assert len(engine.served) == len(set(texts))
