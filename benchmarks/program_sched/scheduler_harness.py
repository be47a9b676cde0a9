# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""vLLM's real scheduler classes without a model behind them.

Scheduling is measured and attacked here at thousands of steps per second: the
configuration, the requests, the KV cache manager and the scheduler are vLLM's own; only
the sampled tokens are made up.
"""

import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
)
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

PROGRAM_SCHEDULER = "vllm_program_sched.ProgramScheduler"
_MADE_UP_TOKEN = 7


class SchedulerHarness:
    """One scheduler, driven step by step.

    Args:
        model: Local path of a model; only its configuration is read.
        scheduler_cls: Qualified name, or None for vLLM's own.
        options: ``additional_config["program_sched"]``.
        num_blocks: KV blocks.
        block_size: Tokens per block.
        max_num_seqs: Slots.
        max_num_batched_tokens: Token budget of a step.
        async_scheduling: Drive vLLM's asynchronous scheduler, with one step in flight
            while the next is scheduled, as the engine core does on GPUs.
        log_stats: Whether statistics are kept.
        policy: vLLM's own ``--scheduling-policy``.
        engine: More arguments of vLLM's ``EngineArgs``.
    """

    def __init__(
        self,
        model: str,
        scheduler_cls: str | None = PROGRAM_SCHEDULER,
        options: dict[str, Any] | None = None,
        *,
        num_blocks: int = 4096,
        block_size: int = 16,
        max_num_seqs: int = 16,
        max_num_batched_tokens: int = 2048,
        async_scheduling: bool = False,
        log_stats: bool = False,
        policy: Literal["fcfs", "priority"] = "fcfs",
        **engine: Any,  # noqa: ANN401 - passed through
    ) -> None:
        """See the class docstring."""
        arguments = EngineArgs(
            model=model,
            enforce_eager=True,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=min(4096, num_blocks * block_size),
            scheduler_cls=scheduler_cls,
            scheduling_policy=policy,
            additional_config={"program_sched": options} if options else {},
            **engine,
        )
        config = arguments.create_engine_config()
        config.cache_config.num_gpu_blocks = num_blocks
        # The CPU platform switches it off; scheduling itself needs no GPU.
        config.scheduler_config.async_scheduling = async_scheduling
        group = KVCacheGroupSpec(
            ["layer"],
            FullAttentionSpec(
                block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32
            ),
        )
        hash_function = get_hash_fn_by_name(
            config.cache_config.prefix_caching_hash_algo
        )
        init_none_hash(hash_function)
        self._block_hasher = get_request_block_hasher(block_size, hash_function)
        self.vllm_config = config
        self.kv_cache_config = KVCacheConfig(
            num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=[group]
        )
        scheduler_class: Any = config.scheduler_config.get_scheduler_cls()
        self.scheduler: Any = scheduler_class(
            vllm_config=config,
            kv_cache_config=self.kv_cache_config,
            structured_output_manager=StructuredOutputManager(config),
            block_size=block_size,
            hash_block_size=block_size,
            log_stats=log_stats,
        )
        self.finished: dict[str, int] = {}
        # What the last call of schedule() took.
        self.schedule_s = 0.0
        self._depth = 2 if async_scheduling else 1
        self._in_flight: deque[tuple[SchedulerOutput, set[str]]] = deque()

    def add(
        self,
        request_id: str,
        prompt: list[int],
        max_tokens: int,
        program_id: str | None = None,
        *,
        priority: int = 0,
        session_id: str | None = None,
        lora_request: LoRARequest | None = None,
        **xargs: object,
    ) -> Request:
        """Queue a request; it ends after exactly ``max_tokens`` tokens."""
        if program_id is not None:
            xargs["program_id"] = program_id
        params = SamplingParams(
            max_tokens=max_tokens, ignore_eos=True, extra_args=xargs or None
        )
        request = Request(
            request_id,
            prompt,
            params,
            None,
            priority=priority,
            session_id=session_id,
            lora_request=lora_request,
            block_hasher=self._block_hasher,
        )
        self.scheduler.add_request(request)
        return request

    def step(self) -> SchedulerOutput:
        """Schedule one step and process the output that is due."""
        started_s = time.perf_counter()
        output: SchedulerOutput = self.scheduler.schedule()
        self.schedule_s = time.perf_counter() - started_s
        requests = self.scheduler.requests
        # Only a step that reaches the end of what is known of a request samples a
        # token. Asked now: the next step may be scheduled before this one's output.
        sampling = {
            request_id
            for request_id in output.num_scheduled_tokens
            if not requests[request_id].is_prefill_chunk
        }
        self._in_flight.append((output, sampling))
        if len(self._in_flight) >= self._depth:
            self._process(*self._in_flight.popleft())
        return output

    def finish_in_flight(self) -> None:
        """Process every step that is under way, as an engine that pauses does."""
        while self._in_flight:
            self._process(*self._in_flight.popleft())

    def drain(self, max_steps: int = 100_000) -> int:
        """Step until nothing is left; returns the number of steps.

        Raises:
            RuntimeError: Requests are still unfinished after ``max_steps``.
        """
        for steps in range(max_steps):
            if not self.scheduler.has_unfinished_requests():
                self.finish_in_flight()
                self.scheduler.schedule()
                return steps
            self.step()
        raise RuntimeError(
            f"{self.scheduler.get_num_unfinished_requests()} requests are unfinished "
            f"after {max_steps} steps"
        )

    def abort(self, request_ids: Iterable[str]) -> None:
        """Abort requests, as a disconnected client does."""
        self.scheduler.finish_requests(
            list(request_ids), RequestStatus.FINISHED_ABORTED
        )

    def free_blocks(self) -> int:
        """Number of free KV blocks, cached ones included."""
        pool = self.scheduler.kv_cache_manager.block_pool
        return int(pool.get_num_free_blocks())

    def _process(self, output: SchedulerOutput, sampling: set[str]) -> None:
        """Give a scheduled step its made-up output."""
        ids = list(output.num_scheduled_tokens)
        sampled = [[_MADE_UP_TOKEN] if name in sampling else [] for name in ids]
        result = self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=ids,
                req_id_to_index={request_id: i for i, request_id in enumerate(ids)},
                sampled_token_ids=sampled,
                kv_connector_output=self.connector_output(output),
            ),
        )
        for outputs in result.values():
            for one in outputs.outputs:
                count = self.finished.get(one.request_id, 0)
                self.finished[one.request_id] = count + len(one.new_token_ids)

    def leftovers(self, free_blocks: int) -> dict[str, object]:
        """What is still held when nothing should be.

        Args:
            free_blocks: Number of free blocks before the first request.
        """
        scheduler = self.scheduler
        held: dict[str, object] = {
            "requests": list(scheduler.requests),
            "queued": sum(scheduler.get_request_counts()),
            "deferred": list(scheduler.deferred_waiting),
            "blocks": free_blocks - self.free_blocks(),
        }
        if hasattr(scheduler, "core"):
            held["failed open"] = not scheduler._guarded
            held["calls"] = list(scheduler.core.table.calls)
            held["ranked"] = sum(len(queue) for queue in scheduler.core.queues)
        return {name: value for name, value in held.items() if value}

    def connector_output(self, output: SchedulerOutput) -> KVConnectorOutput | None:
        """What the worker's half of a KV connector answers; None without one."""
        return None
