# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Entries that callers drop or judge by the admin routes."""

from collections.abc import Iterator

import pytest

from tests.vectorq.admin_cases import ONE, TWO, Server


@pytest.fixture
def shared_server() -> Iterator[Server]:
    server = Server(tenants="shared")
    yield server
    server.cache.close()


# -- invalidate --------------------------------------------------------------------


def test_facts_choose_what_is_dropped(server: Server) -> None:
    server.store("a", ONE, lora="x")
    server.store("b", ONE, lora="x", protocol="chat")
    server.store("c", ONE)
    assert server.post("invalidate", {"lora": "x", "protocol": "chat"}) == {
        "removed": 1
    }
    assert server.post("invalidate", {"lora": "x"}) == {"removed": 1}
    assert server.post("invalidate", {"lora": "x"}) == {"removed": 0}
    assert server.post("invalidate", {"lora": ""}) == {"removed": 1}
    assert server.left() == 0


def test_a_prefix_chooses_by_text(server: Server) -> None:
    for text in ("price of tea", "price of milk", "colour of tea"):
        server.store(text, ONE)
    server.store("price of tea", ONE, lora="x")
    assert server.post("invalidate", {"prefix": "price", "lora": "x"})["removed"] == 1
    assert server.post("invalidate", {"prefix": "price of"})["removed"] == 2
    assert server.left() == 1


@pytest.mark.parametrize("body", [{"everything": True}, {"model": "demo"}])
@pytest.mark.parametrize("caller", [ONE, TWO, {}])
def test_callers_drop_their_own_entries_only(
    server: Server, body: dict[str, object], caller: dict[str, str]
) -> None:
    for who in (ONE, TWO, {}):
        server.store("question", who)
    assert server.post("invalidate", body, caller) == {"removed": 1}
    assert server.post("invalidate", body, caller) == {"removed": 0}
    assert server.left() == 2


def test_whoever_shares_answers_may_drop_them(shared_server: Server) -> None:
    for text in ("a", "b"):
        shared_server.store(text, ONE)
    assert shared_server.post("invalidate", {"everything": True}, TWO) == {"removed": 2}


def test_a_proxy_has_to_name_the_tenant() -> None:
    server = Server(tenants="shared", tenant_header="X-Tenant")
    for name in ("a", "b"):
        server.store("question", {**ONE, "X-Tenant": name})
    everything = {"everything": True}
    assert "X-Tenant" in server.refusal("invalidate", everything)
    assert server.left() == 2
    caller = {**TWO, "X-Tenant": "a"}
    assert server.post("invalidate", everything, caller) == {"removed": 1}
    server.cache.close()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "the body is empty: say which entries to drop"),
        ({"everything": False}, "everything: give it alone, and true"),
        ({"everything": True, "model": "demo"}, "everything: give it alone"),
        ({"tenant": "somebody"}, "tenant: unknown"),
        ({"model": None}, "model: None is not a string"),
        ({"prefix": ""}, "prefix: it is empty"),
        ({"prefix": 5}, "prefix: 5 is not a string"),
    ],
)
def test_what_is_dropped_must_be_said(
    server: Server, body: dict[str, object], reason: str
) -> None:
    server.store("a", ONE)
    assert reason in server.refusal("invalidate", body)
    assert server.left() == 1


# -- feedback ----------------------------------------------------------------------


@pytest.mark.parametrize("as_text", [False, True])
def test_a_wrong_answer_is_dropped_by_who_asked_for_it(
    server: Server, as_text: bool
) -> None:
    entry_id = server.store("a", ONE)
    given = str(entry_id) if as_text else entry_id
    praise = server.post("feedback", {"entry_id": given, "right": True})
    assert praise == {"entry_id": str(entry_id), "learned": False}
    assert server.left() == 1
    blame = server.post("feedback", {"entry_id": given, "right": False})
    assert blame["learned"] is True
    assert server.left() == 0


def test_unknown_entries_and_those_of_others_are_not_told_apart(
    server: Server,
) -> None:
    entry_id = server.store("a", ONE)
    wrong = {"entry_id": entry_id, "right": False}
    others = server.refusal("feedback", wrong, caller=TWO, status=404)
    assert server.left() == 1
    server.post("feedback", wrong)
    assert server.refusal("feedback", wrong, caller=TWO, status=404) == others
    assert server.refusal("feedback", wrong, status=404) == others


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"entry_id": 1}, "right: None is neither"),
        ({"entry_id": 1, "right": 1}, "right: 1 is neither"),
        ({"right": True}, "entry_id: None is no number"),
        ({"entry_id": True, "right": True}, "entry_id: True is no number"),
        ({"entry_id": "-1", "right": True}, "entry_id: '-1' is no number"),
        ({"entry_id": "1" * 5_000, "right": True}, "is no number"),
        ({"entry_id": 1.0, "right": True}, "entry_id: 1.0 is no number"),
    ],
)
def test_feedback_is_checked(
    server: Server, body: dict[str, object], reason: str
) -> None:
    assert reason in server.refusal("feedback", body)
