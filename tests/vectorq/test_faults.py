# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Faults are counted always and logged once per place."""

import logging
import threading

import pytest

from vllm_vectorq.faults import Faults

LOGGER = logging.getLogger("test.vectorq.faults")


def test_first_fault_of_a_place_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = Faults(LOGGER)
    for place in ("lookup", "lookup", "decide"):
        try:
            raise KeyError(place)
        except KeyError as error:
            faults.report(place, error)
    assert faults.counts() == {"lookup": 2, "decide": 1}
    assert len(caplog.records) == 2
    first = caplog.records[0]
    assert first.levelno == logging.ERROR
    assert "lookup" in first.getMessage()
    assert first.exc_info and first.exc_info[0] is KeyError


def test_every_fault_reaches_the_metric() -> None:
    seen: list[str] = []
    faults = Faults(LOGGER, seen.append)
    for _ in range(3):
        faults.report("decide", ValueError())
    assert seen == ["decide"] * 3


def test_counts_are_a_copy() -> None:
    faults = Faults(LOGGER)
    faults.report("a", ValueError())
    faults.counts()["a"] = 5
    assert faults.counts() == {"a": 1}


def test_threads_lose_no_fault_and_log_once(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults(LOGGER)

    def work() -> None:
        for _ in range(200):
            faults.report("decide", ValueError())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults.counts() == {"decide": 1600}
    assert len(caplog.records) == 1
