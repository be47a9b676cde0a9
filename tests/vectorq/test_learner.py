# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Labels, classes and entries that come of the model's own answers."""

from collections.abc import Callable

import pytest

from tests.vectorq.cache_cases import BrokenJudge, Core, Synonyms, core, request
from vllm_vectorq.judge import EqualityJudge, Judge
from vllm_vectorq.policy import Decision
from vllm_vectorq.policy_static import StaticPolicy
from vllm_vectorq.policy_vcache import VCachePolicy
from vllm_vectorq.record import EntryRecord, ObservationRecord

RESET = "how do I reset my password"
REPHRASED = "how can I reset my password"
WEATHER = "what is the weather in Paris"
BEES = "how far do honey bees fly"
SUFFIXES = ("then", "again", "please", "maybe", "here")


def labels(c: Core) -> list[ObservationRecord]:
    return [r for r in c.submitted if isinstance(r, ObservationRecord)]


def exploring() -> Callable[[], VCachePolicy]:
    """A policy that explores whatever it has few labels for."""
    return VCachePolicy


# -- labels --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "right"), [("It is 5 euros.", True), ("It is 6 euros.", False)]
)
def test_explored_request_labels_its_candidate(reply: str, right: bool) -> None:
    with core(new_policy=exploring()) as c:
        c.teach(request(RESET), "It is 5 euros!")
        ticket = c.teach(request(REPHRASED, principal=b"p"), reply)
        (label,) = labels(c)
        assert ticket.candidate is not None and ticket.decision is not None
        assert label.entry_id == ticket.candidate.entry_id
        assert label.label is right
        assert label.propensity == ticket.decision.propensity
        assert label.features.tolist() == ticket.decision.features.tolist()
        assert label.source == "equality"
        assert label.principal == b"p"
        assert label.partition == request(RESET).partition.digest
        word = "right" if right else "wrong"
        assert c.count("explorations_total", outcome=word) == 1


def test_policy_observes_the_label() -> None:
    policies: list[VCachePolicy] = []

    def new_policy() -> VCachePolicy:
        policies.append(VCachePolicy(min_labels=3))
        return policies[-1]

    with core(new_policy=new_policy, delta=0.5) as c:
        c.teach(request(RESET), "Click reset.")
        for word in SUFFIXES[:3]:
            c.teach(request(f"{RESET} {word}"), "Click reset.")
        (policy,) = policies
        assert policy.num_known == 1
        hit = c.get(request(REPHRASED))
        assert hit is not None and hit.stage == "semantic"


def test_answers_that_no_judge_can_compare_count_as_different() -> None:
    with core(new_policy=exploring()) as c:
        c.teach(request(RESET), "Click reset.")
        c.teach(request(REPHRASED), "Ask your administrator for help.")
        (label,) = labels(c)
        assert (label.label, label.source) == (False, "chain")
        assert c.count("explorations_total", outcome="unknown") == 1


def test_miss_without_a_candidate_asks_no_judge() -> None:
    judge = Synonyms()
    with core(judges=[judge]) as c:
        c.teach(request(RESET), "Click reset.")
    assert judge.asked == []


def test_label_for_an_entry_that_is_gone_is_not_learned() -> None:
    with core(new_policy=exploring()) as c:
        c.teach(request(RESET), "Click reset.")
        ticket = c.miss(request(REPHRASED))
        c.cache.invalidate()
        c.reply(ticket, "Click reset.")
        assert not labels(c)
        assert c.get(request(REPHRASED)) is not None


def test_label_for_an_entry_that_was_replaced_is_not_learned() -> None:
    with core(new_policy=exploring(), ttl_s=60) as c:
        c.teach(request(RESET), "Click reset.")
        ticket = c.miss(request(REPHRASED))
        c.clock.advance(61)
        c.teach(request(RESET), "Click reset.")
        before = len(labels(c))
        c.reply(ticket, "Click reset.")
        assert len(labels(c)) == before


def test_one_client_gives_an_entry_so_many_labels_only() -> None:
    with core(new_policy=exploring(), per_entry=2) as c:
        c.teach(request(RESET), "Click reset.")
        for word in SUFFIXES[:4]:
            asked = request(f"{RESET} {word}", principal=b"eager")
            c.teach(asked, "Click reset.")
        assert len(labels(c)) == 2
        asked = request(f"{RESET} {SUFFIXES[4]}", principal=b"other")
        c.teach(asked, "Click reset.")
        assert len(labels(c)) == 3


# -- what becomes an entry -----------------------------------------------------


def test_policy_says_what_is_indexed() -> None:
    asked: list[bool | None] = []

    class Picky(StaticPolicy):
        def indexes(self, decision: Decision, label: bool | None) -> bool:
            asked.append(label)
            return label is not True

    with core(new_policy=lambda: Picky(0.999), judges=[EqualityJudge()]) as c:
        c.teach(request(RESET), "It is 5 euros.")
        c.teach(request(REPHRASED), "It is 5 euros!")
        c.teach(request(f"{RESET} now"), "It is 6 euros.")
        assert asked == [None, True, False]
        (state,) = c.working_set.partitions()
        assert state.index is not None
        assert (len(state.index), state.entries) == (2, 3)
        # The one in between answers its own repeats all the same.
        hit = c.get(request(REPHRASED))
        assert hit is not None and hit.stage == "exact"
        vectors = [
            r.vector is not None for r in c.submitted if isinstance(r, EntryRecord)
        ]
        assert vectors == [False, True, False, False, True]


def test_request_without_text_is_never_labelled() -> None:
    with core() as c:
        c.teach(request(RESET, why_exact="a schema"), "Click reset.")
        assert c.cache.learner.judge_stats()["labelling"]["submitted"] == 0


# -- classes -------------------------------------------------------------------


def test_same_answer_in_other_writing_joins_the_class() -> None:
    with core() as c:
        c.teach(request(RESET), "**Sure!** Click reset.")
        c.teach(request(WEATHER), "click reset")
        assert c.class_of(request(WEATHER)) == c.class_of(request(RESET)) != 0


def test_other_answer_makes_a_class() -> None:
    with core() as c:
        c.teach(request(RESET), "Click reset.")
        c.teach(request(WEATHER), "Sunny.")
        assert c.class_of(request(WEATHER)) != c.class_of(request(RESET))


def test_equivalent_answer_joins_the_candidates_class() -> None:
    judge = Synonyms({"Click reset.", "Press the button."})
    with core(judges=[judge], static_threshold=0.999) as c:
        c.teach(request(RESET), "Click reset.")
        c.teach(request(REPHRASED), "Press the button.")
        assert c.class_of(request(REPHRASED)) == c.class_of(request(RESET))


def test_answer_unlike_the_candidates_may_join_another_near_class() -> None:
    judge = Synonyms({"Click reset.", "Press the button."})
    with core(judges=[judge], static_threshold=0.999) as c:
        c.teach(request(f"{RESET} today please"), "Click reset.")
        c.teach(request(RESET), "Call support.")
        ticket = c.teach(request(REPHRASED), "Press the button.")
        assert ticket.candidate is not None and ticket.candidate.text == RESET
        same = c.class_of(request(f"{RESET} today please"))
        assert c.class_of(request(REPHRASED)) == same
        assert [label.label for label in labels(c)] == [False, False]


def test_class_is_new_when_no_near_answer_is_equivalent() -> None:
    with core(judges=[Synonyms()], static_threshold=0.999) as c:
        replies = {RESET: "One.", REPHRASED: "Two.", WEATHER: "Three.", BEES: "Four."}
        for text, reply in replies.items():
            c.teach(request(text), reply)
        assert len({c.class_of(request(text)) for text in replies}) == 4


def test_answer_once_put_into_a_class_stays_there() -> None:
    judge = Synonyms({"Click reset.", "Press the button."})
    with core(judges=[judge], static_threshold=0.999, neighbours=1) as c:
        c.teach(request(RESET), "Click reset.")
        c.teach(request(WEATHER), "Sunny.")
        # Its candidate is equivalent, so it joins that class ...
        c.teach(request(REPHRASED), "Press the button.")
        # ... and so does the same answer to a request that is near to another entry.
        c.teach(request(f"{WEATHER} now"), "Press the button.")
        assert c.class_of(request(REPHRASED)) == c.class_of(request(RESET))
        assert c.class_of(request(f"{WEATHER} now")) == c.class_of(request(RESET))


def test_index_and_table_know_the_same_class() -> None:
    with core(static_threshold=0.999) as c:
        for number, word in enumerate(SUFFIXES):
            c.teach(request(f"{RESET} {word}"), f"It is {number % 2} euros.")
        (state,) = c.working_set.partitions()
        assert state.index is not None
        vector = c.miss(request(RESET)).vector
        assert vector is not None
        evidence, entries = c.cache.evidence(state, request(RESET), vector)
        assert len(entries) == len(SUFFIXES)
        assert [e.class_id for e in entries] == evidence.class_ids.tolist()
        assert len(set(evidence.class_ids.tolist())) == 2


# -- judges --------------------------------------------------------------------


def test_strongest_judge_checks_some_verdicts() -> None:
    judges: list[Judge] = [
        EqualityJudge(),
        Synonyms({"It is 5 euros.", "It is 6 euros."}),
    ]
    with core(judges=judges, new_policy=exploring(), check=0.0) as c:
        c.teach(request(RESET), "It is 5 euros.")
        c.teach(request(REPHRASED), "It is 6 euros.")
        stats = c.cache.learner.judge_stats()
        assert stats["equality"]["false_different"]["wrong"] >= 1
        assert stats["equality"]["false_equivalent"]["wrong"] == 0


def test_verdicts_are_not_checked_otherwise() -> None:
    strongest = Synonyms()
    with core(
        judges=[EqualityJudge(), strongest], new_policy=exploring(), check=0.06
    ) as c:
        c.teach(request(RESET), "It is 5 euros.")
        c.teach(request(REPHRASED), "It is 5 euros!")
        assert len(labels(c)) == 1
        assert strongest.asked == []


def test_fault_while_checking_does_not_cost_the_label() -> None:
    with core(
        judges=[EqualityJudge(), BrokenJudge()], new_policy=exploring(), check=0.0
    ) as c:
        c.teach(request(RESET), "It is 5 euros.")
        c.teach(request(REPHRASED), "It is 5 euros!")
        assert [label.label for label in labels(c)] == [True]


def test_judge_that_is_added_is_asked_last() -> None:
    with core(new_policy=exploring()) as c:
        added = Synonyms({"Click reset.", "Press the button."})
        c.cache.learner.add_judge(added)
        c.teach(request(RESET), "Click reset.")
        c.teach(request(REPHRASED), "Press the button.")
        c.teach(request(f"{REPHRASED} now"), "Click reset!")
        assert [label.source for label in labels(c)] == ["synonyms", "equality"]
        assert "equality" in c.cache.learner.judge_stats()


def test_audited_request_counts_for_those_that_were_served() -> None:
    class Audited(StaticPolicy):
        """Explores every request, as one in four of its kind."""

        def decide(self, *arguments: object) -> Decision:
            near = super().decide(*arguments)  # type: ignore[arg-type]
            return Decision(False, near.candidate, 0.9, 0.25, near.features)

    with core(new_policy=lambda: Audited(0.7)) as c:
        c.teach(request(RESET), "It is 5 euros.")
        c.teach(request(REPHRASED), "It is 6 euros.")
        c.teach(request(f"{REPHRASED} then"), "It is 6 euros.")
        estimate = c.errors.estimate()
        assert estimate.audits == 2
        assert estimate.per_hit == pytest.approx(0.5, abs=1e-3)
