# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""LoRA adapters: vLLM admits ``max_loras`` of them at a time and defers the rest.

First on vLLM's scheduler classes without a model, then in a real engine with small
adapters of random weights.
"""

import gc
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.output import SchedulerOutput

from benchmarks.program_sched.scheduler_harness import SchedulerHarness
from tests.program_sched.scheduler_cases import BOTH, EAGER_SRPT, prompt

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

RANK = 8


def adapter(number: int) -> LoRARequest | None:
    """An adapter for the scheduler, which never opens its files; 0 is none."""
    return LoRARequest(f"adapter-{number}", number, "/nowhere") if number else None


class LoraHarness(SchedulerHarness):
    """Records how many adapters run together at most."""

    def __init__(
        self,
        model: str,
        options: dict[str, Any],
        *,
        max_loras: int = 1,
        **more: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(
            model,
            options=options,
            enable_lora=True,
            max_loras=max_loras,
            max_cpu_loras=8,
            max_lora_rank=RANK,
            **more,
        )
        self.most_loras = 0
        self._adapter_of: dict[str, int] = {}

    def call(self, request_id: str, lora: int, *request: Any, **more: Any) -> None:  # noqa: ANN401
        """Queue a call of one adapter, or of the base model (0)."""
        self._adapter_of[request_id] = lora
        self.add(request_id, *request, lora_request=adapter(lora), **more)

    def step(self) -> SchedulerOutput:
        output = super().step()
        loras = {self._adapter_of[r] for r in output.num_scheduled_tokens} - {0}
        self.most_loras = max(self.most_loras, len(loras))
        return output

    def run_measured(self, steps: int) -> None:
        """Step as if every step took 20 ms, so that preempting can pay."""
        for _ in range(steps):
            self.step()
            self.scheduler.core.meter.step(0.02, 1, 1)

    def preemptions(self) -> dict[str, int]:
        return dict(self.scheduler("snapshot")["preemptions"])


@BOTH
@pytest.mark.parametrize("max_loras", [1, 2])
@pytest.mark.parametrize("forced", [False, True], ids=["normal", "forced"])
def test_random_adapters_finish_within_the_limit(
    model_path: str, asynchronous: bool, max_loras: int, forced: bool
) -> None:
    harness = LoraHarness(
        model_path,
        {"preempt_every_step": forced, "preempt_min_run_tokens": 1},
        max_loras=max_loras,
        async_scheduling=asynchronous,
        num_blocks=100,
        max_num_seqs=8,
        max_num_batched_tokens=256,
    )
    free = harness.free_blocks()
    rng = random.Random(5)
    wanted = {}
    for i in range(150):
        wanted[f"r{i}"] = rng.randrange(1, 40)
        harness.call(
            f"r{i}",
            rng.randrange(5),
            prompt(rng, rng.randrange(1, 200)),
            wanted[f"r{i}"],
            f"p{i % 20}",
        )
        if i % 3 == 0:
            harness.step()
    harness.drain()
    assert harness.finished == wanted
    assert harness.most_loras == max_loras
    assert harness.leftovers(free) == {}
    if forced:
        assert harness.preemptions()["forced"] > 100


@BOTH
def test_aborting_deferred_calls_leaves_nothing(
    model_path: str, asynchronous: bool
) -> None:
    harness = LoraHarness(
        model_path,
        {"preempt_every_step": True},
        async_scheduling=asynchronous,
        num_blocks=200,
        max_num_seqs=4,
    )
    free = harness.free_blocks()
    rng = random.Random(9)
    for i in range(300):
        harness.call(
            f"r{i}", 1 + i % 4, [1 + i % 900] * rng.randrange(1, 100), 20, f"p{i % 30}"
        )
        harness.step()
        deferred = sorted(r.request_id for r in harness.scheduler.deferred_waiting)
        harness.abort(rng.sample(deferred, min(len(deferred), rng.randrange(3))))
    harness.drain()
    assert harness.leftovers(free) == {}


@BOTH
def test_nobody_is_preempted_for_a_call_that_lora_defers(
    model_path: str, asynchronous: bool
) -> None:
    """Two calls of adapter 1 run; with one of them gone, adapter 2 still cannot."""
    harness = LoraHarness(
        model_path,
        EAGER_SRPT,
        async_scheduling=asynchronous,
        max_num_seqs=2,
        block_size=4,
    )
    free = harness.free_blocks()
    for name in ("long-a", "long-b"):
        harness.call(name, 1, [1] * 8, 300, name, program_remaining=100_000)
    harness.run_measured(40)
    for i in range(10):
        harness.call(f"short-{i}", 2, [2] * 8, 3, f"small-{i}", program_remaining=4)
    harness.run_measured(100)
    assert not any(name.startswith("short") for name in harness.finished)
    assert harness.preemptions() == {}
    harness.drain()
    assert harness.finished["long-a"] == harness.finished["long-b"] == 300
    assert all(harness.finished[f"short-{i}"] == 3 for i in range(10))
    assert harness.leftovers(free) == {}


@BOTH
def test_last_call_of_an_adapter_gives_way_to_a_better_one(
    model_path: str, asynchronous: bool
) -> None:
    """The victim takes its adapter with it, so the other adapter's call can run."""
    harness = LoraHarness(
        model_path,
        EAGER_SRPT,
        async_scheduling=asynchronous,
        max_num_seqs=1,
        block_size=4,
    )
    harness.call("long", 1, [1] * 8, 3000, "big", program_remaining=3000)
    harness.run_measured(40)
    harness.call("short", 2, [2] * 8, 3, "small", program_remaining=4)
    harness.run_measured(12)
    assert harness.finished.get("short") == 3
    assert harness.preemptions() == {"slots": 1}
    assert "long" in harness.scheduler.requests


@BOTH
def test_call_without_an_adapter_passes_deferred_ones(
    model_path: str, asynchronous: bool
) -> None:
    """The best calls are deferred; the next one may still take a slot."""
    harness = LoraHarness(
        model_path,
        EAGER_SRPT,
        async_scheduling=asynchronous,
        max_num_seqs=3,
        block_size=4,
    )
    for name in ("long-a", "long-b"):
        harness.call(name, 1, [1] * 8, 3000, name, program_remaining=100_000)
    harness.run_measured(40)
    # One slot is free: vLLM looks at these, and defers them.
    for i in range(3):
        harness.call(f"deferred-{i}", 2, [2] * 8, 3, f"small-{i}", program_remaining=4)
    harness.run_measured(1)
    assert len(harness.scheduler.deferred_waiting) == 3
    harness.call("filler", 0, [3] * 8, 3000, "filler", program_remaining=50_000)
    harness.run_measured(20)
    harness.call("base", 0, [4] * 8, 3, "base", program_remaining=8)
    harness.run_measured(12)
    assert harness.finished.get("base") == 3
    assert sum(harness.preemptions().values()) == 1


def write_adapter(folder: Path, number: int, model: str) -> LoRARequest:
    """An adapter in PEFT's file format, with small random weights."""
    config = json.loads((Path(model) / "config.json").read_text())
    hidden = config["hidden_size"]
    heads = {
        "q_proj": config["num_attention_heads"],
        "v_proj": config["num_key_value_heads"],
    }
    head_size = hidden // config["num_attention_heads"]
    random_numbers = torch.Generator().manual_seed(number)

    def weights(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(*shape, generator=random_numbers)

    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, num_heads in heads.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = weights(RANK, hidden)
            tensors[f"{name}.lora_B.weight"] = weights(num_heads * head_size, RANK)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": list(heads),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return LoRARequest(f"adapter-{number}", number, str(folder))


def answers_of(
    model: str,
    adapters: Sequence[LoRARequest],
    options: dict[str, Any] | None,
) -> tuple[list[tuple[int, ...]], dict[str, Any]]:
    """Greedy tokens of one call per adapter, and the scheduler's snapshot."""
    ours: dict[str, Any] = {
        "scheduler_cls": "vllm_program_sched.ProgramScheduler",
        "additional_config": {"program_sched": options},
    }
    llm = LLM(
        model,
        enforce_eager=True,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=256,
        block_size=32,
        enable_lora=True,
        max_loras=1,
        max_cpu_loras=4,
        max_lora_rank=RANK,
        **(ours if options is not None else {}),
    )
    # Each prompt once with every adapter.
    prompts = [
        f"The river number {i // 3 % 3} runs to the" for i in range(len(adapters))
    ]
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=6 + i % 5,
            ignore_eos=True,
            extra_args={"program_id": f"p{i % 5}"},
        )
        for i in range(len(adapters))
    ]
    outputs = llm.generate(prompts, params, lora_request=list(adapters), use_tqdm=False)
    scheduler: Any = llm.llm_engine.engine_core.engine_core.scheduler
    assert scheduler.get_request_counts() == (0, 0)
    snapshot = scheduler("snapshot") if options is not None else {}
    llm.llm_engine.engine_core.shutdown()
    del llm, scheduler
    gc.collect()
    return [tuple(output.outputs[0].token_ids) for output in outputs], snapshot


def test_real_adapters_give_the_same_answers(
    model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three adapters in fp32, one preemption in every step.

    Calls of the base model stay out: on CPUs vLLM applies the adapter in its last slot
    to them too, so what they answer depends on who ran before.
    """
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    adapters = [write_adapter(tmp_path / f"a{n}", n, model_path) for n in (1, 2, 3)]
    calls = [adapters[i % 3] for i in range(24)]
    plain, _ = answers_of(model_path, calls, None)
    ours, snapshot = answers_of(model_path, calls, {"preempt_every_step": True})
    assert ours == plain
    assert len({plain[i][:6] for i in range(3)}) == 3, "the adapters do nothing"
    assert snapshot["preemptions"]["forced"] > 20
    assert snapshot["faults"] == 0
    assert snapshot["active_calls"] == 0
