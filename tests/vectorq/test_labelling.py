# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The bounded background worker for labels."""

import logging
import random
import sys
import threading
from collections.abc import Iterator

import pytest

from vllm_vectorq.labelling import Labeller

WAIT_S = 30.0
logger = logging.getLogger("test.labelling")


class Gate:
    """A job that waits inside until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.opened.wait(WAIT_S)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


class Always(random.Random):
    """Chance that takes every job with a probability above zero."""

    def random(self) -> float:
        return 0.0


def held(labeller: Labeller, gate: Gate) -> Labeller:
    """The labeller with its only worker busy and an empty queue."""
    assert labeller.run(gate)
    assert gate.entered.wait(WAIT_S)
    return labeller


def test_every_job_taken_runs_once_and_in_order() -> None:
    done: list[int] = []
    labeller = Labeller(logger)
    assert all(labeller.run(lambda i=i: done.append(i)) for i in range(100))
    assert labeller.flush(WAIT_S)
    assert done == list(range(100))
    assert labeller.stats().finished == 100
    assert labeller.close(WAIT_S)


def test_several_workers_run_jobs_at_the_same_time() -> None:
    together = threading.Barrier(3)
    labeller = Labeller(logger, workers=3)
    for _ in range(3):
        labeller.run(lambda: together.wait(WAIT_S))
    assert labeller.flush(WAIT_S)
    assert labeller.stats().failures == {}
    assert labeller.close(WAIT_S)


def test_no_thread_runs_before_the_first_job() -> None:
    before = threading.active_count()
    labeller = Labeller(logger, workers=4)
    assert threading.active_count() == before
    assert labeller.close(0.0)


def test_a_full_queue_drops_the_newest_without_waiting(gate: Gate) -> None:
    done: list[int] = []
    labeller = held(Labeller(logger, capacity=3, rng=Always()), gate)
    taken = [labeller.run(lambda i=i: done.append(i)) for i in range(5)]
    assert taken == [True, True, True, False, False]
    assert labeller.stats().dropped == 2
    assert labeller.stats().depth == 3
    gate.opened.set()
    assert labeller.flush(WAIT_S)
    assert done == [0, 1, 2]
    assert labeller.close(WAIT_S)


def test_a_queue_that_fills_samples_what_it_takes(gate: Gate) -> None:
    labeller = held(Labeller(logger, capacity=1000, rng=random.Random(1)), gate)
    taken = [labeller.run(bool) for _ in range(3000)]
    assert all(taken[:500])
    stats = labeller.stats()
    # dn/dx = 2 (1 - n) for the filled share n from a half on: n(3) = 1 - e^-5 / 2.
    assert 990 <= stats.depth <= 1000
    assert sum(taken) == stats.depth
    assert stats.sampled_out + stats.dropped == 3000 - sum(taken)
    # The second half of the queue comes from all over the later traffic.
    assert sum(taken[500:1000]) < 450
    assert sum(taken[1000:]) > 100
    gate.opened.set()
    assert labeller.close(WAIT_S)


def test_nothing_is_sampled_while_the_worker_keeps_up() -> None:
    labeller = Labeller(logger, capacity=4, rng=random.Random(1))
    for _ in range(50):
        assert labeller.run(bool)
        assert labeller.flush(WAIT_S)
    assert labeller.close(WAIT_S)


def test_exceptions_are_counted_and_logged_once_per_kind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    labeller = Labeller(logger)
    done: list[str] = []

    def broken() -> None:
        raise OSError("no model")

    for _ in range(3):
        labeller.run(broken)
    labeller.run(lambda: sys.exit("library"))
    labeller.run(lambda: [][0], "feedback")
    labeller.run(lambda: done.append("alive"))
    with caplog.at_level(logging.WARNING):
        assert labeller.flush(WAIT_S)
    assert done == ["alive"]
    assert labeller.stats().failures == {
        "label: OSError": 3,
        "label: SystemExit": 1,
        "feedback: IndexError": 1,
    }
    assert labeller.stats().finished == 6
    assert len(caplog.records) == 3
    assert "no model" in caplog.text
    assert labeller.close(WAIT_S)


def test_latency_is_told_per_kind_also_of_failed_jobs() -> None:
    told: list[tuple[str, float]] = []
    labeller = Labeller(logger, on_latency=lambda kind, s: told.append((kind, s)))
    labeller.run(bool)
    labeller.run(lambda: {}["missing"], "feedback")
    assert labeller.flush(WAIT_S)
    assert [kind for kind, _ in told] == ["label", "feedback"]
    assert all(seconds >= 0.0 for _, seconds in told)
    assert labeller.close(WAIT_S)


def test_a_broken_latency_callback_does_not_end_the_worker() -> None:
    def broken(kind: str, seconds: float) -> None:
        raise OSError(kind)

    labeller = Labeller(logger, on_latency=broken)
    labeller.run(bool)
    labeller.run(bool)
    assert labeller.flush(WAIT_S)
    assert labeller.stats().failures == {"on_latency: OSError": 2}
    assert labeller.close(WAIT_S)


def test_flush_gives_up_in_time(gate: Gate) -> None:
    labeller = held(Labeller(logger), gate)
    assert not labeller.flush(0.01)
    gate.opened.set()
    assert labeller.flush(WAIT_S)
    assert labeller.close(WAIT_S)


def test_closing_drops_what_waits_and_refuses_what_comes(gate: Gate) -> None:
    done: list[int] = []
    labeller = held(Labeller(logger), gate)
    labeller.run(lambda: done.append(1))
    assert not labeller.close(0.01)
    assert not labeller.run(lambda: done.append(2))
    gate.opened.set()
    assert labeller.close(WAIT_S)
    assert labeller.flush(0.0)
    assert done == []
    assert labeller.stats().dropped == 2


def test_a_job_may_hand_in_another_and_close() -> None:
    labeller = Labeller(logger)
    closed = threading.Event()

    def close() -> None:
        labeller.close(0.01)
        closed.set()

    labeller.run(lambda: labeller.run(close))
    assert closed.wait(WAIT_S)
    assert labeller.close(WAIT_S)


@pytest.mark.parametrize(("workers", "capacity"), [(0, 1), (1, 0)])
def test_a_labeller_needs_a_worker_and_a_queue(workers: int, capacity: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Labeller(logger, workers=workers, capacity=capacity)
