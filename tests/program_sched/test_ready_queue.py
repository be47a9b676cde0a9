# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Ready queue: right order, nothing lost, O(log n) by counting, bounded memory."""

import heapq
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_program_sched.process_table import Call, Program
from vllm_program_sched.ready_queue import ReadyQueue

PROGRAM = Program("p", 0, 0.0)


class CountingInt(int):
    """An integer that counts how often it is compared."""

    comparisons = 0

    def __lt__(self, other: int) -> bool:
        CountingInt.comparisons += 1
        return int(self) < int(other)


def make(seq: int, level: int = 1, order: float = 0.0) -> Call:
    call = Call(str(seq), PROGRAM, seq, 0.0)
    call.rank = (0, level, order, seq)
    return call


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["push", "pop", "remove", "refresh", "rebuild"]),
        st.integers(0, 19),
        st.integers(1, 4),
    ),
    max_size=200,
)


@given(OPERATIONS)
def test_behaves_like_a_sorted_list(operations: list[tuple[str, int, int]]) -> None:
    queue, model = ReadyQueue(), dict[str, Call]()
    calls = [make(i) for i in range(20)]
    for operation, which, level in operations:
        call = calls[which]
        if operation in ("push", "refresh"):
            call.rank = (0, level, 0.0, call.seq)
            if operation == "push":
                model[call.call_id] = call
            getattr(queue, operation)(call)
            if operation == "refresh" and call.call_id in model:
                assert call.call_id in queue
        elif operation == "remove":
            known = model.pop(call.call_id, None) is not None
            assert queue.remove(call.call_id) == known
        elif operation == "rebuild":
            queue.rebuild()
        elif model:
            best = min(model.values(), key=lambda c: c.rank)
            assert queue.peek() is best
            assert queue.pop() is model.pop(best.call_id)
        assert len(queue) == len(model)
        expected = sorted(model.values(), key=lambda c: c.rank)
        assert queue.ordered() == expected


def test_empty_queue_says_so() -> None:
    queue = ReadyQueue()
    queue.push(make(1))
    queue.remove("1")
    with pytest.raises(IndexError):
        queue.peek()
    with pytest.raises(IndexError):
        queue.pop()


def test_an_id_used_again_gives_the_new_call() -> None:
    queue, old, new = ReadyQueue(), make(1), make(1, level=3)
    queue.push(old)
    queue.remove("1")
    queue.push(new)
    assert queue.pop() is new
    assert len(queue) == 0


@pytest.mark.parametrize("n", [256, 4096])
def test_comparisons_grow_as_n_log_n(n: int) -> None:
    queue = ReadyQueue()
    calls = [make(i) for i in range(n)]
    for call in calls:
        call.rank = (CountingInt(call.seq * 7919 % n), 1, 0.0, call.seq)
    CountingInt.comparisons = 0
    for call in calls:
        queue.push(call)
    for call in calls:
        call.rank = (CountingInt(call.seq * 104729 % n), 1, 0.0, call.seq)
        queue.refresh(call)
    for call in calls[::4]:
        queue.remove(call.call_id)
    while len(queue):
        queue.pop()
    # About two pushes and two pops per call; a scan would need n * n / 2.
    assert CountingInt.comparisons < 8 * n * math.log2(n)


@given(st.lists(st.sampled_from("rrrrpxd"), max_size=600))
def test_heap_stays_proportional_to_what_waits(operations: list[str]) -> None:
    queue, seq = ReadyQueue(), 0
    live = make(0)
    queue.push(live)
    for operation in operations:
        if operation == "r":
            queue.refresh(live)
        elif operation == "p":
            seq += 1
            queue.push(make(seq, level=2))
        elif operation == "d":
            queue.remove(str(seq))
        elif len(queue) > 1:
            queue.pop()
            queue.push(live)
        assert len(queue._heap) <= max(65, 2 * len(queue) + 1)


def test_an_abort_storm_frees_its_calls() -> None:
    queue = ReadyQueue()
    for i in range(10_000):
        queue.push(make(i))
    for i in range(10_000):
        queue.remove(str(i))
    assert len(queue._heap) <= 64


def test_popping_everything_in_order_is_a_sort() -> None:
    queue = ReadyQueue()
    ranks = [(i * 37) % 101 for i in range(101)]
    for rank in ranks:
        queue.push(make(rank))
    assert [queue.pop().seq for _ in ranks] == heapq.nsmallest(101, ranks)
