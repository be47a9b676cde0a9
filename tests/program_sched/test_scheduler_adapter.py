# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The adapter on vLLM's real scheduler classes, synchronous and asynchronous.

The asynchronous scheduler is driven as the engine core drives it on GPUs, one step
ahead of the outputs; the model is left out.
"""

import random
from typing import Any

import pytest
from vllm.v1.core.sched.interface import PauseState

from benchmarks.program_sched.scheduler_harness import SchedulerHarness
from tests.program_sched.scheduler_cases import BOTH, prompt
from vllm_program_sched.compat import AsyncScheduler, Scheduler
from vllm_program_sched.config import ConfigError


@BOTH
def test_one_name_gives_the_scheduler_that_fits(
    model_path: str, asynchronous: bool
) -> None:
    scheduler = SchedulerHarness(model_path, async_scheduling=asynchronous).scheduler
    assert isinstance(scheduler, AsyncScheduler) == asynchronous
    assert isinstance(scheduler, Scheduler)


@BOTH
@pytest.mark.parametrize("num_blocks", [60, 2000], ids=["short-of-kv", "roomy"])
@pytest.mark.parametrize("forced", [False, True], ids=["normal", "forced"])
def test_random_programs_finish_and_leave_nothing(
    model_path: str, asynchronous: bool, num_blocks: int, forced: bool
) -> None:
    harness = SchedulerHarness(
        model_path,
        options={"preempt_every_step": forced, "preempt_min_run_tokens": 1},
        async_scheduling=asynchronous,
        num_blocks=num_blocks,
        max_num_seqs=8,
        max_num_batched_tokens=256,
    )
    free = harness.free_blocks()
    rng = random.Random(7)
    wanted = {}
    for i in range(150):
        wanted[f"r{i}"] = rng.randrange(1, 40)
        harness.add(
            f"r{i}",
            prompt(rng, rng.randrange(1, 300)),
            wanted[f"r{i}"],
            f"p{i % 20}",
            priority=rng.choice([0, 0, 0, 1]),
        )
        if i % 3 == 0:
            harness.step()
    harness.drain()
    assert harness.finished == wanted
    assert harness.leftovers(free) == {}
    preemptions = harness.scheduler("snapshot")["preemptions"]
    if forced:
        assert preemptions["forced"] > 100


@BOTH
def test_abort_storm_leaves_nothing(model_path: str, asynchronous: bool) -> None:
    harness = SchedulerHarness(
        model_path,
        options={"preempt_every_step": True},
        async_scheduling=asynchronous,
        num_blocks=200,
        max_num_seqs=8,
    )
    free = harness.free_blocks()
    rng = random.Random(3)
    for i in range(600):
        harness.add(f"r{i}", prompt(rng, rng.randrange(1, 100)), 30, f"p{i % 40}")
        if i % 2:
            harness.step()
        living = list(harness.scheduler.requests)
        harness.abort(rng.sample(living, min(len(living), rng.randrange(4))))
    harness.drain()
    assert harness.leftovers(free) == {}
    for i in range(40):
        harness.scheduler("end", {"program_id": f"p{i}"})
    assert harness.scheduler("snapshot")["live_programs"] == 0


@BOTH
def test_ten_thousand_short_programs_leave_nothing(
    model_path: str, asynchronous: bool
) -> None:
    harness = SchedulerHarness(
        model_path, async_scheduling=asynchronous, max_num_seqs=64
    )
    free = harness.free_blocks()
    for i in range(10_000):
        harness.add(f"r{i}", [1 + i % 900, 2, 3], 1 + i % 3, f"p{i}", program_end=True)
        if i % 32 == 31:
            harness.step()
    harness.drain()
    assert len(harness.finished) == 10_000
    assert harness.leftovers(free) == {}
    snapshot = harness.scheduler("snapshot")
    assert snapshot["live_programs"] == 0
    assert snapshot["programs_ended"] == 10_000


def test_better_program_takes_the_slot_of_a_worse_one(model_path: str) -> None:
    """VLLM's own priority policy never does this at max_num_seqs."""
    harness = SchedulerHarness(
        model_path,
        options={
            "policy": "srpt",
            "preempt_min_run_tokens": 4,
            "preempt_hysteresis_levels": 1,
        },
        max_num_seqs=1,
        block_size=4,
    )
    scheduler = harness.scheduler
    harness.add("long", [1] * 8, 3000, "big", program_remaining=3000)
    for _ in range(40):
        harness.step()
        scheduler.core.meter.step(0.02, 1, 1)
    harness.add("short", [2] * 8, 3, "small", program_remaining=4)
    for _ in range(8):
        harness.step()
    assert harness.finished.get("short") == 3
    assert scheduler("snapshot")["preemptions"] == {"slots": 1}
    assert "long" in scheduler.requests


def test_worse_program_waits(model_path: str) -> None:
    harness = SchedulerHarness(
        model_path,
        options={"policy": "srpt", "preempt_min_run_tokens": 1},
        max_num_seqs=1,
    )
    harness.add("short", [2] * 8, 30, "small", program_remaining=30)
    harness.step()
    harness.add("long", [1] * 8, 300, "big", program_remaining=30000)
    for _ in range(20):
        harness.step()
    assert "long" not in harness.finished
    assert harness.scheduler("snapshot")["preemptions"] == {}


def test_user_priority_is_the_outer_tier(model_path: str) -> None:
    harness = SchedulerHarness(
        model_path, options={"policy": "plas"}, max_num_seqs=1, policy="priority"
    )
    harness.add("running", [1, 2], 3, "a", priority=1)
    harness.step()
    # Program "b" has attained service, "c" none; the user prefers b's call.
    harness.add("fresh", [3, 4], 3, "c", priority=1)
    harness.add("urgent", [5, 6], 3, "b", priority=0)
    order = []
    while harness.scheduler.has_unfinished_requests():
        for request_id in harness.step().num_scheduled_tokens:
            if request_id not in order:
                order.append(request_id)
    assert order.index("urgent") < order.index("fresh")


def test_kv_shortage_preempts_for_a_better_call(model_path: str) -> None:
    harness = SchedulerHarness(
        model_path,
        options={
            "policy": "srpt",
            "preempt_min_run_tokens": 1,
            "preempt_hysteresis_levels": 1,
        },
        num_blocks=24,
        block_size=16,
        max_num_seqs=8,
    )
    rng = random.Random(1)
    harness.add("big", prompt(rng, 300), 60, "big", program_remaining=100_000)
    for _ in range(30):
        harness.step()
        harness.scheduler.core.meter.step(0.02, 1, 1)
    harness.add("small", prompt(rng, 100), 2, "small", program_remaining=10)
    for _ in range(6):
        harness.step()
    assert harness.finished.get("small") == 2
    assert harness.scheduler("snapshot")["preemptions"]["kv"] >= 1
    harness.drain()
    assert harness.finished["big"] == 60


def test_starving_program_is_promoted(model_path: str) -> None:
    harness = SchedulerHarness(
        model_path,
        options={
            "policy": "srpt",
            "starvation_ratio": 1.0,
            "starvation_floor_s": 0.01,
        },
        max_num_seqs=1,
    )
    harness.add("long", [1] * 8, 4, "big", program_remaining=100_000)
    for i in range(400):
        harness.add(f"s{i}", [2] * 8, 2, f"small{i}", program_remaining=2)
    # Small programs alone would keep the slot for 800 steps.
    for _ in range(400):
        if "long" in harness.finished:
            break
        harness.step()
    snapshot = harness.scheduler("snapshot")
    harness.drain()
    assert harness.finished["long"] == 4
    assert harness.scheduler("snapshot")["promotions"] >= snapshot["promotions"] > 0


@BOTH
def test_pause_keeps_requests(model_path: str, asynchronous: bool) -> None:
    harness = SchedulerHarness(model_path, async_scheduling=asynchronous)
    harness.add("running", [1, 2, 3], 20, "a")
    harness.step()
    harness.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    harness.add("held", [4, 5, 6], 5, "b")
    for _ in range(5):
        assert harness.step().total_num_scheduled_tokens == 0
    harness.scheduler.set_pause_state(PauseState.UNPAUSED)
    harness.drain()
    assert harness.finished == {"running": 20, "held": 5}


@BOTH
def test_resetting_the_prefix_cache_mid_run(
    model_path: str, asynchronous: bool
) -> None:
    harness = SchedulerHarness(model_path, async_scheduling=asynchronous)
    free = harness.free_blocks()
    for i in range(8):
        harness.add(f"r{i}", [i + 1] * 50, 30, f"p{i}")
    for _ in range(10):
        harness.step()
    assert harness.scheduler.reset_prefix_cache(reset_running_requests=True)
    harness.drain()
    # In-flight output of the asynchronous scheduler is dropped, not lost: the request
    # still ends with all of its tokens.
    assert all(count == 30 for count in harness.finished.values())
    assert harness.leftovers(free) == {}


def test_bad_identity_is_served_as_its_own_program(model_path: str) -> None:
    harness = SchedulerHarness(model_path)
    harness.add("r", [1, 2], 2, "x" * 1000)
    harness.add("s", [1, 2], 2, session_id="shared")
    harness.add("t", [1, 2], 2, session_id="shared")
    assert len(harness.scheduler.core.table) == 2
    harness.drain()
    assert harness.finished == {"r": 2, "s": 2, "t": 2}


@BOTH
@pytest.mark.parametrize(
    "hook", ["_before_step", "_after_schedule", "_finished", "_preempted", "_arrive"]
)
def test_a_fault_falls_back_to_plain_order(
    model_path: str,
    asynchronous: bool,
    hook: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = SchedulerHarness(
        model_path,
        options={"preempt_every_step": True},
        async_scheduling=asynchronous,
        max_num_seqs=4,
    )
    scheduler = harness.scheduler
    for i in range(30):
        harness.add(f"r{i}", [i + 1] * 20, 10, f"p{i % 5}")
    for _ in range(6):
        harness.step()

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("injected")

    broken.__name__ = hook
    monkeypatch.setattr(scheduler, hook, broken)
    harness.add("late", [1, 2, 3], 5, "p1")
    harness.drain()
    assert not scheduler._guarded
    assert len(harness.finished) == 31
    assert scheduler.get_request_counts() == (0, 0)
    assert scheduler("snapshot")["faults"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"polcy": "plas"}, "policy"),
        ({"policy": "lifo"}, "choose one of"),
        ({"levels": 99}, "between"),
    ],
)
def test_bad_options_refuse_to_start(
    model_path: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        SchedulerHarness(model_path, options=options)


def test_admin_commands(model_path: str) -> None:
    harness = SchedulerHarness(model_path)
    harness.add("r", [1, 2], 2, "p")
    harness.drain()
    snapshot = harness.scheduler("snapshot", {"limit": 5, "sort": "service"})
    assert [row["program_id"] for row in snapshot["programs"]] == ["p"]
    assert snapshot["programs"][0]["finished_calls"] == 1
    assert harness.scheduler("end", {"program_id": "p"}) == {"ended": True}
    assert harness.scheduler("end", {"program_id": "p"}) == {"ended": False}
    with pytest.raises(ValueError, match="not known"):
        harness.scheduler("selfdestruct")
