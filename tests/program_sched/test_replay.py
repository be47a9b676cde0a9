# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The replayer: what it sends, in which order, and how it reports failures."""

import asyncio
import io
import itertools
from typing import Any

import httpx
import pytest

from benchmarks.program_sched.progress import Progress
from benchmarks.program_sched.records import (
    PREFILL_WEIGHT,
    CallRecord,
    ProgramRecord,
    attained_service,
)
from benchmarks.program_sched.replay import ReplayOptions, call_body, replay, warm_up
from benchmarks.program_sched.server import free_port
from benchmarks.program_sched.workload import (
    ProgramSpec,
    WorkloadParams,
    generate_programs,
    remaining_service,
)

OPTIONS = ReplayOptions("http://127.0.0.1:1", "m")
TREE = generate_programs(WorkloadParams(programs=1, mix=(0, 0, 1)))[0]
SMALL = WorkloadParams(
    programs=6,
    rate=50.0,
    mix=(1, 1, 1),
    call_scale=0.3,
    tree_call_scale=0.04,
    token_scale=0.05,
    min_output_tokens=3,
    max_output_tokens=6,
    think_scale=0.0,
)


def _done(program: ProgramSpec, count: int) -> list[CallRecord]:
    return [
        CallRecord(
            call.call_id,
            0.0,
            1.0,
            100,
            60,
            call.output_tokens,
            answer_id=f"answer-{call.call_id}",
        )
        for call in program.calls[:count]
    ]


def test_a_call_names_its_thread_and_parents_and_forces_its_length() -> None:
    call = TREE.calls[1]
    body = call_body(TREE, call, [], _done(TREE, 1), OPTIONS)
    assert body["vllm_xargs"] == {
        "thread_id": call.thread,
        "parent_call_ids": [f"answer-{parent}" for parent in call.parents],
    }
    assert body["min_tokens"] == body["max_tokens"] == call.output_tokens
    assert body["ignore_eos"] is True
    assert "priority" not in body


def test_only_the_last_open_call_ends_the_program() -> None:
    ends = [
        "program_end"
        in call_body(TREE, call, [], _done(TREE, index), OPTIONS)["vllm_xargs"]
        for index, call in enumerate(TREE.calls)
    ]
    assert ends == [False] * (len(ends) - 1) + [True]


def test_the_oracle_tells_the_work_of_all_unfinished_calls() -> None:
    options = ReplayOptions("http://127.0.0.1:1", "m", hints="oracle")
    body = call_body(TREE, TREE.calls[3], [], _done(TREE, 3), options)
    expected = remaining_service(TREE.calls[3:], PREFILL_WEIGHT)
    assert body["vllm_xargs"]["program_remaining"] == expected


def test_client_side_las_is_a_priority_that_grows_with_service() -> None:
    options = ReplayOptions("http://127.0.0.1:1", "m", hints="client_las")
    priorities = [
        call_body(TREE, call, [], _done(TREE, index), options)["priority"]
        for index, call in enumerate(TREE.calls)
    ]
    assert priorities[0] == 0
    assert priorities == sorted(set(priorities))


def test_cached_prompt_tokens_cost_nothing() -> None:
    done = [CallRecord("a", 0, 1, prompt_tokens=100, cached_tokens=60)]
    assert attained_service(done) == PREFILL_WEIGHT * 40


def test_progress_shows_failures() -> None:
    stream = io.StringIO()
    progress = Progress("x", 2, stream)
    progress.call_finished()
    progress.program_finished(failed=True)
    assert "1/2 programs, 1 calls, 1 FAILED" in progress.line()
    progress.program_finished(failed=False)
    asyncio.run(progress.follow())
    assert "2/2 programs" in stream.getvalue()


def test_a_server_that_is_not_there_fails_every_program_and_is_reported() -> None:
    options = ReplayOptions(f"http://127.0.0.1:{free_port()}", "m")
    programs = generate_programs(SMALL)
    records = asyncio.run(replay(programs, options, stream=io.StringIO()))
    assert [record.program_id for record in records] == [
        program.program_id for program in programs
    ]
    for record in records:
        assert record.error is not None
        assert "Connect" in record.error
        assert record.completion_tokens == 0


def _options(server: Any, **changes: Any) -> ReplayOptions:  # noqa: ANN401
    model = server.client.get(f"{server.base_url}/v1/models").json()["data"][0]["id"]
    settings = {"api_key": server.api_key, **changes}
    return ReplayOptions(server.base_url, model, **settings)


def _replay(programs: list[ProgramSpec], options: ReplayOptions) -> list[ProgramRecord]:
    return asyncio.run(replay(programs, options, stream=io.StringIO()))


@pytest.mark.vllm
def test_a_real_server_answers_every_call_after_its_parents(
    program_server: Any,  # noqa: ANN401
) -> None:
    options = _options(program_server)
    asyncio.run(warm_up(options))
    programs = generate_programs(SMALL)
    assert {program.kind for program in programs} == {"chat", "tools", "tree"}
    for program, record in zip(programs, _replay(programs, options), strict=True):
        assert record.error is None
        calls = {call.call_id: call for call in record.calls}
        assert calls.keys() == {spec.call_id for spec in program.calls}
        for spec in program.calls:
            call = calls[spec.call_id]
            assert call.completion_tokens == spec.output_tokens
            assert call.prompt_tokens == pytest.approx(spec.prompt_tokens, rel=0.1)
            assert call.finish_s > call.submit_s
            for parent in spec.parents:
                assert calls[parent].finish_s <= call.submit_s
        assert record.latency_s >= max(call.finish_s for call in record.calls) - (
            record.arrival_s
        )


@pytest.mark.vllm
def test_one_at_a_time_never_overlaps(program_server: Any) -> None:  # noqa: ANN401
    options = _options(program_server, one_at_a_time=True)
    records = _replay(generate_programs(SMALL)[:3], options)
    for before, after in itertools.pairwise(records):
        assert after.arrival_s >= before.finish_s


@pytest.mark.vllm
def test_a_refused_call_fails_its_program_with_the_servers_reason(
    program_server: Any,  # noqa: ANN401
) -> None:
    options = _options(program_server, api_key="wrong")
    for record in _replay(generate_programs(SMALL), options):
        assert record.error is not None
        assert "HTTP 401" in record.error
    assert httpx.get(f"{program_server.base_url}/health").status_code == 200
