# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What /metrics says about steps."""

from prometheus_client import generate_latest

from moe_offload.metrics import StepMetrics
from moe_offload.operations import Kind
from moe_offload.schedule_rivals import schedule
from moe_offload.simulation import simulate
from tests.moe_offload.test_expert_memory import memory_of


def test_steps_are_added_up() -> None:
    memory = memory_of(layers=3, experts=4, slots=8)
    metrics = StepMetrics(memory, "a-model")
    order = schedule("cgopipe", 3, 2, 8, one_memory=True)
    seconds = {
        Kind.PRE_ATTENTION: 0.25,
        Kind.HOST_ATTENTION: 0.5,
        Kind.POST_ATTENTION: 0.75,
        Kind.LOAD_PAGES: 1.0,
    }
    timeline = simulate(order, lambda each: seconds[each.kind])
    memory.slots_now(0)
    metrics.publish(timeline)
    memory.load(1, memory.streamed_pages)
    metrics.publish(timeline)
    text = generate_latest(metrics.registry).decode()
    metrics.close()
    moved = 2 * 4 * memory.store.form.expert_bytes
    named = 'model_name="a-model"'
    for line in (
        f"vllm:moe_offload_steps_total{{{named}}} 2.0",
        f"vllm:moe_offload_step_seconds_total{{{named}}} {2 * timeline.makespan_s}",
        f"vllm:moe_offload_moved_bytes_total{{{named}}} {float(moved)}",
        f"vllm:moe_offload_late_pages_total{{{named}}} 8.0",
        f'vllm:moe_offload_busy_seconds_total{{{named},resource="compute"}} 12.0',
        f'vllm:moe_offload_busy_seconds_total{{{named},resource="attention"}} 6.0',
        f'vllm:moe_offload_busy_seconds_total{{{named},resource="pages"}} 12.0',
    ):
        assert line in text, text
