# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A step's requests are divided without losing a token, and evenly."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_offload.step_batch import MicroBatch, Step, divide

BLOCK = 4


def step_of(new: list[int], old: list[int], shuffle: int = 0) -> Step:
    """Requests with so many new and old tokens, in blocks of their own."""
    starts = np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
    lengths = np.array(new) + np.array(old)
    counts = -(-lengths // BLOCK)
    table = np.zeros((len(new), int(counts.max()) + 2), np.int32)
    blocks = np.random.default_rng(shuffle).permutation(int(counts.sum())) + 1
    for row, (count, end) in enumerate(zip(counts, np.cumsum(counts), strict=True)):
        table[row, :count] = blocks[end - count : end]
    return Step(starts, lengths.astype(np.int32), table, BLOCK)


def requests_of(step: Step, batch: MicroBatch) -> list[int]:
    """Which requests of a step a micro-batch has, in its order."""
    first = batch.rows[batch.starts[:-1].long()].numpy()
    found = np.searchsorted(step.starts, first, side="right") - 1
    return [int(each) for each in found]


REQUESTS = st.lists(
    st.tuples(st.sampled_from([1, 1, 1, 2, 9]), st.integers(0, 40)),
    min_size=1,
    max_size=24,
)


@settings(max_examples=80, deadline=None)
@given(REQUESTS, st.integers(1, 9), st.integers(0, 5))
def test_every_token_is_in_one_micro_batch_with_its_request(
    requests: list[tuple[int, int]], parts: int, seed: int
) -> None:
    new, old = (list(each) for each in zip(*requests, strict=True))
    step = step_of(new, old, seed)
    batches = divide(step, parts)
    assert len(batches) == min(parts, len(new))
    rows = np.concatenate([batch.rows.numpy() for batch in batches])
    assert sorted(rows.tolist()) == list(range(sum(new)))
    for batch in batches:
        mine = requests_of(step, batch)
        counts = np.diff(batch.starts.numpy())
        assert counts.tolist() == [new[request] for request in mine]
        assert batch.decodes == sum(count == 1 for count in counts)
        assert (counts[: batch.decodes] == 1).all()
        assert batch.lengths.tolist() == [int(step.lengths[each]) for each in mine]
        assert np.array_equal(batch.table.numpy(), step.table[mine])
        slots = iter(batch.slots.tolist())
        for request, count in zip(mine, counts.tolist(), strict=True):
            for position in range(old[request], old[request] + count):
                block = step.table[request, position // BLOCK]
                assert next(slots) == block * BLOCK + position % BLOCK


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=8, max_size=60), st.integers(2, 8))
def test_micro_batches_weigh_about_as_much(old: list[int], parts: int) -> None:
    step = step_of([1] * len(old), old)
    weights = [
        int(batch.lengths.sum()) + 64 * len(batch.lengths)
        for batch in divide(step, parts)
    ]
    # The lightest was the lightest when the heaviest got its last request.
    assert max(weights) - min(weights) <= max(old) + 1 + 64


def test_what_reads_a_prefix_of_this_step_stays_with_its_writer() -> None:
    # The first writes blocks 1 to 3; the third reads two of them, the fourth reads what
    # the third writes; the second has nothing to do with them.
    table = np.array([[1, 2, 3, 0], [4, 0, 0, 0], [1, 2, 5, 0], [1, 2, 5, 6]], np.int32)
    lengths = np.array([12, 2, 12, 14], np.int32)
    starts = np.array([0, 12, 14, 18, 20], np.int32)
    batches = divide(Step(starts, lengths, table, BLOCK), 4)
    step = Step(starts, lengths, table, BLOCK)
    found = sorted(requests_of(step, batch) for batch in batches)
    assert found == [[0, 2, 3], [1]]


def test_prefixes_of_earlier_steps_bind_nobody() -> None:
    # Both read blocks 1 and 2, which nobody writes now.
    table = np.array([[1, 2, 3], [1, 2, 4]], np.int32)
    step = Step(
        np.array([0, 3, 6], np.int32), np.array([11, 11], np.int32), table, BLOCK
    )
    assert len(divide(step, 2)) == 2
