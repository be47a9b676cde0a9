# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A real engine answers the same, call by call, whatever the scheduler does."""

import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

WORDS = ["time", "light", "river", "stone", "cloud", "garden", "number", "letter"]


@dataclass
class Run:
    """What one engine produced."""

    texts: list[tuple[str, ...]]
    tokens: list[tuple[tuple[int, ...], ...]]
    snapshot: dict[str, Any] | None
    left: tuple[int, int]
    scheduler: str
    guarded: bool


def mixed_requests(count: int) -> tuple[list[str], list[SamplingParams]]:
    """Short and long prompts, shared prefixes, n > 1, stops, grammars, limits."""
    rng = random.Random(11)
    prefixes = [" ".join(rng.choices(WORDS, k=60)) for _ in range(4)]
    prompts, params = [], []
    for i in range(count):
        prefix = rng.choice(prefixes) + " " if i % 2 else ""
        prompts.append(prefix + " ".join(rng.choices(WORDS, k=rng.randrange(3, 120))))
        options: dict[str, Any] = {
            "temperature": 0.0,
            "max_tokens": rng.randrange(2, 14),
            "extra_args": {"program_id": f"p{i % 17}", "thread_id": f"t{i % 3}"},
        }
        if i % 10 == 3:
            # vLLM refuses n > 1 at temperature 0; the best token alone is the same.
            options |= {"n": 2, "temperature": 1.0, "top_k": 1}
        elif i % 10 == 5:
            options["stop"] = ["the", "a"]
        elif i % 10 == 7:
            options["structured_outputs"] = StructuredOutputsParams(
                choice=["alpha beta", "gamma delta epsilon"]
            )
        elif i % 10 == 9:
            options["logprobs"] = 1
        params.append(SamplingParams(**options))
    return prompts, params


def run_engine(
    model: str,
    requests: tuple[list[str], list[SamplingParams]],
    options: dict[str, Any] | None,
    monkeypatch: pytest.MonkeyPatch,
    **engine: int,
) -> Run:
    """Run all requests on one engine in this process."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    ours: dict[str, Any] = {
        "scheduler_cls": "vllm_program_sched.ProgramScheduler",
        "additional_config": {"program_sched": options},
    }
    llm = LLM(
        model,
        enforce_eager=True,
        dtype="float32",
        max_model_len=1024,
        block_size=32,
        **engine,
        **(ours if options is not None else {}),
    )
    prompts, params = requests
    outputs: Sequence[Any] = llm.generate(prompts, params, use_tqdm=False)
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    run = Run(
        [tuple(o.text for o in output.outputs) for output in outputs],
        [tuple(tuple(o.token_ids) for o in output.outputs) for output in outputs],
        scheduler("snapshot") if options is not None else None,
        scheduler.get_request_counts(),
        type(scheduler).__name__,
        getattr(scheduler, "_guarded", True),
    )
    llm.llm_engine.engine_core.shutdown()
    del llm, scheduler
    gc.collect()
    return run


def test_forced_preemption_changes_no_answer(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 mixed requests in fp32, one preemption in every step."""
    requests = mixed_requests(200)
    engine = {"max_num_seqs": 16, "max_num_batched_tokens": 256}
    plain = run_engine(model_path, requests, None, monkeypatch, **engine)
    ours = run_engine(
        model_path, requests, {"preempt_every_step": True}, monkeypatch, **engine
    )
    assert ours.scheduler == "SyncProgramScheduler"
    assert ours.guarded
    assert ours.snapshot is not None
    assert ours.snapshot["preemptions"]["forced"] > 100
    assert ours.snapshot["faults"] == 0
    assert ours.snapshot["active_calls"] == 0
    assert ours.left == (0, 0)
    different = [
        i
        for i, (a, b) in enumerate(zip(plain.tokens, ours.tokens, strict=True))
        if a != b
    ]
    assert different == []


def test_kv_pressure_changes_no_answer(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So few KV blocks that vLLM itself preempts, with our order of victims."""
    requests = mixed_requests(40)
    long = [
        SamplingParams(
            temperature=0.0, max_tokens=60, ignore_eos=True, extra_args=p.extra_args
        )
        for p in requests[1]
    ]
    engine = {"max_num_seqs": 16, "num_gpu_blocks_override": 34}
    plain = run_engine(model_path, (requests[0], long), None, monkeypatch, **engine)
    ours = run_engine(model_path, (requests[0], long), {}, monkeypatch, **engine)
    assert ours.snapshot is not None
    assert ours.snapshot["preemptions"]["kv"] > 0
    assert ours.left == (0, 0)
    assert ours.tokens == plain.tokens


def test_pooling_models_are_refused_by_name(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    with pytest.raises(ValueError, match="pooling"):
        LLM(
            model_path,
            enforce_eager=True,
            max_model_len=256,
            runner="pooling",
            scheduler_cls="vllm_program_sched.ProgramScheduler",
        )
