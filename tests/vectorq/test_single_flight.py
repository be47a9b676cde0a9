# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Identical requests in flight."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import given
from hypothesis import strategies as st

from vllm_vectorq.single_flight import Lead, SingleFlight

KEY = b"key"
T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run with a limit, so that a deadlock is a failure."""
    return asyncio.run(asyncio.wait_for(main, 10))


async def settled() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def lead_of(flights: SingleFlight[str]) -> Lead[str]:
    lead = await flights.enter(KEY, True)
    assert isinstance(lead, Lead)
    return lead


def test_the_first_leads_and_the_others_get_its_result() -> None:
    async def main() -> None:
        flights: SingleFlight[str] = SingleFlight(5)
        lead = await lead_of(flights)
        waiting = [asyncio.create_task(flights.enter(KEY, True)) for _ in range(3)]
        await settled()
        assert not any(task.done() for task in waiting)
        lead.settle("answer")
        assert await asyncio.gather(*waiting) == ["answer"] * 3
        assert len(flights) == 0

    run(main())


def test_other_keys_do_not_wait() -> None:
    async def main() -> None:
        flights: SingleFlight[str] = SingleFlight(5)
        await lead_of(flights)
        assert isinstance(await flights.enter(b"other", True), Lead)

    run(main())


def test_when_the_leader_fails_one_of_the_others_takes_the_lead() -> None:
    async def main() -> None:
        flights: SingleFlight[str] = SingleFlight(5)
        first = await lead_of(flights)
        waiting = [asyncio.create_task(flights.enter(KEY, True)) for _ in range(3)]
        await settled()
        first.settle(None)
        await settled()
        [second] = [task.result() for task in waiting if task.done()]
        assert isinstance(second, Lead)
        second.settle("answer")
        results = await asyncio.gather(*waiting)
        assert results.count("answer") == 2

    run(main())


def test_only_the_first_settlement_counts() -> None:
    async def main() -> None:
        flights: SingleFlight[str] = SingleFlight(5)
        lead = await lead_of(flights)
        waiting = asyncio.create_task(flights.enter(KEY, True))
        await settled()
        lead.settle("answer")
        lead.settle(None)
        later = await lead_of(flights)
        lead.settle("too late")
        assert await waiting == "answer"
        assert len(flights) == 1
        later.settle(None)

    run(main())


def test_the_wait_is_bounded() -> None:
    async def main() -> None:
        flights: SingleFlight[str] = SingleFlight(0.01)
        lead = await lead_of(flights)
        assert await flights.enter(KEY, True) is None
        lead.settle("answer")
        assert len(flights) == 0

    run(main())


def test_the_wait_is_bounded_over_several_leaders() -> None:
    async def main() -> None:
        flights: SingleFlight[str] = SingleFlight(0.05)
        loop = asyncio.get_running_loop()
        lead = await lead_of(flights)
        waiting = asyncio.create_task(flights.enter(KEY, False))
        started = loop.time()
        while not waiting.done() and loop.time() < started + 5:
            await asyncio.sleep(0.02)
            # A new leader is there before the one who waits has woken up.
            lead.settle(None)
            lead = await lead_of(flights)
        assert await waiting is None
        lead.settle(None)

    run(main())


def test_cancelling_one_who_waits_affects_nobody_else() -> None:
    async def main() -> None:
        flights: SingleFlight[str] = SingleFlight(5)
        lead = await lead_of(flights)
        waiting = [asyncio.create_task(flights.enter(KEY, True)) for _ in range(3)]
        await settled()
        waiting[1].cancel()
        await settled()
        assert waiting[1].cancelled()
        lead.settle("answer")
        assert await waiting[0] == await waiting[2] == "answer"

    run(main())


def test_one_who_may_not_be_shared_waits_but_never_leads() -> None:
    async def main() -> None:
        flights: SingleFlight[str] = SingleFlight(5)
        assert await flights.enter(KEY, False) is None
        lead = await lead_of(flights)
        waiting = asyncio.create_task(flights.enter(KEY, False))
        await settled()
        lead.settle("answer")
        assert await waiting == "answer"

    run(main())


def test_without_a_wait_everybody_goes_alone() -> None:
    async def main() -> None:
        flights: SingleFlight[str] = SingleFlight(0)
        assert await flights.enter(KEY, True) is None
        assert len(flights) == 0

    run(main())


def test_a_leader_of_another_loop_is_not_waited_for() -> None:
    flights: SingleFlight[str] = SingleFlight(5)
    lead = run(lead_of(flights))
    assert run(flights.enter(KEY, True)) is None
    lead.settle(None)


@given(st.lists(st.sampled_from(["answer", "fail", "cancel"]), max_size=12))
def test_nobody_is_lost(fates: list[str]) -> None:
    """Whatever happens to whoever leads, all others end with a result or the lead."""

    async def main() -> None:
        flights: SingleFlight[str] = SingleFlight(5)
        ended: list[str] = []

        async def request(fate: str) -> None:
            found = await flights.enter(KEY, True)
            if isinstance(found, Lead):
                try:
                    await asyncio.sleep(0)
                    if fate == "cancel":
                        raise asyncio.CancelledError
                    if fate == "answer":
                        found.settle("answer")
                finally:
                    found.settle(None)
                ended.append("led")
            else:
                assert found == "answer"
                ended.append("followed")

        tasks = [asyncio.create_task(request(fate)) for fate in fates]
        done = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled = sum(isinstance(r, asyncio.CancelledError) for r in done)
        assert len(ended) + cancelled == len(fates)
        assert len(flights) == 0

    run(main())
