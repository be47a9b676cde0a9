# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_program_sched.identity import (
    MAX_CONTEXT_LENGTH,
    MAX_PARENT_CALLS,
    CallIdentity,
    IdentityError,
    client_request_id,
    identify,
    tenant_of_program,
)

TENANT = "0123456789abcdef"
IDS = st.text(string.ascii_letters + string.digits + "-_.:", min_size=1, max_size=64)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
FIELDS = (
    "program_id",
    "thread_id",
    "parent_call_ids",
    "program_end",
    "program_class",
    "program_remaining",
    "program_tenant",
    "agentic_context",
)


def test_call_that_names_nothing_is_its_own_program() -> None:
    assert identify("req-1", None, None) == CallIdentity(
        program_id="call:req-1",
        explicit=False,
        thread_id=None,
        parent_call_ids=(),
        program_end=False,
        program_class=None,
        remaining_tokens=None,
    )


HEX = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("call_id", "seen"),
    [
        ("chat-1-0123abcd", "chat-1"),
        ("chat-1", "chat-1"),
        ("a-0123ABCD", "a-0123ABCD"),
        (f"cmpl-{HEX}-0-0123abcd", f"cmpl-{HEX}"),
        (f"cmpl-{HEX}-12-0123abcd", f"cmpl-{HEX}"),
        (f"1_cmpl-{HEX}-0-0123abcd", f"cmpl-{HEX}"),
        (f"0_chatcmpl-{HEX}-0123abcd", f"chatcmpl-{HEX}"),
        (f"chatcmpl-{HEX}_3-0123abcd", f"chatcmpl-{HEX}"),
        # A number that the client chose itself stays.
        ("chatcmpl-job_12-0123abcd", "chatcmpl-job_12"),
        ("cmpl-job-12-0-0123abcd", "cmpl-job-12"),
    ],
)
def test_calls_of_one_request_have_the_id_that_the_client_saw(
    call_id: str, seen: str
) -> None:
    assert client_request_id(call_id) == seen
    assert identify(call_id, None, None).program_id == f"call:{seen}"


def test_every_field_is_read() -> None:
    xargs = {
        "program_id": "p",
        "thread_id": "t",
        "parent_call_ids": ["a", "b"],
        "program_end": 1,
        "program_class": "research",
        "program_remaining": 12,
    }
    assert identify("r", xargs, "ignored") == CallIdentity(
        program_id="p",
        explicit=True,
        thread_id="t",
        parent_call_ids=("a", "b"),
        program_end=True,
        program_class="research",
        remaining_tokens=12.0,
    )


def test_precedence_is_xargs_then_context_then_session() -> None:
    context = json.dumps({"program_id": "from-context"})
    everything = {"program_id": "from-xargs", "agentic_context": context}
    assert identify("r", everything, "from-session").program_id == "from-xargs"
    only_context = {"agentic_context": context}
    assert identify("r", only_context, "from-session").program_id == "from-context"
    assert identify("r", {}, "from-session").program_id == "from-session"


def test_context_fields_fill_what_xargs_leave_open() -> None:
    context = json.dumps(
        {"program_id": "p", "thread_id": "t", "program_class": "c", "task": "anything"}
    )
    found = identify("r", {"agentic_context": context, "thread_id": "mine"}, None)
    assert (found.program_id, found.thread_id, found.program_class) == (
        "p",
        "mine",
        "c",
    )


def test_sub_program_is_a_thread_of_its_parent() -> None:
    context = json.dumps(
        {"program_id": "child", "parent_program_id": "parent", "program_end": True}
    )
    found = identify("r", {"agentic_context": context}, None)
    assert (found.program_id, found.thread_id) == ("parent", "child")
    assert not found.program_end, "a sub-program's end must not end its parent"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0.0, False),
        ("true", True),
        (" True ", True),
        ("0", False),
        ("no", False),
    ],
)
def test_program_end_reads_what_clients_send(value: object, expected: bool) -> None:
    assert identify("r", {"program_end": value}, None).program_end is expected


def test_parent_calls_may_be_text() -> None:
    found = identify("r", {"parent_call_ids": "a, b,,c"}, None)
    assert found.parent_call_ids == ("a", "b", "c")


@pytest.mark.parametrize(
    ("xargs", "field"),
    [
        ({"program_id": 7}, "program_id"),
        ({"program_id": ""}, "program_id"),
        ({"program_id": "  "}, "program_id"),
        ({"program_id": "x" * 257}, "program_id"),
        ({"program_id": "a\nb"}, "program_id"),
        ({"program_id": "a\x00b"}, "program_id"),
        ({"program_id": "\ud800"}, "program_id"),
        ({"program_id": f"{TENANT}/victim"}, "program_id"),
        ({"thread_id": ["t"]}, "thread_id"),
        ({"program_class": "x" * 257}, "program_class"),
        ({"parent_call_ids": 3}, "parent_call_ids"),
        ({"parent_call_ids": ["ok", ""]}, "parent_call_ids"),
        ({"parent_call_ids": ["a"] * (MAX_PARENT_CALLS + 1)}, "parent_call_ids"),
        ({"program_end": "perhaps"}, "program_end"),
        ({"program_end": 2}, "program_end"),
        ({"program_remaining": -1}, "program_remaining"),
        ({"program_remaining": float("nan")}, "program_remaining"),
        ({"program_remaining": float("inf")}, "program_remaining"),
        ({"program_remaining": 10**400}, "program_remaining"),
        ({"program_remaining": True}, "program_remaining"),
        ({"program_remaining": "5"}, "program_remaining"),
        ({"program_tenant": "not-a-hash"}, "program_tenant"),
        ({"agentic_context": {"program_id": "p"}}, "agentic_context"),
        ({"agentic_context": "{"}, "agentic_context"),
        ({"agentic_context": "[1]"}, "agentic_context"),
        ({"agentic_context": "[" * 10_000}, "agentic_context"),
        ({"agentic_context": " " * (MAX_CONTEXT_LENGTH + 1)}, "agentic_context"),
        ({"agentic_context": '{"program_id": 5}'}, "program_id"),
    ],
)
def test_unusable_field_is_named_in_a_sentence(
    xargs: dict[str, object], field: str
) -> None:
    with pytest.raises(IdentityError) as caught:
        identify("r", xargs, None)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    assert str(caught.value).endswith(".")


def test_session_id_is_checked_too() -> None:
    with pytest.raises(IdentityError, match=r"^session_id: has 300 characters"):
        identify("r", None, "s" * 300)


def test_length_limit_can_be_changed() -> None:
    assert identify("r", {"program_id": "x" * 300}, None, max_id_length=300).explicit
    with pytest.raises(IdentityError, match="at most 3"):
        identify("r", {"program_id": "four"}, None, max_id_length=3)


@given(st.sampled_from(["program_id", "session"]), IDS)
def test_programs_of_different_keys_never_meet(source: str, name: str) -> None:
    xargs: dict[str, object] = {"program_id": name} if source == "program_id" else {}
    session = name if source == "session" else None
    tenants = [None, TENANT, TENANT[::-1]]
    found = {
        identify("r", {**xargs, "program_tenant": tenant}, session).program_id
        for tenant in tenants
    }
    assert len(found) == len(tenants)
    assert {tenant_of_program(program_id) for program_id in found} == set(tenants)


def test_call_without_program_still_belongs_to_its_key() -> None:
    found = identify("req", {"program_tenant": TENANT}, None)
    assert found.program_id == f"{TENANT}/call:req"
    assert not found.explicit


@given(st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES), st.none() | st.text())
def test_anything_json_can_hold_gives_an_identity_or_a_reason(
    xargs: dict[str, object], session: str | None
) -> None:
    try:
        found = identify("r", xargs, session)
    except IdentityError as error:
        assert error.field in str(error)
    else:
        assert found.program_id.isprintable()
        assert len(found.program_id) <= 256 + len(TENANT) + 1


@given(IDS)
def test_usable_ids_come_back_unchanged(name: str) -> None:
    found = identify("r", {"program_id": name, "thread_id": name}, None)
    assert (found.program_id, found.thread_id) == (name, name)
