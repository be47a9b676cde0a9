# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Sleeping, pausing and waking up while calls run and wait.

One asynchronous engine in a process of its own, as behind ``vllm serve``; its calls
``sleep``, ``wake_up``, ``pause_generation`` and ``resume_generation`` are what the
routes ``/sleep``, ``/wake_up``, ``/pause`` and ``/resume`` call. On CPU vLLM does not
release memory in its sleep (and refuses ``enable_sleep_mode``); what concerns the
scheduler happens all the same: it is paused, its caches are reset and its running
calls are preempted.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

NUM_CALLS = 12
DEADLINE_S = 60.0
# Four slots: when the engine is stopped, some calls run and the others wait.
PROMPTS = [f"Chapter {i}. The river ran past the old stone" for i in range(NUM_CALLS)]


class Engine:
    """The engine, and the calls that go through it."""

    def __init__(self, model: str, runner: asyncio.Runner) -> None:
        arguments = AsyncEngineArgs(
            model=model,
            enforce_eager=True,
            dtype="float32",
            max_model_len=512,
            max_num_seqs=4,
            max_num_batched_tokens=256,
            block_size=32,
            scheduler_cls="vllm_program_sched.ProgramScheduler",
            additional_config={"program_sched": {"preempt_min_run_tokens": 1}},
        )

        async def start() -> AsyncLLM:
            return AsyncLLM.from_engine_args(arguments)

        self.run = runner.run
        self.llm = self.run(start())
        self.tokens: dict[int, list[int]] = {}
        self.reasons: dict[int, str | None] = {}
        self._number = 0

    async def call(self, index: int) -> None:
        """Run one call and note its tokens as they come."""
        self.tokens[index] = []
        self._number += 1
        params = SamplingParams(
            temperature=0.0,
            max_tokens=32 + index % 5,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
            extra_args={"program_id": f"p{index % 5}"},
        )
        async for output in self.llm.generate(
            PROMPTS[index], params, request_id=f"call-{self._number}"
        ):
            self.tokens[index] += output.outputs[0].token_ids
            self.reasons[index] = output.outputs[0].finish_reason

    def start_calls(self) -> asyncio.Future[list[None]]:
        return asyncio.gather(*(self.call(index) for index in range(NUM_CALLS)))

    async def under_way(self) -> None:
        """Wait until calls run, others wait, and none has ended."""
        await until(self.is_mixed)
        assert not self.reasons_given()

    async def is_mixed(self) -> bool:
        snapshot = await self.snapshot()
        some = sum(len(tokens) >= 3 for tokens in self.tokens.values())
        return some >= 2 and snapshot["waiting_calls"] >= 4

    def reasons_given(self) -> list[str]:
        return [reason for reason in self.reasons.values() if reason is not None]

    async def snapshot(self) -> dict[str, Any]:
        answers = await self.llm.engine_core.call_utility_all_async(
            "scheduler", "snapshot", {}
        )
        return dict(answers[0])

    async def assert_nothing_is_left(self) -> None:
        async def empty() -> bool:
            return (await self.snapshot())["active_calls"] == 0

        await until(empty)
        snapshot = await self.snapshot()
        assert snapshot["waiting_calls"] == 0
        assert snapshot["faults"] == 0
        # vLLM resets the prefix cache only when no block is in use.
        assert await self.llm.reset_prefix_cache()
        assert not await self.llm.is_sleeping()

    def forget(self) -> None:
        self.tokens.clear()
        self.reasons.clear()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not await condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def shared_engine(model_path: str) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as environment, asyncio.Runner() as runner:
        environment.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        engine = Engine(model_path, runner)
        try:
            yield engine
        finally:
            engine.llm.shutdown()


@pytest.fixture(scope="module")
def undisturbed(shared_engine: Engine) -> dict[int, list[int]]:
    """The answers when nothing stops the engine."""

    async def run() -> None:
        await shared_engine.start_calls()
        await shared_engine.assert_nothing_is_left()

    shared_engine.forget()
    shared_engine.run(run())
    return dict(shared_engine.tokens)


@pytest.fixture
def engine(shared_engine: Engine, undisturbed: dict[int, list[int]]) -> Engine:
    shared_engine.forget()
    return shared_engine


async def assert_stands_still(engine: Engine) -> None:
    """No call goes on, and a new one is only queued."""
    seen = {index: list(tokens) for index, tokens in engine.tokens.items()}
    before = (await engine.snapshot())["active_calls"]
    late = asyncio.ensure_future(engine.call(-1))

    async def queued() -> bool:
        return (await engine.snapshot())["active_calls"] == before + 1

    await until(queued)
    # The engine has answered all of these; an engine that runs would have stepped.
    for _ in range(20):
        await engine.snapshot()
    late_tokens = engine.tokens.pop(-1)
    assert late_tokens == []
    assert engine.tokens == seen
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_calls_survive_a_sleep(
    engine: Engine, undisturbed: dict[int, list[int]], level: int
) -> None:
    """From level 1 on the caches are reset, so running calls are preempted."""

    async def run() -> None:
        calls = engine.start_calls()
        await engine.under_way()
        before = (await engine.snapshot())["preemptions"].get("kv", 0)
        await engine.llm.sleep(level, mode="keep")
        assert await engine.llm.is_sleeping()
        await assert_stands_still(engine)
        after = (await engine.snapshot())["preemptions"].get("kv", 0)
        assert after - before == (4 if level else 0)
        assert await engine.llm.wake_up(["scheduling"] if level == 0 else None)
        await calls
        await engine.assert_nothing_is_left()

    engine.run(run())
    assert engine.tokens == undisturbed


def test_calls_survive_many_short_sleeps(
    engine: Engine, undisturbed: dict[int, list[int]]
) -> None:
    async def run() -> None:
        calls = engine.start_calls()
        await engine.under_way()
        sleeps = 0
        while not calls.done():
            await engine.llm.sleep(1, mode="keep")
            await engine.llm.wake_up()
            sleeps += 1
            progress = sum(map(len, engine.tokens.values()))

            async def moved(progress: int = progress) -> bool:
                return calls.done() or sum(map(len, engine.tokens.values())) > progress

            await until(moved)
        await calls
        assert sleeps > 5
        await engine.assert_nothing_is_left()

    engine.run(run())
    assert engine.tokens == undisturbed


def test_pause_that_waits_ends_with_the_running_calls(
    engine: Engine, undisturbed: dict[int, list[int]]
) -> None:
    """Running calls end, waiting ones stay queued until the engine goes on."""

    async def run() -> None:
        calls = engine.start_calls()
        await engine.under_way()
        await engine.llm.pause_generation(mode="wait", clear_cache=True)
        assert await engine.llm.is_paused()
        waiting = (await engine.snapshot())["waiting_calls"]
        assert (await engine.snapshot())["active_calls"] == waiting
        assert 0 < waiting <= NUM_CALLS - 4

        async def delivered() -> bool:
            return len(engine.reasons_given()) == NUM_CALLS - waiting

        await until(delivered)
        await engine.llm.resume_generation()
        await calls
        await engine.assert_nothing_is_left()

    engine.run(run())
    assert engine.tokens == undisturbed


def test_pause_that_aborts_leaves_nothing(
    engine: Engine, undisturbed: dict[int, list[int]]
) -> None:
    async def run() -> None:
        calls = engine.start_calls()
        await engine.under_way()
        await engine.llm.pause_generation(mode="abort")
        await calls
        assert set(engine.reasons.values()) == {"abort"}
        assert (await engine.snapshot())["active_calls"] == 0
        await engine.llm.resume_generation()
        for index, tokens in engine.tokens.items():
            assert tokens == undisturbed[index][: len(tokens)]
        engine.forget()
        await engine.start_calls()
        await engine.assert_nothing_is_left()

    engine.run(run())
    assert engine.tokens == undisturbed
