# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Expiry and eviction under load, gauges, and the line in the log."""

import logging
import threading
import time
from collections.abc import Callable

import pytest

from tests.vectorq.cache_cases import Core, answer, core, request
from vllm_vectorq import upkeep
from vllm_vectorq.entries import OVERHEAD_BYTES
from vllm_vectorq.record import Removal
from vllm_vectorq.tightening import Tightening
from vllm_vectorq.upkeep import Upkeep

LOGGER = logging.getLogger("test.vectorq.upkeep")
WaitUntil = Callable[[Callable[[], bool]], None]


def upkeep_of(c: Core) -> Upkeep:
    return Upkeep(
        c.cache.config,
        c.working_set,
        c.errors,
        c.cache.metrics,
        c.faults,
        LOGGER,
        c.clock,
    )


def fill(c: Core, texts: list[str], generation_s: float = 0.5) -> None:
    """Exact entries, which need no embedding."""
    for text in texts:
        ticket = c.miss(request(text, why_exact="quick"))
        c.cache.complete(ticket, answer("yes", generation_s))


def test_expired_entries_are_removed_here_and_in_the_store() -> None:
    with core() as c:
        fill(c, ["stays"])
        asked = request("goes", ask=Tightening(ttl_s=10))
        c.teach(asked, "Gone soon.")
        (gone,) = (e for e in c.working_set.entries.all() if e.text == "goes")
        upkeep_of(c).once()
        assert len(c.working_set.entries) == 2
        c.clock.advance(10)
        upkeep_of(c).once()
        assert [e.text for e in c.working_set.entries.all()] == [None]
        assert c.submitted[-1] == Removal((gone.entry_id,))
        assert c.count("removed_total", reason="expired") == 1


def test_thousands_expire_in_one_round() -> None:
    with core(ttl_s=5) as c:
        fill(c, [f"t{n}" for n in range(2000)])
        c.clock.advance(5)
        upkeep_of(c).once()
        assert len(c.working_set.entries) == 0
        assert c.working_set.entries.size_bytes == 0
        assert all(s.entries == 0 for s in c.working_set.partitions())


def test_no_more_entries_than_allowed_are_kept() -> None:
    with core(max_entries=300) as c:
        fill(c, [f"t{n}" for n in range(1000)])
        upkeep_of(c).once()
        assert len(c.working_set.entries) == 300
        assert c.count("removed_total", reason="evicted") == 700
        upkeep_of(c).once()
        assert len(c.working_set.entries) == 300


def test_no_more_memory_than_allowed_is_taken() -> None:
    with core(max_bytes=1 << 17) as c:
        fill(c, [f"t{n}" for n in range(1000)])
        assert c.working_set.entries.size_bytes > 1 << 18
        upkeep_of(c).once()
        assert c.working_set.entries.size_bytes <= 1 << 17
        # Not many more went than had to.
        assert c.working_set.entries.size_bytes > (1 << 17) - 12 * 2 * OVERHEAD_BYTES


def test_answer_larger_than_the_memory_does_not_stop_the_world() -> None:
    with core(max_bytes=1 << 16) as c:
        c.cache.complete(c.miss(request("q", why_exact="quick")), answer("x" * 100_000))
        upkeep_of(c).once()
        assert len(c.working_set.entries) == 0


def test_entries_that_are_served_survive_the_load() -> None:
    with core(max_entries=200) as c:
        popular = [f"popular{n}" for n in range(50)]
        fill(c, popular)
        keeper = upkeep_of(c)
        for turn in range(20):
            for text in popular:
                assert c.get(request(text, why_exact="quick")) is not None, turn
            fill(c, [f"once{turn}-{n}" for n in range(100)])
            c.clock.advance(60)
            keeper.once()
        assert len(c.working_set.entries) == 200


def test_cheap_answers_go_before_those_that_took_long() -> None:
    with core(max_entries=100) as c:
        fill(c, [f"slow{n}" for n in range(100)], generation_s=20.0)
        fill(c, [f"fast{n}" for n in range(900)], generation_s=0.05)
        c.clock.advance(60)
        upkeep_of(c).once()
        slow = [
            n
            for n in range(100)
            if c.working_set.entries.exact(
                request(f"slow{n}", why_exact="quick").exact_key
            )
        ]
        assert len(slow) >= 90


def test_gauges_show_the_state() -> None:
    with core(delta=0.03) as c:
        fill(c, ["a", "b"])
        c.errors.request(hit=True)
        c.errors.label(False, 0.5)
        upkeep_of(c).once()
        assert c.count("entries") == 2
        assert c.count("bytes") == c.working_set.entries.size_bytes > 0
        assert c.count("delta") == 0.03
        assert c.count("error_per_hit") == 1.0
        assert 0 < c.count("error_per_hit_low") < c.count("error_per_hit_high") <= 1
        assert 0 < c.count("error_per_request") < 1


def test_thread_does_its_rounds_and_ends(
    wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "INTERVAL_S", 0.01)
    with core(max_entries=5) as c:
        keeper = upkeep_of(c)
        keeper.start()
        fill(c, [f"t{n}" for n in range(20)])
        wait_until(lambda: len(c.working_set.entries) == 5)
        keeper.close()
        keeper.close()
        assert not any(t.name == "vectorq-upkeep" for t in threading.enumerate())


def test_fault_in_a_round_does_not_end_the_thread(
    wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "INTERVAL_S", 0.01)
    with core() as c:
        keeper = upkeep_of(c)

        def broken() -> None:
            raise OSError("today")

        monkeypatch.setattr(keeper, "once", broken)
        keeper.start()
        wait_until(lambda: c.faults.counts().get("upkeep", 0) >= 3)
        keeper.close()


def test_summary_is_logged_now_and_then(
    wait_until: WaitUntil,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(upkeep, "INTERVAL_S", 0.01)
    caplog.set_level(logging.INFO, logger=LOGGER.name)
    with core(log_interval_s=0.02) as c:
        fill(c, ["a"])
        keeper = upkeep_of(c)
        keeper.start()
        wait_until(lambda: len(caplog.records) >= 2)
        keeper.close()
        assert "1 entries" in caplog.records[0].getMessage()
        assert "(budget 2.000 %)" in caplog.records[0].getMessage()


def test_summary_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "INTERVAL_S", 0.005)
    caplog.set_level(logging.INFO, logger=LOGGER.name)
    with core(log_interval_s=0) as c:
        keeper = upkeep_of(c)
        keeper.start()
        time.sleep(0.1)
        keeper.close()
    assert not caplog.records


def test_closing_what_was_never_started_is_fine() -> None:
    with core() as c:
        upkeep_of(c).close()
