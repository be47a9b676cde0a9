# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The benchmark's workload: valid programs, published shapes, same for everyone."""

import dataclasses
import json
import statistics
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.program_sched.prose import sentences
from benchmarks.program_sched.workload import (
    KINDS,
    SHAPES,
    ProgramSpec,
    WorkloadParams,
    generate_programs,
    remaining_service,
    system_prompt,
)

PARAMS = st.builds(
    WorkloadParams,
    seed=st.integers(0, 10_000),
    programs=st.integers(1, 20),
    rate=st.floats(0.05, 20.0),
    call_scale=st.floats(0.1, 1.5),
    token_scale=st.floats(0.02, 1.0),
    max_context_tokens=st.integers(600, 4000),
)


@settings(max_examples=60, deadline=None)
@given(PARAMS)
def test_every_program_is_a_dag_whose_calls_can_be_made_in_order(
    params: WorkloadParams,
) -> None:
    programs = generate_programs(params)
    assert len(programs) == params.programs
    assert len({program.program_id for program in programs}) == params.programs
    for program in programs:
        ancestors: dict[str, set[str]] = {}
        assert program.calls
        for call in program.calls:
            assert call.call_id not in ancestors
            assert (call.context is None) == (not call.parents)
            assert bool(call.parents) == bool(ancestors), "only the first has no parent"
            known = set(call.parents).union(*(ancestors[p] for p in call.parents))
            assert call.context is None or call.context in known
            ancestors[call.call_id] = known
            assert call.text
            assert call.output_tokens >= params.min_output_tokens
            assert call.output_tokens <= params.max_output_tokens
            assert call.think_time_s >= 0


@settings(max_examples=60, deadline=None)
@given(PARAMS)
def test_follow_up_calls_stay_within_the_context(params: WorkloadParams) -> None:
    for program in generate_programs(params):
        judgements = [call for call in program.calls if call.thread == "main"]
        for call in judgements[1:]:
            assert call.context_tokens <= params.max_context_tokens


def test_the_seed_decides_everything() -> None:
    first = generate_programs(WorkloadParams(seed=7))
    assert first == generate_programs(WorkloadParams(seed=7))
    assert first != generate_programs(WorkloadParams(seed=8))


def test_another_rate_only_stretches_the_arrivals() -> None:
    slow = generate_programs(WorkloadParams(seed=3, rate=0.5))
    fast = generate_programs(WorkloadParams(seed=3, rate=2.0))
    assert [p.calls for p in slow] == [p.calls for p in fast]
    assert [p.arrival_s for p in slow] == pytest.approx(
        [4 * p.arrival_s for p in fast], rel=1e-9
    )


def test_a_text_variant_changes_the_words_and_nothing_else() -> None:
    def shapes(programs: list[ProgramSpec]) -> list[list[object]]:
        return [
            [dataclasses.replace(call, text="") for call in program.calls]
            for program in programs
        ]

    plain = generate_programs(WorkloadParams(seed=3))
    other = generate_programs(WorkloadParams(seed=3, text_variant="b"))
    assert shapes(plain) == shapes(other)
    for one, two in zip(plain, other, strict=True):
        assert one.program_id != two.program_id
        assert one.calls[0].text != two.calls[0].text


@pytest.mark.parametrize("kind", ["chat", "tools"])
def test_call_counts_have_the_published_mean_and_a_heavy_tail(kind: str) -> None:
    mix = tuple(float(kind == other) for other in KINDS)
    params = WorkloadParams(
        programs=4000,
        mix=(mix[0], mix[1], mix[2]),
        call_scale=1.0,
        max_context_tokens=10**9,
    )
    counts = [len(program.calls) for program in generate_programs(params)]
    shape = next(SHAPES[other] for other in KINDS if other == kind)
    assert statistics.mean(counts) == pytest.approx(shape.mean_calls, rel=0.07)
    assert max(counts) > 0.75 * shape.max_calls
    assert max(counts) <= shape.max_calls
    assert statistics.median(counts) < 0.8 * statistics.mean(counts)


def test_trees_fork_into_threads_and_join() -> None:
    params = WorkloadParams(programs=20, mix=(0, 0, 1))
    for program in generate_programs(params):
        joins = [call for call in program.calls if len(call.parents) > 1]
        assert joins
        assert program.calls[-1] in joins
        by_id = {call.call_id: call for call in program.calls}
        for join in joins:
            branches = [by_id[parent] for parent in join.parents]
            assert 3 <= len(branches) <= 4
            assert len({branch.thread for branch in branches}) == len(branches)
            assert len({branch.context for branch in branches}) == 1


def test_the_mix_is_exact() -> None:
    programs = generate_programs(WorkloadParams(programs=50, mix=(0.6, 0.3, 0.1)))
    kinds = [program.kind for program in programs]
    assert [kinds.count(kind) for kind in KINDS] == [30, 15, 5]
    assert kinds != sorted(kinds), "kinds must arrive in random order"


@pytest.mark.parametrize(
    "wrong",
    [{"programs": 0}, {"rate": 0.0}, {"mix": (0.0, 0.0, 0.0)}, {"mix": (1.0, -1.0, 1)}],
)
def test_impossible_parameters_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="=") as caught:
        WorkloadParams(**wrong)  # type: ignore[arg-type]
    assert next(iter(wrong)) in str(caught.value)


def test_remaining_service_shrinks_to_nothing() -> None:
    program = generate_programs(WorkloadParams(programs=1, mix=(0, 0, 1)))[0]
    rest = [
        remaining_service(program.calls[index:], 0.25)
        for index in range(len(program.calls) + 1)
    ]
    assert rest[0] == program.output_tokens + 0.25 * program.new_prompt_tokens
    assert rest == sorted(rest, reverse=True)
    assert rest[-1] == 0


def test_system_prompts_are_long_and_the_tool_one_holds_json() -> None:
    prompts = {kind: system_prompt(kind) for kind in KINDS}
    assert len(set(prompts.values())) == 3
    assert all(len(prompt.split()) >= 80 for prompt in prompts.values())
    tools = json.loads(prompts["tools"].partition("Available tools: ")[2])
    assert all({"name", "description", "parameters"} <= tool.keys() for tool in tools)


@given(st.integers(0, 10_000), st.integers(2, 400))
def test_text_has_the_length_asked_for(seed: int, tokens: int) -> None:
    text = sentences(Random(seed), tokens)
    length = len(text.replace(".", " .").split())
    assert tokens <= length <= tokens + 1


@pytest.mark.vllm
def test_words_and_marks_are_tokens_of_the_demo_model(model_path: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    text = sentences(Random(1), 2000)
    assert len(tokenizer.encode(text)) == pytest.approx(2000, rel=0.03)
