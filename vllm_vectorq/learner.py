# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Turns the model's answers into entries and labels, after they were sent."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from .config import VectorQConfig
from .embedding import EmbeddingPool
from .embedding_request import EmbeddingRefused
from .entries import Entry
from .error_estimate import ServedErrorEstimator
from .faults import Faults
from .judge import ChainJudge, Judge, Verdict, normalised
from .judge_error import JudgeErrors
from .label_quota import LabelQuota
from .labelling import Labeller
from .metrics import CacheMetrics
from .partition_state import PartitionState
from .policy import NOTHING_NEAR, Decision
from .record import Change, ObservationRecord, Vector, new_id
from .request import Answer, CacheRequest
from .tightening import tightest
from .working_set import WorkingSet, store_form

if TYPE_CHECKING:
    from .cache import Ticket

# Source of labels that people give.
FEEDBACK = "feedback"
# Share of verdicts that the strongest judge checks.
CHECKED_SHARE = 0.05
# Other classes whose answer is compared when the candidate's was not equivalent.
OTHER_CLASSES = 3


class Learner:
    """Stores answers at once and labels them in the background.

    Args:
        config: The operator's options.
        working_set: Where entries go.
        judges: Say whether two answers are equivalent, from cheap to expensive.
        labeller: Runs the labelling, bounded.
        quota: Bounds what one client can teach.
        embedding: Embeds texts that missed their deadline.
        submit: Hands observations to the store.
        served_errors: Running estimate of the errors served.
        metrics: Where to count.
        faults: Where to report faults of ours.
        clock: Unix time in seconds.
        uniform: Random numbers in [0, 1), for choosing verdicts to check.

    Attributes:
        judge_errors: How often each judge disagrees with the last one.
    """

    def __init__(
        self,
        config: VectorQConfig,
        working_set: WorkingSet,
        judges: Sequence[Judge],
        labeller: Labeller,
        quota: LabelQuota,
        embedding: EmbeddingPool | None,
        submit: Callable[[Change], None],
        served_errors: ServedErrorEstimator,
        metrics: CacheMetrics,
        faults: Faults,
        clock: Callable[[], float] = time.time,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._config = config
        self._working_set = working_set
        self._judges = tuple(judges)
        self._chain = ChainJudge(self._judges)
        self.judge_errors = JudgeErrors()
        self._uniform = uniform
        self._labeller = labeller
        self._quota = quota
        self._embedding = embedding
        self._submit = submit
        self._served_errors = served_errors
        self._metrics = metrics
        self._faults = faults
        self._clock = clock

    def learn(self, ticket: Ticket, answer: Answer) -> None:
        """Take an answer: exact repeats hit from now on, the rest is queued."""
        request = ticket.request
        if not request.store:
            return
        state = self._working_set.partition_for(request.partition)
        entry = self._entry(state, request, answer)
        self._working_set.insert(entry)
        if request.text is not None and self._embedding is not None:
            self._labeller.run(
                lambda: self._label_and_index(ticket, state, entry, answer)
            )

    def _entry(
        self, state: PartitionState, request: CacheRequest, answer: Answer
    ) -> Entry:
        now_s = self._clock()
        longest_s = self._config.ttl_s
        lifetime_s = tightest(longest_s, request.ttl_s) or longest_s
        return Entry(
            entry_id=new_id(),
            partition=state,
            exact_key=request.exact_key,
            text=request.text,
            class_id=0,
            stored=store_form(new_id(), answer),
            created_s=now_s,
            expires_s=now_s + lifetime_s,
            principal=request.principal,
            last_used_s=now_s,
        )

    def add_judge(self, judge: Judge) -> None:
        """Ask one more judge, after the others."""
        self._judges = (*self._judges, judge)
        self._chain = ChainJudge(self._judges)

    def _label_and_index(
        self, ticket: Ticket, state: PartitionState, entry: Entry, answer: Answer
    ) -> None:
        vector = ticket.vector
        if vector is None:
            vector = self._embed(ticket.request)
            if vector is None:
                return
        label = self._label(ticket, answer)
        entry.class_id = self._class(ticket, state, vector, answer, label)
        if state.policy.indexes(ticket.decision or NOTHING_NEAR, label):
            self._working_set.insert_vector(entry, vector)
        state.policy.tune()

    def _embed(self, request: CacheRequest) -> Vector | None:
        assert self._embedding is not None and request.text is not None
        try:
            return self._embedding.submit(request.text).result()
        except EmbeddingRefused as reason:
            self._metrics.no_embedding(type(reason).__name__)
            return None
        except Exception as error:
            self._faults.report("late embedding", error)
            return None

    def _label(self, ticket: Ticket, answer: Answer) -> bool | None:
        """Label the candidate that would have answered, and learn from it."""
        candidate, decision = ticket.candidate, ticket.decision
        if candidate is None or decision is None:
            return None
        request = ticket.request
        verdict = self._compare(request.text or "", answer, candidate)
        outcome = {True: "right", False: "wrong", None: "unknown"}[verdict.equivalent]
        self._metrics.explored(outcome)
        # Answers that no judge can compare are mostly different ones. Labels without
        # them would be of the easy cases only, and the budget would not hold.
        verdict = replace(verdict, equivalent=verdict.equivalent is True)
        self._served_errors.label(verdict.equivalent is True, decision.propensity)
        self.teach(candidate, decision, verdict, request.principal)
        return verdict.equivalent

    def teach(
        self,
        candidate: Entry,
        decision: Decision,
        verdict: Verdict,
        principal: bytes | None,
    ) -> bool:
        """Have the candidate's policy learn a label.

        Returns:
            Whether it may: the entry is still there and the client's quota allows.
        """
        right, entry_id = verdict.equivalent, candidate.entry_id
        alive = self._working_set.entries.get(entry_id) is candidate
        if right is None or not alive:
            return False
        # Neither its author nor praise confirms an entry: another client's request
        # has to get an equivalent answer from the model.
        own = principal is not None and principal == candidate.principal
        confirms = right and not own and verdict.source != FEEDBACK
        if not self._quota.admit(principal, entry_id, confirms):
            return False
        candidate.partition.taught = True
        candidate.partition.policy.observe(
            entry_id, decision.features, right, decision.propensity
        )
        self._submit(
            ObservationRecord(
                observation_id=new_id(),
                partition=candidate.partition.digest,
                entry_id=entry_id,
                features=decision.features,
                label=right,
                propensity=decision.propensity,
                source=verdict.source,
                principal=principal,
            )
        )
        return True

    def _class(
        self,
        ticket: Ticket,
        state: PartitionState,
        vector: Vector,
        answer: Answer,
        label: bool | None,
    ) -> int:
        """The class of an answer: that of an equivalent one, else a new one."""
        form = hashlib.blake2b(
            normalised(answer.text).encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()
        if label and ticket.candidate is not None:
            state.remember_class(form, ticket.candidate.class_id)
            return ticket.candidate.class_id
        known = state.class_of(form)
        if known is None:
            known = self._equivalent_class(ticket, state, vector, answer)
        class_id = known if known is not None else new_id()
        state.remember_class(form, class_id)
        return class_id

    def _equivalent_class(
        self,
        ticket: Ticket,
        state: PartitionState,
        vector: Vector,
        answer: Answer,
    ) -> int | None:
        for entry in self._one_per_class(state, vector, ticket.candidate):
            verdict = self._compare(ticket.request.text or "", answer, entry)
            if verdict.equivalent:
                return entry.class_id
        return None

    def _one_per_class(
        self, state: PartitionState, vector: Vector, judged: Entry | None
    ) -> Sequence[Entry]:
        assert state.index is not None
        near = state.index.search(vector, self._config.neighbours)
        seen = {judged.class_id} if judged is not None else set()
        chosen: list[Entry] = []
        for entry_id, class_id in zip(
            near.entry_ids.tolist(), near.class_ids.tolist(), strict=True
        ):
            entry = self._working_set.entries.get(entry_id)
            if entry is not None and class_id not in seen:
                seen.add(class_id)
                chosen.append(entry)
        return chosen[:OTHER_CLASSES]

    def _compare(self, text: str, answer: Answer, entry: Entry) -> Verdict:
        asked = text, answer.text, entry.text or "", entry.stored.answer.text
        with self._metrics.judge_seconds.time():
            verdict = self._chain.judge(*asked)
        self._check(verdict, asked)
        word = {True: "same", False: "different", None: "unknown"}[verdict.equivalent]
        self._metrics.verdict(verdict.source, word)
        return verdict

    def _check(self, verdict: Verdict, asked: tuple[str, str, str, str]) -> None:
        """Compare some verdicts with those of the last judge, the strongest."""
        strongest = self._judges[-1]
        if (
            verdict.equivalent is None
            or verdict.source == strongest.name
            or self._uniform() >= CHECKED_SHARE
        ):
            return
        try:
            truth = strongest.judge(*asked)
        except Exception as error:
            self._faults.report("judge check", error)
            return
        if truth.equivalent is not None:
            self.judge_errors.count(
                verdict.source, verdict.equivalent, truth.equivalent
            )

    def judge_stats(self) -> dict[str, Any]:
        """Verdicts of each judge that the last one contradicted."""
        stats: dict[str, Any] = {}
        for judge in self._judges[:-1]:
            same = self.judge_errors.false_equivalent(judge.name)
            different = self.judge_errors.false_different(judge.name)
            stats[judge.name] = {
                "false_equivalent": asdict(same),
                "false_different": asdict(different),
            }
        stats["labelling"] = asdict(self._labeller.stats())
        stats["refused_labels"] = {
            "per_entry": self._quota.refused_per_entry,
            "per_minute": self._quota.refused_per_minute,
        }
        return stats

    def may_serve(self, entry: Entry, request: CacheRequest) -> bool:
        """Whether an entry may be served semantically to who asks."""
        return self._quota.may_serve(entry.entry_id, entry.principal, request.principal)
