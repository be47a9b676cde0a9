# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The default policy explores as it says, serves nothing forbidden, and restarts."""

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests.vectorq.synthetic_streams import (
    AUDIT,
    DELTA,
    FIRST_FIT,
    REQUESTS,
    SEEDS,
    Seen,
    Watched,
    broken_budgets,
    restarted,
    run,
    stream,
    suite,
    watched,
)
from vllm_vectorq import policy_suite
from vllm_vectorq.policy import NOTHING_NEAR, Decision, Evidence, Policy
from vllm_vectorq.policy_suite import (
    ALERT_FACTOR,
    EARLY_FACTOR,
    EARLY_HITS,
    LABELLED,
    SuitePolicy,
)
from vllm_vectorq.replay import replay
from vllm_vectorq.suite_features import N_FEATURES

EARLY_AUDIT = EARLY_FACTOR * AUDIT


def all_seen() -> list[Seen]:
    return [seen for seed in range(SEEDS) for seen in watched(seed, DELTA)[0].seen]


def test_nothing_is_served_before_the_first_labels() -> None:
    served = [seen.labels for seen in all_seen() if seen.decision.serve]
    assert min(served) >= FIRST_FIT
    late = Watched(SuitePolicy(first_fit=200))
    outcome = run(late, 0, DELTA)
    assert outcome.hit.any()
    assert min(s.labels for s in late.seen if s.decision.serve) >= 200


def test_request_that_could_be_served_is_explored_with_its_propensity() -> None:
    chancy = [seen for seen in all_seen() if seen.decision.propensity < 1.0]
    alerted = ALERT_FACTOR * AUDIT
    assert {seen.decision.propensity for seen in chancy} <= {EARLY_AUDIT, alerted}
    assert all(
        seen.decision.serve == (seen.uniform >= seen.decision.propensity)
        for seen in chancy
    )
    servable = [seen for seen in chancy if seen.decision.propensity == EARLY_AUDIT]
    audits = sum(not seen.decision.serve for seen in servable)
    spread = (EARLY_AUDIT * len(servable)) ** 0.5
    assert abs(audits - EARLY_AUDIT * len(servable)) < 4.0 * spread
    # Whatever is not served without chance is explored for certain.
    others = [seen for seen in all_seen() if seen.decision.propensity == 1.0]
    assert not any(seen.decision.serve for seen in others)


def test_propensity_of_an_audit_is_learned_with_its_label() -> None:
    policy, _ = watched(0, DELTA)
    taught = [propensity for _, _, _, propensity in policy.labels]
    explored = [
        seen.decision.propensity
        for seen in policy.seen
        if not seen.decision.serve and seen.decision.candidate is not None
    ]
    assert taught == explored
    assert EARLY_AUDIT in taught


@pytest.fixture
def easy() -> list[Seen]:
    """Requests that were served late in a stream."""
    return [seen for seen in watched(0, DELTA)[0].seen if seen.decision.serve][-60:]


@pytest.fixture
def bold() -> SuitePolicy:
    """A policy that uses its whole budget from the first label on."""
    policy = SuitePolicy(audit=AUDIT, first_fit=FIRST_FIT, caution=0.0)
    return restarted(watched(0, DELTA)[0], policy)


def test_first_hits_of_a_partition_are_audited_more_often(
    bold: SuitePolicy, easy: list[Seen]
) -> None:
    found = [decision.propensity for decision in decisions(bold, easy * 40)]
    audits = [propensity for propensity in found if propensity < 1.0]
    early = EARLY_HITS - 1
    assert audits[:early] == [EARLY_AUDIT] * early
    assert set(audits[early:]) == {AUDIT}


def test_where_nearly_all_is_served_audits_keep_labels_coming(
    bold: SuitePolicy, easy: list[Seen]
) -> None:
    decided = zip(easy, decisions(bold, easy), strict=True)
    easy = [seen for seen, decision in decided if decision.serve]
    decisions(bold, easy * 40)
    bold.tune()
    (audit,) = {d.propensity for d in decisions(bold, easy) if d.serve}
    assert LABELLED / 2 < audit <= LABELLED


def test_audited_request_with_a_right_answer_does_not_become_an_entry() -> None:
    policy = suite()
    explored, audited = (Decision(False, 0, 0.9, p) for p in (1.0, AUDIT))
    assert policy.indexes(explored, True)
    assert policy.indexes(explored, None)
    assert policy.indexes(audited, False)
    assert policy.indexes(NOTHING_NEAR, None)
    assert not policy.indexes(audited, True)


def forbidding(seed: int) -> Callable[[Evidence], Evidence]:
    random = np.random.default_rng(seed)

    def forbid(evidence: Evidence) -> Evidence:
        share = random.choice([0.1, 0.5, 1.0])
        forbidden = random.random(len(evidence.conflicts)) < share
        return replace(evidence, conflicts=forbidden)

    return forbid


def test_forbidden_entry_is_never_served_nor_a_candidate() -> None:
    for seed in range(2):
        policy = Watched(suite(seed), alter=forbidding(seed))
        outcome = run(policy, seed, DELTA)
        assert outcome.hit.any()
        for seen in policy.seen:
            if seen.evidence.conflicts.all():
                assert seen.decision is NOTHING_NEAR
            elif seen.decision.candidate is not None:
                assert not seen.evidence.conflicts[seen.decision.candidate]


def test_confident_policy_does_not_serve_what_is_forbidden() -> None:
    policy, _ = watched(0, DELTA)
    served = [seen.evidence for seen in policy.seen if seen.decision.serve]
    for evidence in served[-20:]:
        forbidden = replace(evidence, conflicts=np.ones_like(evidence.conflicts))
        assert policy.policy.decide(forbidden, 0.5, 0.999) is NOTHING_NEAR


def test_no_neighbours_ask_the_model_without_a_candidate() -> None:
    evidence = watched(0, DELTA)[0].seen[0].evidence
    none = replace(
        evidence,
        entry_ids=evidence.entry_ids[:0],
        class_ids=evidence.class_ids[:0],
        similarities=evidence.similarities[:0],
        vectors=evidence.vectors[:0],
        conflicts=evidence.conflicts[:0],
        lexical=evidence.lexical[:0],
    )
    assert suite().decide(none, DELTA, 0.999) is NOTHING_NEAR


def not_numbers(evidence: Evidence) -> Evidence:
    return replace(evidence, similarities=np.full_like(evidence.similarities, np.nan))


def test_similarity_that_is_no_number_is_not_served() -> None:
    policy = restarted(watched(0, DELTA)[0], suite())
    decision = policy.decide(
        not_numbers(watched(0, DELTA)[0].seen[-1].evidence), DELTA, 0.999
    )
    assert not decision.serve
    assert 0.0 <= decision.probability <= 1.0


def test_label_with_features_that_are_no_numbers_teaches_nothing() -> None:
    policy = restarted(watched(0, DELTA)[0], suite())
    broken = np.full(N_FEATURES, np.nan, np.float32)
    for _ in range(200):
        policy.observe(0, broken, True, 1.0)
    policy.tune()
    decided = [
        policy.decide(seen.evidence, DELTA, 0.999) for seen in watched(0, DELTA)[0].seen
    ]
    assert all(0.0 <= decision.probability <= 1.0 for decision in decided)
    assert not all(decision.serve for decision in decided)


def decisions(policy: Policy, seen: list[Seen], delta: float = DELTA) -> list[Decision]:
    return [policy.decide(one.evidence, delta, 0.5) for one in seen]


@pytest.mark.parametrize("delta", [DELTA, 0.005])
@pytest.mark.parametrize("labels_first", [False, True])
def test_restarted_policy_serves_about_as_much_within_the_budget(
    labels_first: bool, delta: float
) -> None:
    late = 200
    before, after, wrong = 0, 0, []
    for seed in range(8):
        policy, _ = watched(seed, delta)
        last, truth = policy.seen[-late:], stream(seed, REQUESTS)[1][-late:]
        fresh = restarted(policy, suite(seed), labels_first)
        found = decisions(fresh, last, delta)
        before += sum(seen.decision.propensity < 1.0 for seen in last)
        after += sum(decision.serve for decision in found)
        wrong.append(
            [
                decision.serve and seen.evidence.class_ids[decision.candidate] != right
                for decision, seen, right in zip(found, last, truth, strict=True)
            ]
        )
    assert after == pytest.approx(before, rel=0.2)
    assert broken_budgets(np.array(wrong), delta) == []


def test_names_of_classes_do_not_count() -> None:
    for seed in range(2):
        vectors, ids = stream(seed, REQUESTS)
        names = np.random.default_rng(seed).permutation(int(ids.max()) + 1)[ids]
        outcome = watched(seed, DELTA)[1]
        renamed = replay(suite(seed), vectors, names, DELTA, seed)
        # Sums in another order are rounded differently.
        assert (renamed.hit != outcome.hit).sum() <= 2
        assert np.array_equal(renamed.probability > 0.0, outcome.probability > 0.0)


def test_features_of_another_policy_teach_nothing() -> None:
    policy = suite()
    for shape in (0, 1, N_FEATURES - 1, N_FEATURES + 1):
        for _ in range(2 * FIRST_FIT):
            policy.observe(0, np.ones(shape, np.float32), True, 1.0)
    policy.observe(0, np.ones((1, N_FEATURES), np.float32), True, 1.0)
    policy.tune()
    seen = watched(0, DELTA)[0].seen[-1]
    assert not policy.decide(seen.evidence, 0.9, 0.999).serve
    assert len(policy._labels) == 0


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_suite, "MAX_LABELS", 150)
    monkeypatch.setattr(policy_suite, "MAX_SAMPLE", 160)
    monkeypatch.setattr(policy_suite, "RECENT", 100)
    policy = suite()
    outcome = run(policy, 0, DELTA)
    assert outcome.entries > 160 and outcome.judge_calls > 150
    assert outcome.hit.any()
    assert len(policy._labels) == 150
    assert len(policy._sample) == len(policy._classes._rows) == 160
    assert sum(policy._classes._sizes.values()) == 160
    assert len(policy._recent) == 100


def test_forgotten_entries_leave_nothing_behind() -> None:
    old, _ = watched(0, DELTA)
    policy = restarted(old, suite())
    ids = [entry_id for entry_id, _, _ in old.entries]
    policy.forget(ids[:-1])
    assert policy._sample.entry_ids == ids[-1:]
    policy.forget(ids)
    classes = policy._classes
    tables = (classes._rows, classes._sums, classes._centres, classes._sizes)
    assert not any(tables)
    assert len(policy._sample) == 0
    # It goes on without them.
    found = decisions(policy, old.seen[-50:])
    assert all(0.0 <= decision.probability <= 1.0 for decision in found)


def test_forgetting_unknown_entries_changes_nothing() -> None:
    old, _ = watched(1, DELTA)
    policy, touched = (restarted(old, suite(1)) for _ in range(2))
    touched.forget([10**12, 10**12 + 1])
    touched.forget([])
    for one, other in zip(
        decisions(policy, old.seen[-100:]),
        decisions(touched, old.seen[-100:]),
        strict=True,
    ):
        assert (one.serve, one.probability) == (other.serve, other.probability)


def test_entry_learned_twice_counts_once() -> None:
    old, _ = watched(2, DELTA)
    policy = restarted(old, suite(2))
    for entry_id, vector, class_id in old.entries:
        policy.learn(entry_id, vector, class_id)
    assert len(policy._sample) == len(old.entries)
    assert sum(policy._classes._sizes.values()) == len(old.entries)


@pytest.fixture
def eager_threads() -> Iterator[None]:
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("eager_threads")
def test_deciding_while_learning_is_sane() -> None:
    old, _ = watched(3, DELTA)
    policy = restarted(old, suite(3))
    failures: list[BaseException] = []
    done = threading.Event()

    def decide() -> None:
        try:
            while not done.is_set():
                for seen in old.seen[-60:]:
                    decision = policy.decide(seen.evidence, DELTA, 0.5)
                    assert decision.candidate is not None
                    assert 0.0 <= decision.probability <= 1.0
                    assert decision.propensity in (EARLY_AUDIT, AUDIT, 1.0)
                    assert decision.serve == (decision.propensity < 1.0)
                    assert np.isfinite(decision.features).all()
        except BaseException as error:
            failures.append(error)

    def teach() -> None:
        try:
            for i, (entry_id, vector, class_id) in enumerate(old.entries):
                policy.forget([entry_id, -1])
                policy.observe(*old.labels[i % len(old.labels)])
                policy.learn(entry_id, vector, class_id)
                policy.tune()
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=decide) for _ in range(2)]
    writers = [threading.Thread(target=teach) for _ in range(2)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not failures
    assert len(policy._sample) == len(old.entries)
    assert sum(policy._classes._sizes.values()) == len(old.entries)


@pytest.mark.parametrize("option", ["hit_delta", "audit"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, float("nan")])
def test_argument_out_of_range_is_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"asked for {option} {value}.*give a number"):
        SuitePolicy(**{option: value})  # type: ignore[arg-type]


def test_policy_is_the_one_called_suite() -> None:
    policy: Policy = suite()
    assert policy.name == "suite"
