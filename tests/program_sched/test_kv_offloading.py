# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""``--kv-offloading-size``: vLLM's own connector beside the program scheduler.

The scheduler's half of the connector is the real one and decides what is stored, loaded
and waited for. vLLM's worker half copies between GPU and CPU memory and refuses to run
without a GPU, so transfers are acknowledged here some steps later instead of made.
"""

import random
from collections import deque
from collections.abc import Iterator

import pytest
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingConnectorMetadata,
    OffloadingWorkerMetadata,
)
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import KVConnectorOutput

from benchmarks.program_sched.scheduler_harness import SchedulerHarness

BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


class OffloadingHarness(SchedulerHarness):
    """Acknowledges every transfer ``delay_steps`` steps after it was ordered."""

    def __init__(
        self, model: str, delay_steps: int, *, num_blocks: int, **rest: object
    ) -> None:
        super().__init__(
            model,
            num_blocks=num_blocks,
            max_num_seqs=8,
            max_num_batched_tokens=256,
            kv_offloading_size=0.01,
            **rest,  # type: ignore[arg-type]
        )
        self.delay_steps = delay_steps
        self.stored = self.loaded = 0
        self._transfers: deque[tuple[int, int, str | None]] = deque()
        self._steps = 0

    def connector_output(self, output: SchedulerOutput) -> KVConnectorOutput:
        self._steps += 1
        orders = output.kv_connector_metadata
        assert isinstance(orders, OffloadingConnectorMetadata)
        due = self._steps + self.delay_steps
        for job in orders.store_jobs:
            self._transfers.append((due, job, None))
            self.stored += 1
        for job, order in orders.load_jobs.items():
            self._transfers.append((due, job, order.req_id))
            self.loaded += 1
        done = OffloadingWorkerMetadata()
        received = set()
        flushed = orders.jobs_to_flush or set()
        for transfer in list(self._transfers):
            due_step, job, receiver = transfer
            if due_step <= self._steps or job in flushed:
                self._transfers.remove(transfer)
                done.mark_completed(job)
                if receiver is not None:
                    received.add(receiver)
        return KVConnectorOutput(
            finished_recving=received or None, kv_connector_worker_meta=done
        )

    def settle(self) -> None:
        """Run empty steps until all transfers are acknowledged."""
        for _ in range(200):
            if not self._transfers:
                return
            self.step()
        raise AssertionError(f"{len(self._transfers)} transfers were never due")


@pytest.fixture(params=[0, 3], ids=["fast", "slow"])
def delay_steps(request: pytest.FixtureRequest) -> Iterator[int]:
    yield request.param


@BOTH
@pytest.mark.parametrize("forced", [False, True], ids=["normal", "forced"])
def test_preempted_calls_come_back_and_nothing_is_left(
    model_path: str, asynchronous: bool, forced: bool, delay_steps: int
) -> None:
    harness = OffloadingHarness(
        model_path,
        delay_steps,
        num_blocks=60,
        options={"preempt_every_step": forced, "preempt_min_run_tokens": 1},
        async_scheduling=asynchronous,
    )
    free = harness.free_blocks()
    rng = random.Random(9)
    wanted = {}
    for i in range(80):
        wanted[f"r{i}"] = rng.randrange(1, 40)
        tokens = [rng.randrange(1, 900) for _ in range(rng.randrange(20, 300))]
        harness.add(f"r{i}", tokens, wanted[f"r{i}"], f"p{i % 12}")
        if i % 4 == 0:
            harness.step()
        if i % 10 == 9:
            living = list(harness.scheduler.requests)
            aborted = rng.sample(living, min(2, len(living)))
            harness.abort(aborted)
            for name in aborted:
                wanted.pop(name, None)
    harness.drain()
    harness.settle()
    assert {k: v for k, v in harness.finished.items() if k in wanted} == wanted
    assert harness.stored > 0
    assert harness.loaded > 0, "nothing came back from the CPU cache"
    scheduler = harness.scheduler
    assert scheduler._guarded, "the adapter failed open"
    assert scheduler.get_request_counts() == (0, 0)
    assert not scheduler.requests
    assert not scheduler.core.table.calls
    assert not scheduler.deferred_waiting
    assert harness.free_blocks() == free


def test_reloading_makes_a_victim_cheap(model_path: str) -> None:
    """With offloading a KV shortage costs the rest of a block, not the whole call."""
    harness = OffloadingHarness(model_path, 0, num_blocks=60)
    plain = SchedulerHarness(model_path, num_blocks=60)
    for one in (harness, plain):
        one.add("r", [3] * 100, 30, "p")
        for _ in range(4):
            one.step()
    lost = [
        one.scheduler.room._recompute_tokens("kv")(one.scheduler.core.table.calls["r"])
        for one in (harness, plain)
    ]
    computed = plain.scheduler.requests["r"].num_computed_tokens
    assert lost == [computed % 16 + 1, computed]
