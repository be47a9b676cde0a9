# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Every vLLM symbol this plugin touches, in one place.

A new vLLM release is ported by making ``tests/program_sched/test_compat.py`` pass: it
imports what is named here and compares signatures. Nothing else in the package may
import vLLM's scheduler, request or configuration modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import (
    FCFSRequestQueue,
    PriorityRequestQueue,
    RequestQueue,
    SchedulingPolicy,
)
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import FinishReason
from vllm.v1.request import Request, RequestStatus

if TYPE_CHECKING:
    from vllm.config import VllmConfig

__all__ = [
    "AsyncScheduler",
    "FCFSRequestQueue",
    "FinishReason",
    "PauseState",
    "PriorityRequestQueue",
    "Request",
    "RequestQueue",
    "RequestStatus",
    "Scheduler",
    "SchedulerOutput",
    "SchedulingPolicy",
    "init_logger",
    "refuse_unsupported",
]

# What the adapter overrides or calls on Scheduler, with the leading parameters it
# relies on. Trailing ones are passed through.
SCHEDULER_METHODS: dict[str, tuple[str, ...]] = {
    "schedule": ("self", "throttle_prefills"),
    "update_from_output": ("self", "scheduler_output", "model_runner_output"),
    "add_request": ("self", "request"),
    "shutdown": ("self",),
    "_preempt_request": ("self", "request", "timestamp", "drop_stale_output"),
    "_free_request": ("self", "request"),
    "_request_blocks_can_be_freed": ("self", "request"),
}
SCHEDULER_ATTRIBUTES: tuple[str, ...] = (
    "policy",
    "waiting",
    "kv_holding_waiting",
    "deferred_waiting",
    "running",
    "requests",
    "max_num_active_reqs",
    "num_waiting_for_streaming_input",
    "prev_step_scheduled_req_ids",
    "requires_kv_delivery",
    "max_num_scheduled_tokens",
    "block_size",
    "pause_state",
    "log_stats",
    "kv_cache_manager",
    "connector",
    "lora_config",
)
REQUEST_ATTRIBUTES: tuple[str, ...] = (
    "request_id",
    "priority",
    "arrival_time",
    "sampling_params",
    "session_id",
    "prompt_token_ids",
    "num_tokens",
    "num_computed_tokens",
    "is_prefill_chunk",
    "lora_request",
    "status",
)
OUTPUT_FIELDS: tuple[str, ...] = (
    "scheduled_new_reqs",
    "scheduled_cached_reqs",
    "num_scheduled_tokens",
    "total_num_scheduled_tokens",
    "preempted_req_ids",
)


def refuse_unsupported(vllm_config: VllmConfig) -> None:
    """Refuse, at start and by name, what the program scheduler cannot do.

    Raises:
        ValueError: The server is configured for something unsupported.
    """
    model = vllm_config.model_config
    reasons = []
    if model.runner_type == "pooling":
        reasons.append("pooling and embedding models, whose requests have no decode")
    if model.is_encoder_decoder:
        reasons.append("encoder-decoder models")
    if getattr(model, "is_diffusion", False):
        reasons.append("diffusion language models")
    if getattr(vllm_config, "is_mm_encoder_only", False):
        reasons.append("encoder-only multimodal servers")
    if reasons:
        raise ValueError(
            "program_sched: asked for --scheduler-cls "
            "vllm_program_sched.ProgramScheduler with "
            f"{model.model!r}, but it does not support {'; '.join(reasons)}. "
            "Remove --scheduler-cls for this model."
        )
