# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""KV offloading (``--kv-offloading-size``) under preemption.

vLLM's ``OffloadingConnector`` and its manager of host blocks run for real, in the
scheduler and in the worker. What vLLM does not have on CPU is the piece that copies
blocks, which is made of CUDA streams: ``Copies`` stands in for it. In the engine tests
it copies real KV blocks, late on purpose; on the scheduler alone there are none.
"""

import gc
import random
from collections import deque
from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer import get_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import (
    OffloadingConnector,
)
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_offload.base import CanonicalKVCaches
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request, RequestStatus

from benchmarks.program_sched.scheduler_harness import SchedulerHarness
from tests.program_sched.block_copies import Copies, CopiesSpec
from tests.program_sched.scheduler_cases import BOTH, EAGER_SRPT, prompt

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

WORDS = ["time", "light", "river", "stone", "cloud", "garden", "number", "letter"]


class LateFreeConnector(OffloadingConnector):
    """Keeps the blocks of a finished request, as connectors that send them do."""

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        super().request_finished_all_groups(request, block_ids)
        return request.status == RequestStatus.FINISHED_LENGTH_CAPPED, None


class OffloadingHarness(SchedulerHarness):
    """The connector's two sides around a scheduler, with no bytes to copy."""

    def __init__(
        self,
        model: str,
        *,
        connector: type[OffloadingConnector] = OffloadingConnector,
        delay: int = 2,
        **more: Any,  # noqa: ANN401
    ) -> None:
        transfer = KVTransferConfig(
            kv_connector=connector.__name__,
            kv_connector_module_path=connector.__module__,
            kv_role="kv_both",
            kv_connector_extra_config={"cpu_bytes_to_use": 1 << 20},
        )
        super().__init__(model, kv_transfer_config=transfer, **more)
        self.connector = self.scheduler.connector
        assert type(self.connector) is connector
        self.worker = connector(
            self.vllm_config, KVConnectorRole.WORKER, self.kv_cache_config
        )
        assert self.worker.connector_worker is not None
        self.copies = Copies(CanonicalKVCaches([], [[]]), 0, delay)
        self.worker.connector_worker.worker = self.copies
        self._sends: deque[tuple[int, str]] = deque()
        self._steps = 0

    def connector_output(self, output: SchedulerOutput) -> KVConnectorOutput:
        """Do what vLLM's model runner does with the connector around a step."""
        worker, work = self.worker, output.kv_connector_metadata
        worker.bind_connector_metadata(work)
        worker.handle_preemptions(work)
        worker.start_load_kv(None)
        worker.wait_for_save()
        _, received = worker.get_finished(output.finished_req_ids)
        report = KVConnectorOutput(
            finished_sending=self._sent(output.finished_req_ids),
            finished_recving=received,
            kv_connector_worker_meta=worker.build_connector_worker_meta(),
        )
        worker.clear_connector_metadata()
        return report

    def drain(self, max_steps: int = 20_000) -> int:
        """Step until nothing is left, transfers included."""
        for steps in range(max_steps):
            if not self.scheduler.has_requests():
                self.finish_in_flight()
                return steps
            self.step()
        raise RuntimeError(f"not empty after {max_steps} steps")

    def _sent(self, finished: set[str]) -> set[str]:
        """Requests whose blocks were held for three steps after their end."""
        self._steps += 1
        held = self.scheduler.requests.keys() & finished
        self._sends.extend(
            (self._steps + 3, request_id)
            for request_id in sorted(held)
            if self.scheduler.requests[request_id].status
            == RequestStatus.FINISHED_LENGTH_CAPPED
        )
        sent = set()
        while self._sends and self._sends[0][0] <= self._steps:
            sent.add(self._sends.popleft()[1])
        return sent


def assert_nothing_is_left(harness: OffloadingHarness, free_blocks: int) -> None:
    assert harness.leftovers(free_blocks) == {}
    scheduler = harness.scheduler
    assert not scheduler.finished_recving_kv_req_ids
    assert not scheduler.deferred_frees
    assert not harness.connector.has_pending_push_work()
    assert not harness.connector.scheduler._req_status


@BOTH
@pytest.mark.parametrize("caching", [False, True], ids=["uncached", "prefix-cache"])
@pytest.mark.parametrize("forced", [False, True], ids=["normal", "forced"])
@pytest.mark.parametrize("connector", [OffloadingConnector, LateFreeConnector])
def test_random_programs_finish_and_leave_nothing(
    model_path: str,
    asynchronous: bool,
    caching: bool,
    forced: bool,
    connector: type[OffloadingConnector],
) -> None:
    harness = OffloadingHarness(
        model_path,
        connector=connector,
        options={"preempt_every_step": forced, "preempt_min_run_tokens": 1},
        async_scheduling=asynchronous,
        enable_prefix_caching=caching,
        num_blocks=60,
        max_num_seqs=8,
        max_num_batched_tokens=256,
    )
    free = harness.free_blocks()
    rng = random.Random(7)
    shared = [prompt(rng, 100) for _ in range(4)]
    wanted = {}
    for i in range(120):
        wanted[f"r{i}"] = rng.randrange(1, 40)
        start = rng.choice(shared) if i % 2 else []
        harness.add(
            f"r{i}",
            start + prompt(rng, rng.randrange(1, 150)),
            wanted[f"r{i}"],
            f"p{i % 20}",
        )
        if i % 3 == 0:
            harness.step()
    harness.drain()
    assert harness.finished == wanted
    assert harness.copies.stored > 100
    assert harness.copies.loaded > 20, "nothing was reloaded"
    assert_nothing_is_left(harness, free)
    if forced:
        assert harness.scheduler("snapshot")["preemptions"]["forced"] > 100


@BOTH
@pytest.mark.parametrize("forced", [False, True], ids=["normal", "forced"])
def test_aborts_during_loads_leave_nothing(
    model_path: str, asynchronous: bool, forced: bool
) -> None:
    """Loads take ten steps, so many calls are aborted in the middle of one."""
    harness = OffloadingHarness(
        model_path,
        delay=10,
        options={"preempt_every_step": forced},
        async_scheduling=asynchronous,
        enable_prefix_caching=False,
        num_blocks=100,
        max_num_seqs=8,
    )
    free = harness.free_blocks()
    rng = random.Random(3)
    starts = [prompt(rng, 64) for _ in range(3)]
    loading_aborted = 0
    for i in range(400):
        harness.add(f"r{i}", starts[i % 3] + prompt(rng, 20), 20, f"p{i % 40}")
        harness.step()
        living = [
            request
            for request in harness.scheduler.requests.values()
            if not request.is_finished()
        ]
        loading = [
            request
            for request in living
            if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
        ]
        victims = rng.sample(living, min(len(living), rng.randrange(3)))
        if loading and i % 2:
            victims.append(rng.choice(loading))
        loading_aborted += sum(request in loading for request in victims)
        harness.abort({request.request_id for request in victims})
    harness.drain()
    assert loading_aborted > 10
    assert_nothing_is_left(harness, free)


@BOTH
def test_end_of_a_program_does_not_wait_for_held_blocks(
    model_path: str, asynchronous: bool
) -> None:
    """The blocks of its last call are still being sent when the program ends."""
    harness = OffloadingHarness(
        model_path, connector=LateFreeConnector, async_scheduling=asynchronous
    )
    free = harness.free_blocks()
    harness.add("last", [1] * 50, 3, "p", program_end=True)
    while harness.finished.get("last") != 3:
        harness.step()
    assert "last" in harness.scheduler.requests, "the blocks are not held"
    snapshot = harness.scheduler("snapshot")
    assert snapshot["programs_ended"] == 1
    assert snapshot["active_calls"] == 0
    harness.drain()
    assert_nothing_is_left(harness, free)


def test_nobody_is_preempted_whose_blocks_are_being_written(model_path: str) -> None:
    """A step that is under way writes into the blocks of every call in it.

    vLLM then does not give them back at once, so preempting would gain nothing.
    """
    harness = OffloadingHarness(
        model_path,
        options=EAGER_SRPT,
        async_scheduling=True,
        max_num_seqs=1,
        block_size=4,
    )
    scheduler = harness.scheduler
    assert scheduler.defer_block_free
    harness.add("long", [1] * 8, 3000, "big", program_remaining=3000)
    for _ in range(40):
        harness.step()
        scheduler.core.meter.step(0.02, 1, 1)
    harness.add("short", [2] * 8, 3, "small", program_remaining=4)
    for _ in range(20):
        harness.step()
        assert not scheduler.deferred_frees
    assert scheduler("snapshot")["preemptions"] == {}
    # Once no step is under way, the same call gives way.
    for _ in range(12):
        harness.finish_in_flight()
        harness.step()
    assert harness.finished.get("short") == 3
    assert scheduler("snapshot")["preemptions"] == {"slots": 1}


def test_better_call_takes_the_slot_and_the_victim_reloads(model_path: str) -> None:
    harness = OffloadingHarness(
        model_path,
        options=EAGER_SRPT,
        enable_prefix_caching=False,
        max_num_seqs=1,
        block_size=4,
    )
    free = harness.free_blocks()
    rng = random.Random(2)
    harness.add("long", prompt(rng, 80), 300, "big", program_remaining=3000)
    for _ in range(40):
        harness.step()
        harness.scheduler.core.meter.step(0.02, 1, 1)
    assert harness.copies.loaded == 0
    harness.add("short", prompt(rng, 8), 3, "small", program_remaining=4)
    harness.drain()
    assert harness.finished == {"long": 300, "short": 3}
    assert harness.scheduler("snapshot")["preemptions"] == {"slots": 1}
    # All 20 blocks of the prompt come back; vLLM offloads what was generated by
    # itself only when it is asked to.
    assert harness.copies.loaded == 20
    assert_nothing_is_left(harness, free)


def generate(
    model: str,
    options: dict[str, Any] | None,
    **engine: Any,  # noqa: ANN401
) -> tuple[list[tuple[int, ...]], dict[str, Any], int]:
    """Greedy tokens, the scheduler's snapshot, and how many blocks were reloaded."""
    ours: dict[str, Any] = {
        "scheduler_cls": "vllm_program_sched.ProgramScheduler",
        "additional_config": {"program_sched": options},
        "kv_offloading_size": 0.25,
        "kv_transfer_config": KVTransferConfig(
            kv_connector_extra_config={
                "spec_name": CopiesSpec.__name__,
                "spec_module_path": CopiesSpec.__module__,
            }
        ),
    }
    llm = LLM(
        model,
        enforce_eager=True,
        dtype="float32",
        max_model_len=512,
        block_size=32,
        max_num_seqs=8,
        max_num_batched_tokens=256,
        num_gpu_blocks_override=24,
        **(ours if options is not None else {}),
        **engine,
    )
    rng = random.Random(11)
    prompts = [
        " ".join(rng.choices(WORDS, k=rng.randrange(40, 110))) for _ in range(24)
    ]
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=rng.randrange(10, 40),
            ignore_eos=True,
            extra_args={"program_id": f"p{i % 7}"},
        )
        for i in range(24)
    ]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    core: Any = llm.llm_engine.engine_core.engine_core
    snapshot: dict[str, Any] = {}
    loaded = 0
    if options is not None:
        while core.scheduler.has_requests():
            core.step()
        snapshot = core.scheduler("snapshot")
        loaded = get_kv_transfer_group().connector_worker.worker.loaded
        assert not core.scheduler.connector.has_pending_push_work()
        assert not core.scheduler.connector.scheduler._req_status
    assert not core.scheduler.requests
    assert core.scheduler.get_kv_cache_usage() == 0.0
    core.shutdown()
    del llm, core
    gc.collect()
    return [tuple(o.outputs[0].token_ids) for o in outputs], snapshot, loaded


@pytest.fixture(scope="module")
def plain_answers(model_path: str) -> list[tuple[int, ...]]:
    """Answers of vLLM's own scheduler, nothing offloaded."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        environment.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        return generate(model_path, None)[0]


@pytest.mark.parametrize(
    ("options", "caching", "reason"),
    [({"preempt_every_step": True}, False, "forced"), ({}, True, "kv")],
    ids=["forced", "kv-pressure"],
)
def test_reloaded_blocks_change_no_answer(
    model_path: str,
    plain_answers: list[tuple[int, ...]],
    options: dict[str, Any],
    caching: bool,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In fp32, with so few KV blocks that vLLM preempts by itself too."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    answers, snapshot, loaded = generate(
        model_path, options, enable_prefix_caching=caching
    )
    assert answers == plain_answers
    assert snapshot["preemptions"][reason] > 0
    assert snapshot["faults"] == 0
    assert snapshot["active_calls"] == 0
    assert loaded > 0, "no block was reloaded"
