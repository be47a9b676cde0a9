# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What one client can teach, and who may be served an entry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_vectorq.label_quota import LabelQuota

ALICE, BOB, CAROL = b"alice", b"bob", b"carol"


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_one_client_gives_an_entry_a_bounded_number_of_labels() -> None:
    quota = LabelQuota(per_entry=2)
    assert [quota.admit(ALICE, 1, True) for _ in range(4)] == [True, True, False, False]
    assert quota.admit(ALICE, 2, True)
    assert quota.admit(BOB, 1, True)
    assert quota.refused_per_entry == 2


def test_one_client_gives_a_bounded_number_of_labels_per_minute() -> None:
    clock = Clock()
    quota = LabelQuota(per_minute=3, clock=clock)
    assert [quota.admit(ALICE, i, True) for i in range(4)] == [True] * 3 + [False]
    assert quota.admit(BOB, 9, True)
    clock.now_s = 20.0
    assert [quota.admit(ALICE, i, True) for i in (10, 11)] == [True, False]
    assert quota.refused_per_minute == 2


def test_a_long_pause_saves_up_no_more_than_a_minute() -> None:
    clock = Clock()
    quota = LabelQuota(per_minute=2, clock=clock)
    assert quota.admit(ALICE, 0, True)
    clock.now_s = 1e6
    assert [quota.admit(ALICE, i, True) for i in (1, 2, 3)] == [True, True, False]


def test_labels_refused_per_entry_do_not_use_up_the_minute() -> None:
    quota = LabelQuota(per_entry=1, per_minute=2, clock=Clock())
    assert quota.admit(ALICE, 1, True)
    for _ in range(5):
        assert not quota.admit(ALICE, 1, True)
    assert quota.admit(ALICE, 2, True)


def test_clients_without_identity_are_not_limited_and_confirm_nothing() -> None:
    quota = LabelQuota(per_entry=1, per_minute=1, confirmations=1)
    assert all(quota.admit(None, 1, True) for _ in range(10))
    assert not quota.may_serve(1, ALICE, BOB)


def test_without_the_option_everybody_is_served() -> None:
    assert LabelQuota().may_serve(1, ALICE, BOB)
    assert LabelQuota().may_serve(1, None, None)


def test_an_entry_is_shared_once_enough_distinct_clients_confirmed_it() -> None:
    quota = LabelQuota(confirmations=2)
    for _ in range(3):
        quota.admit(ALICE, 1, True)
    assert not quota.may_serve(1, ALICE, CAROL)
    quota.admit(BOB, 1, True)
    assert quota.may_serve(1, ALICE, CAROL)
    assert quota.may_serve(1, ALICE, None)
    assert not quota.may_serve(2, ALICE, CAROL)


def test_the_author_is_always_served_but_nobody_is_not_an_author() -> None:
    quota = LabelQuota(confirmations=2)
    assert quota.may_serve(1, ALICE, ALICE)
    assert not quota.may_serve(1, None, None)


def test_labels_that_say_different_or_were_refused_confirm_nothing() -> None:
    quota = LabelQuota(per_minute=1, confirmations=1, clock=Clock())
    assert quota.admit(ALICE, 1, False)
    assert not quota.admit(ALICE, 1, True)
    assert not quota.may_serve(1, CAROL, BOB)


def test_stored_labels_confirm_again_without_spending_the_minute() -> None:
    quota = LabelQuota(per_minute=1, confirmations=2, clock=Clock())
    quota.restore(ALICE, 1)
    quota.restore(ALICE, 1)
    quota.restore(None, 1)
    assert not quota.may_serve(1, None, CAROL)
    quota.restore(BOB, 1)
    assert quota.may_serve(1, None, CAROL)
    assert quota.admit(ALICE, 2, True)


def test_entries_that_are_gone_must_be_confirmed_again() -> None:
    quota = LabelQuota(confirmations=1)
    quota.admit(ALICE, 1, True)
    quota.forget([1, 2])
    assert not quota.may_serve(1, ALICE, BOB)


def test_what_was_used_last_is_remembered_longest() -> None:
    quota = LabelQuota(per_entry=1, confirmations=1, capacity=2)
    quota.admit(ALICE, 1, True)
    quota.admit(ALICE, 2, True)
    assert not quota.admit(ALICE, 1, True)
    quota.admit(ALICE, 3, True)
    assert not quota.admit(ALICE, 1, True)
    assert quota.admit(ALICE, 2, True)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.booleans())))
def test_memory_is_bounded_and_forgetting_opens_no_entry(
    labels: list[tuple[int, int, bool]],
) -> None:
    quota = LabelQuota(confirmations=2, capacity=3)
    confirmed: dict[int, set[int]] = {}
    for principal, entry_id, equivalent in labels:
        if quota.admit(bytes([principal]), entry_id, equivalent) and equivalent:
            confirmed.setdefault(entry_id, set()).add(principal)
    tables = (quota._given, quota._allowances, quota._confirmed_by)
    assert all(len(table) <= 3 for table in tables)
    for entry_id in range(21):
        if quota.may_serve(entry_id, None, b"other"):
            assert len(confirmed[entry_id]) >= 2


@pytest.mark.parametrize(
    "bounds",
    [{"per_entry": 0}, {"per_minute": 0}, {"capacity": 0}, {"confirmations": -1}],
)
def test_bounds_that_admit_nothing_are_refused(bounds: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LabelQuota(**bounds)
