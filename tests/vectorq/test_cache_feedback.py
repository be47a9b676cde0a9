# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What callers do to entries: confirm them, judge them, have them dropped."""

import pytest

from tests.vectorq.cache_cases import REPHRASED, RESET, WEATHER, core, request
from vllm_vectorq.policy_static import StaticPolicy
from vllm_vectorq.policy_vcache import VCachePolicy


def test_confirmations_keep_an_entry_from_strangers() -> None:
    with core(confirmations=2) as c:
        c.teach(request(RESET, principal=b"author"), "Click reset.")
        assert c.get(request(REPHRASED, principal=b"author")) is not None
        c.miss(request(REPHRASED, principal=b"stranger"))
        c.miss(request(REPHRASED))


def test_entry_is_served_to_strangers_once_confirmed() -> None:
    def new_policy() -> StaticPolicy:
        return StaticPolicy(0.7, inserts_equivalent=False)

    with core(confirmations=2, new_policy=new_policy) as c:
        c.teach(request(RESET, principal=b"author"), "Click reset.")
        for name in ("please", "kindly"):
            asked = request(f"{RESET} {name}", principal=name.encode())
            c.teach(asked, "Click reset.")
        assert c.cache.learner.judge_stats()["labelling"]["failures"] == {}
        assert c.get(request(REPHRASED, principal=b"stranger")) is not None


def test_author_cannot_confirm_an_entry_alone() -> None:
    with core(confirmations=1, new_policy=VCachePolicy, uniform=0.0) as c:
        c.teach(request(RESET, principal=b"author"), "Poison.")
        c.teach(request(f"{RESET} please", principal=b"author"), "Poison.")
        (entry,) = (e for e in c.working_set.entries.all() if e.text == RESET)
        assert not c.cache.learner.may_serve(
            entry, request(REPHRASED, principal=b"stranger")
        )


def test_authors_praise_does_not_confirm_an_entry() -> None:
    with core(confirmations=1) as c:
        c.teach(request(RESET, principal=b"author"), "Poison.")
        hit = c.get(request(REPHRASED, principal=b"author"))
        assert hit is not None
        c.cache.feedback(hit.entry_id, True, b"author", "")
        c.miss(request(REPHRASED, principal=b"stranger"))


def test_request_that_is_withheld_was_explored_for_certain() -> None:
    # The policy would serve it; that it may not is no chance, so its label stands
    # for no other request.
    with core(confirmations=1) as c:
        c.teach(request(RESET, principal=b"author"), "Click reset.")
        c.teach(request(REPHRASED, principal=b"one"), "Click reset.")
        labels = [r for r in c.submitted if type(r).__name__ == "ObservationRecord"]
        assert [label.propensity for label in labels] == [1.0]  # type: ignore[union-attr]
        assert c.errors.estimate().audits == 0


def test_invalidation_by_facts_drops_exactly_those() -> None:
    with core() as c:
        for model in ("one", "two"):
            for tenant in ("a", "b"):
                c.teach(request(RESET, model=model, tenant=tenant), "Click reset.")
        assert c.cache.invalidate(model="one", tenant="a") == 1
        c.miss(request(RESET, model="one", tenant="a"))
        assert c.cache.invalidate(model="two") == 2
        c.miss(request(REPHRASED, model="two", tenant="b"))
        assert c.get(request(REPHRASED, model="one", tenant="b")) is not None
        assert c.cache.invalidate(model="three") == 0
        assert c.cache.invalidate() == 1
        assert len(c.working_set.entries) == 0
        assert c.count("removed_total", reason="invalidated") == 4


def test_invalidation_by_prefix_drops_texts_that_begin_so() -> None:
    with core() as c:
        for text in (RESET, WEATHER, "how do bees fly"):
            c.teach(request(text), f"About {text}.")
        c.teach(request("how do x", why_exact="a schema"), "Exact only.")
        assert c.cache.invalidate_prefix("how do", model="m") == 2
        c.miss(request(RESET))
        assert c.get(request(WEATHER)) is not None
        assert c.get(request("how do x", why_exact="a schema")) is not None
        assert c.cache.invalidate_prefix("what", model="other") == 0


def test_feedback_on_an_unknown_entry_is_none() -> None:
    with core() as c:
        assert c.cache.feedback(12345, True, b"p", "") is None


def test_feedback_of_another_tenant_is_none_and_changes_nothing() -> None:
    with core() as c:
        c.teach(request(RESET, tenant="a", principal=b"p"), "Click reset.")
        hit = c.get(request(RESET, tenant="a"))
        assert hit is not None
        for tenant in ("", "b"):
            assert c.cache.feedback(hit.entry_id, False, b"p", tenant) is None
        assert c.get(request(RESET, tenant="a")) is not None


@pytest.mark.parametrize("right", [True, False])
def test_feedback_on_a_semantic_hit_is_learned_once(right: bool) -> None:
    with core() as c:
        c.teach(request(RESET, principal=b"author"), "Click reset.")
        hit = c.get(request(REPHRASED, principal=b"asker"))
        assert hit is not None
        assert c.cache.feedback(hit.entry_id, right, b"stranger", "") is False
        assert c.cache.feedback(hit.entry_id, right, b"asker", "") is True
        assert c.cache.feedback(hit.entry_id, right, b"asker", "") is False
        labels = [r for r in c.submitted if type(r).__name__ == "ObservationRecord"]
        (label,) = labels
        assert (label.label, label.source, label.propensity, label.principal) == (  # type: ignore[union-attr]
            right,
            "feedback",
            1.0,
            b"asker",
        )
        assert c.get(request(RESET)) is not None
        assert c.errors.estimate().audits == 0


def test_author_can_have_a_wrong_exact_answer_dropped() -> None:
    with core() as c:
        c.teach(request(RESET, principal=b"author"), "Click reset.")
        hit = c.get(request(RESET, principal=b"stranger"))
        assert hit is not None
        assert c.cache.feedback(hit.entry_id, False, b"stranger", "") is False
        assert c.cache.feedback(hit.entry_id, True, b"author", "") is False
        assert c.get(request(RESET)) is not None
        assert c.cache.feedback(hit.entry_id, False, b"author", "") is True
        c.miss(request(RESET))
        assert c.count("removed_total", reason="feedback") == 1
