# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""More adapters than vLLM may load at once, on its real scheduler classes."""

import random

import pytest
from vllm.lora.request import LoRARequest

from benchmarks.program_sched.scheduler_harness import SchedulerHarness

BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
ADAPTERS = [LoRARequest(f"adapter-{i}", i, f"/adapters/{i}") for i in range(1, 5)]


def harness_with(
    model_path: str, max_loras: int, asynchronous: bool = False, **options: object
) -> SchedulerHarness:
    return SchedulerHarness(
        model_path,
        options=dict(options) or None,
        max_num_seqs=4,
        async_scheduling=asynchronous,
        enable_lora=True,
        max_loras=max_loras,
        max_cpu_loras=8,
    )


@BOTH
@pytest.mark.parametrize("forced", [False, True], ids=["normal", "forced"])
@pytest.mark.parametrize("max_loras", [1, 2])
def test_the_limit_holds_and_everything_finishes(
    model_path: str, asynchronous: bool, forced: bool, max_loras: int
) -> None:
    harness = harness_with(
        model_path, max_loras, asynchronous, preempt_every_step=forced
    )
    free = harness.free_blocks()
    rng = random.Random(5)
    adapter_of = {}
    for i in range(60):
        name = f"r{i}"
        adapter = rng.choice([None, *ADAPTERS])
        adapter_of[name] = adapter.lora_int_id if adapter else None
        tokens = [rng.randrange(1, 900) for _ in range(rng.randrange(1, 60))]
        harness.add(name, tokens, rng.randrange(1, 20), f"p{i % 9}", lora=adapter)
    while harness.scheduler.has_unfinished_requests():
        step = harness.step().num_scheduled_tokens
        loaded = {adapter_of[name] for name in step} - {None}
        assert len(loaded) <= max_loras
    harness.drain()
    assert len(harness.finished) == 60
    scheduler = harness.scheduler
    assert scheduler._guarded, "the adapter failed open"
    assert not scheduler.requests
    assert not scheduler.core.table.calls
    assert not scheduler.deferred_waiting
    assert harness.free_blocks() == free


def test_nobody_makes_room_for_a_call_whose_adapter_does_not_fit(
    model_path: str,
) -> None:
    harness = harness_with(
        model_path,
        max_loras=1,
        policy="srpt",
        preempt_min_run_tokens=1,
        preempt_hysteresis_levels=1,
    )
    scheduler = harness.scheduler
    for i in range(4):
        harness.add(
            f"long{i}", [1] * 8, 300, f"big{i}", lora=ADAPTERS[0], program_remaining=9e3
        )
    for _ in range(20):
        harness.step()
        scheduler.core.meter.step(0.02, 4, 4)
    harness.add("other", [2] * 8, 3, "small", lora=ADAPTERS[1], program_remaining=3)
    for _ in range(40):
        harness.step()
        scheduler.core.meter.step(0.02, 4, 4)
    assert scheduler("snapshot")["preemptions"] == {}
    # One that needs the loaded adapter does get a slot.
    harness.add("same", [3] * 8, 3, "small too", lora=ADAPTERS[0], program_remaining=3)
    for _ in range(12):
        harness.step()
    assert harness.finished.get("same") == 3
    assert scheduler("snapshot")["preemptions"] == {"slots": 1}
    harness.drain()
    assert harness.finished["other"] == 3
