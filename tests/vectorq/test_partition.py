# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Keys: equal for requests that may share answers, and for no others."""

import re
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vllm_vectorq.fingerprint import (
    TO_CONTEXT_END,
    UnkeyableError,
    canonical,
    digest_of,
    hashed,
    sampling_fingerprint,
)
from vllm_vectorq.partition import (
    UNANNOTATED,
    Annotation,
    Prompt,
    Scope,
    build_request,
    cut_last,
    partition_digest,
)
from vllm_vectorq.request import CacheRequest
from vllm_vectorq.tightening import UNCHANGED, Tightening

SCOPE = Scope(
    facts={"namespace": "default", "model": "m", "weights": "w", "tenant": ""},
    mode="semantic",
    delta=0.02,
    ttl_s=3600.0,
    secret=b"secret",
    special_tokens=re.compile(re.escape("<|end|>")),
    semantic_tools=False,
)
# Any text, lone surrogates, NULs and the like included.
anything = st.text(st.characters(codec=None), max_size=12)
# Few letters, so that parts resemble each other often.
resembling = st.text("ab\0", max_size=6)
facts = st.dictionaries(resembling, resembling, max_size=3)


def chat(user: str, rendered: str, **changes: object) -> Prompt:
    annotation = Annotation("chat", (user,))
    tokens = tuple(rendered.encode("utf-8", "surrogatepass"))
    return replace(Prompt(rendered, tokens, annotation), **changes)  # type: ignore[arg-type]


def build(prompt: Prompt, scope: Scope = SCOPE, sampling: str = "{}") -> CacheRequest:
    return build_request(scope, prompt, sampling, UNCHANGED)


# -- the cut -------------------------------------------------------------------


def test_the_last_occurrence_is_cut_out() -> None:
    assert cut_last("sun rose sun set", ["sun"]) == ("sun rose ", "sun", " set")


def test_a_turn_that_the_template_stripped_is_found() -> None:
    assert cut_last("<u>hi</u>", ["  hi\n"]) == ("<u>", "hi", "</u>")


def test_a_turn_that_is_there_unstripped_is_taken_as_it_is() -> None:
    assert cut_last("<u> hi </u>", [" hi "]) == ("<u>", " hi ", "</u>")


def test_the_first_form_that_occurs_is_taken() -> None:
    assert cut_last("a\nb", ["ab", "a\nb"]) == ("", "a\nb", "")


@pytest.mark.parametrize("parts", [[], ["x"], [""], [" \n"]])
def test_nothing_is_cut_when_nothing_occurs(parts: list[str]) -> None:
    assert cut_last("a \n b", parts) is None


@given(anything, anything, anything)
def test_putting_the_turn_back_gives_the_prompt(
    before: str, user: str, after: str
) -> None:
    assume(user.strip())
    whole = before + user + after
    cut = cut_last(whole, [user])
    assert cut is not None
    assert "".join(cut) == whole
    assert user not in cut[2]


# -- partitions ----------------------------------------------------------------


@given(facts, facts)
def test_digests_differ_when_facts_do(
    one: dict[str, str], other: dict[str, str]
) -> None:
    for around in (None, ("a", "b")):
        same = partition_digest(one, around) == partition_digest(other, around)
        assert same == (one == other)


@given(facts, st.tuples(resembling, resembling), st.tuples(resembling, resembling))
def test_digests_differ_when_the_prompt_around_the_turn_does(
    common: dict[str, str], one: tuple[str, str], other: tuple[str, str]
) -> None:
    same = partition_digest(common, one) == partition_digest(common, other)
    assert same == (one == other)


@given(facts, facts, st.tuples(anything, anything) | st.none())
def test_facts_and_prompt_cannot_pose_as_each_other(
    one: dict[str, str], other: dict[str, str], around: tuple[str, str] | None
) -> None:
    assume((one, None) != (other, around))
    assert partition_digest(one, None) != partition_digest(other, around)


@given(st.lists(st.binary(max_size=4)), st.lists(st.binary(max_size=4)))
def test_digests_of_parts_differ_when_any_part_does(
    one: list[bytes], other: list[bytes]
) -> None:
    assert (digest_of(*one) == digest_of(*other)) == (one == other)


@given(anything, anything, anything, anything)
def test_requests_of_one_partition_differ_in_the_turn_alone(
    before: str, after: str, one: str, other: str
) -> None:
    assume(one.strip() and other.strip())
    prompts = [before + user + after for user in (one, other)]
    requests = [
        build(chat(user, text))
        for user, text in zip((one, other), prompts, strict=True)
    ]
    if requests[0].partition.digest == requests[1].partition.digest:
        cut = cut_last(prompts[0], [one])
        assert cut is not None
        assert f"{cut[0]}{requests[1].text}{cut[2]}" == prompts[1]
    if requests[0].exact_key == requests[1].exact_key:
        assert prompts[0] == prompts[1]


@pytest.mark.parametrize(
    ("user", "rendered"),
    [
        ("You are kind.", "S: You are kind. U: You are kind. A:"),
        ("A:", "S: x U: A: A:"),
        ("\0x", "S: \0x U: \0x A:"),
        ("vectorq partition 1, cut", "S: x U: vectorq partition 1, cut A:"),
    ],
    ids=["system prompt", "template", "NUL", "own marker"],
)
def test_a_turn_crafted_like_other_parts_takes_its_own_place_only(
    user: str, rendered: str
) -> None:
    crafted = build(chat(user, rendered))
    before, _, after = rendered.rpartition(user)
    honest = build(chat("hello", f"{before}hello{after}"))
    assert honest.partition == crafted.partition
    assert honest.exact_key != crafted.exact_key
    assert crafted.text == user
    if user in before:
        changed = before.replace(user, "hello")
        elsewhere = build(chat(user, f"{changed}{user}{after}"))
        everywhere = build(chat("hello", rendered.replace(user, "hello")))
        assert crafted.partition not in (elsewhere.partition, everywhere.partition)


def test_two_questions_behind_one_prompt_share_a_partition() -> None:
    one = build(chat("what is up?", "S: be kind U: what is up? A:"))
    other = build(chat("what's up?", "S: be kind U: what's up? A:"))
    assert one.partition == other.partition
    assert one.exact_key != other.exact_key
    assert (one.text, one.mode, one.why_exact) == ("what is up?", "semantic", "")


@pytest.mark.parametrize(
    "rendered",
    [
        "S: be rude U: hi A:",
        "S: be kind U: ho A: hey U: hi A:",
        "S: be kind TOOLS: x U: hi A:",
        "S: be kind 2024-05-02 U: hi A:",
        "S: be kind U: hi A: well",
    ],
)
def test_everything_around_the_question_separates(rendered: str) -> None:
    plain = build(chat("hi", "S: be kind U: hi A:"))
    assert build(chat("hi", rendered)).partition != plain.partition


@pytest.mark.parametrize("name", sorted(SCOPE.facts))
def test_every_fact_separates(name: str) -> None:
    prompt = chat("hi", "U: hi A:")
    other = replace(SCOPE, facts={**SCOPE.facts, name: "another"})
    assert build(prompt).partition != build(prompt, other).partition
    assert build(prompt).exact_key != build(prompt, other).exact_key


def test_protocol_tokenization_salt_and_sampling_separate() -> None:
    prompt = chat("hi", "U: hi A:")
    annotation = prompt.annotation
    others = [
        replace(prompt, annotation=replace(annotation, protocol="completions")),
        replace(prompt, annotation=replace(annotation, tokenization="bare")),
        replace(prompt, cache_salt="salt"),
        replace(prompt, cache_salt="pepper"),
    ]
    digests = [build(p).partition.digest for p in (prompt, *others)]
    digests.append(build(prompt, sampling='{"top_k":3}').partition.digest)
    assert len(set(digests)) == 6


def test_salts_and_callers_are_not_readable() -> None:
    request = build(chat("hi", "U: hi A:", cache_salt="my salt"))
    assert "my salt" not in str(request.partition.facts)
    assert request.partition.facts["cache_salt"]
    assert hashed(b"a", "salt", "x") != hashed(b"b", "salt", "x")
    assert hashed(b"a", "salt", "x") != hashed(b"a", "tenant", "x")


# -- exact matches only ----------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (Prompt(None, (1, 2)), "as tokens"),
        (Prompt("U: hi A:", (1, 2)), "as tokens"),
        (Prompt(None, (1, 2), Annotation("chat", ("hi",))), "as tokens"),
        (chat("bye", "U: hi A:"), "does not occur"),
        (chat("hi <|end|> x", "U: hi <|end|> x A:"), "special token"),
        (
            Prompt("U: hi A:", (1,), Annotation("chat", ("hi",), has_tools=True)),
            "offers tools",
        ),
        (
            Prompt("U: hi A:", (1,), Annotation("chat", (), "no user turn")),
            "no user turn",
        ),
    ],
)
def test_what_cannot_be_cut_is_matched_exactly_and_says_why(
    prompt: Prompt, why: str
) -> None:
    request = build(prompt)
    assert request.text is None
    assert request.mode == "exact"
    assert why in request.why_exact


def test_an_operator_can_allow_semantic_matches_with_tools() -> None:
    annotation = Annotation("chat", ("hi",), has_tools=True)
    prompt = Prompt("U: hi A:", (1,), annotation)
    assert build(prompt, replace(SCOPE, semantic_tools=True)).text == "hi"


def test_exact_matches_are_told_apart_by_their_tokens() -> None:
    one, other = (build(Prompt(None, ids)) for ids in ((1, 2), (1, 2, 3)))
    assert one.exact_key != other.exact_key
    assert one.partition == other.partition
    assert build(Prompt(None, (1, 2))).exact_key == one.exact_key


def test_one_text_with_other_tokens_is_another_request() -> None:
    prompt = chat("hi", "U: hi A:")
    truncated = replace(prompt, token_ids=prompt.token_ids[2:])
    assert build(prompt).exact_key != build(truncated).exact_key


def test_a_prompt_of_tokens_never_equals_one_that_was_cut() -> None:
    prompt = chat("hi", "hi")
    tokens = replace(prompt, annotation=replace(UNANNOTATED, protocol="chat"))
    assert build(prompt).partition.digest != build(tokens).partition.digest


def test_the_request_tightens_what_the_operator_set() -> None:
    asked = Tightening(mode="exact", delta=0.5, ttl_s=60.0, store=False)
    request = build_request(SCOPE, chat("hi", "U: hi A:"), "{}", asked)
    assert request.mode == "exact"
    assert request.text is None
    assert (request.delta, request.ttl_s, request.store) == (0.02, 60.0, False)
    unchanged = build(chat("hi", "U: hi A:"))
    assert (unchanged.delta, unchanged.ttl_s, unchanged.store) == (None, None, True)


def test_exact_mode_finds_what_others_stored() -> None:
    prompt = chat("hi", "U: hi A:")
    exact = build_request(SCOPE, prompt, "{}", Tightening(mode="exact"))
    assert exact.exact_key == build(prompt).exact_key
    assert exact.partition.digest == build(prompt).partition.digest
    assert exact.why_exact


def test_a_reason_for_exact_matches_is_kept() -> None:
    prompt = chat("hi", "U: hi A:")
    request = build_request(SCOPE, prompt, "{}", UNCHANGED, "it has a schema")
    assert (request.text, request.why_exact) == (None, "it has a schema")


# -- sampling --------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2)
    ),
    max_leaves=6,
)


def kind_of(value: object) -> object:
    """Equal for values that are equal and of equal types all the way down."""
    if isinstance(value, list):
        return ["list", *map(kind_of, value)]
    if isinstance(value, dict):
        return {key: kind_of(inner) for key, inner in value.items()}
    return type(value).__name__, repr(value)


@given(values, values)
def test_fingerprints_differ_when_a_parameter_does(one: object, other: object) -> None:
    first = sampling_fingerprint({"x": one}, 1)
    second = sampling_fingerprint({"x": other}, 1)
    assert (first == second) == (kind_of(one) == kind_of(other))


def test_the_order_of_sets_and_fields_does_not_matter() -> None:
    words = [f"w{i}" for i in range(50)]
    assert canonical(set(words)) == canonical(set(reversed(words)))
    assert canonical({1: 2, "1": 3}) == canonical({"1": 3, 1: 2})
    assert canonical({1: 2}) != canonical({"1": 2})
    assert canonical({1}) != canonical([1])


def test_an_unknown_kind_of_value_has_no_key() -> None:
    with pytest.raises(UnkeyableError, match="object"):
        sampling_fingerprint({"x": [object()]}, 1)


def test_the_way_of_delivery_is_not_part_of_the_key() -> None:
    delivery: dict[str, object] = {
        "output_kind": object(),
        "stream_interval": 5,
        "skip_clone": True,
        "output_text_buffer_length": 3,
    }
    assert sampling_fingerprint(delivery, 5) == sampling_fingerprint({}, 5)


def test_controls_and_routing_are_not_part_of_the_key() -> None:
    xargs = {"vectorq_delta": 0.1, "program_id": "p", "thread_id": "t"}
    plain = sampling_fingerprint({}, 5)
    assert sampling_fingerprint({"extra_args": xargs}, 5) == plain
    assert sampling_fingerprint({"extra_args": {**xargs, "my_bias": 1}}, 5) != plain


def test_a_seed_counts_only_where_chance_does() -> None:
    greedy = [sampling_fingerprint({"temperature": 0.0, "seed": s}, 5) for s in (1, 2)]
    sampled = [sampling_fingerprint({"temperature": 0.5, "seed": s}, 5) for s in (1, 2)]
    assert greedy[0] == greedy[1]
    assert sampled[0] != sampled[1]


def test_limits_and_reasoning_arguments_are_part_of_the_key() -> None:
    keys = {
        sampling_fingerprint({}, 5),
        sampling_fingerprint({}, 6),
        sampling_fingerprint({}, TO_CONTEXT_END),
        sampling_fingerprint({}, 5, {"reasoning_ended": True}),
        sampling_fingerprint({}, 5, {"reasoning_ended": False}),
    }
    assert len(keys) == 5
