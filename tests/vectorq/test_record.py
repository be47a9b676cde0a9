# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Ids sort by time, fit the store, and need no coordination."""

import threading
import time

import pytest

from vllm_vectorq.record import first_id_at, new_id


def test_ids_lie_between_the_first_ids_of_their_time() -> None:
    before_s = time.time()
    made = new_id()
    after_s = time.time()
    assert first_id_at(before_s) <= made < first_id_at(after_s + 0.001)


def test_later_ids_are_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1.7e9
    monkeypatch.setattr("vllm_vectorq.record.time.time", lambda: now_s)
    made = []
    for _ in range(100):
        made.append(new_id())
        now_s += 0.0011
    assert made == sorted(made)


def test_ids_fit_a_signed_column(monkeypatch: pytest.MonkeyPatch) -> None:
    in_2038_s = 2.15e9
    monkeypatch.setattr("vllm_vectorq.record.time.time", lambda: in_2038_s)
    made = {new_id() for _ in range(10)}
    assert len(made) == 10
    assert all(0 < one < 2**63 for one in made)


def test_first_ids_of_extreme_times_fit_a_signed_column() -> None:
    for time_s in (-1e30, -1.0, 0.0, 1e12, 1e30):
        assert -(2**63) <= first_id_at(time_s) < 2**63
    assert first_id_at(0.0) == 0


def test_threads_make_no_id_twice() -> None:
    made: list[int] = []

    def work() -> None:
        mine = []
        for _ in range(50):
            mine.append(new_id())
            time.sleep(0.0002)
        made.extend(mine)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == len(made) == 200
