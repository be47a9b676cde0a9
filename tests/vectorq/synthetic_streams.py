# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Made-up streams of requests with known answers, and a look at what is decided."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vllm_vectorq.policy import Decision, Evidence, Policy
from vllm_vectorq.policy_suite import SuitePolicy
from vllm_vectorq.record import Vector
from vllm_vectorq.replay import Outcome, replay

Ids = NDArray[np.int64]

Restarted = TypeVar("Restarted", bound=Policy)

# Settings of the runs and the policy.
SEEDS = 20
REQUESTS = 600
DELTA = 0.02
HIT_DELTA = 0.05
AUDIT = 0.02
FIRST_FIT = 60
# Chance for a budget that is spent to the last error to fail one of the checks: one
# in a thousand for all seeds and the pool.
QUANTILE = NormalDist().inv_cdf(1.0 - 0.001 / (SEEDS + 1))

# Added to the class of an answer that changed.
CHANGED = 1_000_000


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def stream(
    seed: int,
    requests: int,
    *,
    classes: int = 50,
    dimensions: int = 24,
    spread: float = 0.35,
    twins: float = 0.4,
    strangers: float = 0.15,
) -> tuple[Vector, Ids]:
    """Requests around the centres of their answer classes; some are popular.

    Args:
        seed: Of the world and of the order.
        requests: How many.
        classes: Answer classes that come again.
        dimensions: Of the vectors.
        spread: How far requests are from the centre of their class.
        twins: Share of the classes that overlap another, so that neighbours mislead.
        strangers: Share of requests near a class with an answer of their own.
    """
    random = np.random.default_rng([seed, classes])
    centres = unit(random.standard_normal((classes, dimensions)))
    pairs = int(twins * classes) // 2
    aside = unit(random.standard_normal((pairs, dimensions)))
    centres[1 : 2 * pairs : 2] = unit(centres[: 2 * pairs : 2] + 0.5 * aside)
    popularity = np.arange(1, classes + 1) ** -0.7
    random.shuffle(popularity)
    ids = random.choice(classes, requests, p=popularity / popularity.sum())
    off = spread * unit(random.standard_normal((requests, dimensions)))
    strange = random.random(requests) < strangers
    off[strange] += 0.5 * unit(random.standard_normal((strange.sum(), dimensions)))
    vectors = unit(centres[ids] + off).astype(np.float32)
    return vectors, np.where(strange, classes + np.arange(requests), ids)


def changed_answers(ids: Ids, at: int, every: int) -> Ids:
    """From a request on, every so many classes have another answer."""
    late = np.arange(len(ids)) >= at
    return np.where(late & (ids % every == 0), ids + CHANGED, ids)


@dataclass(frozen=True)
class Seen:
    """One decision, and how many labels had been learned from before."""

    evidence: Evidence
    uniform: float
    decision: Decision
    labels: int


class Watched:
    """Passes everything on to a policy, and notes it.

    Args:
        policy: Decides.
        deltas: Budgets of its own for each request in turn, again and again.
        alter: Changes what the policy is shown.
    """

    def __init__(
        self,
        policy: Policy,
        deltas: Sequence[float] = (),
        alter: Callable[[Evidence], Evidence] | None = None,
    ) -> None:
        self.name = policy.name
        self.policy = policy
        self.seen: list[Seen] = []
        self.labels: list[tuple[int, Vector, bool, float]] = []
        self.entries: list[tuple[int, Vector, int]] = []
        self._deltas = deltas
        self._alter = alter

    def decide(self, evidence: Evidence, delta: float, uniform: float) -> Decision:
        if self._deltas:
            delta = self._deltas[len(self.seen) % len(self._deltas)]
        if self._alter is not None:
            evidence = self._alter(evidence)
        decision = self.policy.decide(evidence, delta, uniform)
        self.seen.append(Seen(evidence, uniform, decision, len(self.labels)))
        return decision

    def observe(
        self, entry_id: int, features: Vector, label: bool, propensity: float
    ) -> None:
        self.labels.append((entry_id, features, label, propensity))
        self.policy.observe(entry_id, features, label, propensity)

    def indexes(self, decision: Decision, label: bool | None) -> bool:
        return self.policy.indexes(decision, label)

    def learn(self, entry_id: int, vector: Vector, class_id: int) -> None:
        self.entries.append((entry_id, vector, class_id))
        self.policy.learn(entry_id, vector, class_id)

    def forget(self, entry_ids: Sequence[int]) -> None:
        self.policy.forget(entry_ids)

    def tune(self) -> None:
        self.policy.tune()


def restarted(old: Watched, fresh: Restarted, labels_first: bool = False) -> Restarted:
    """Teach a fresh policy what a store kept of another one, before any request."""

    def observe() -> None:
        for entry_id, features, label, propensity in old.labels:
            fresh.observe(entry_id, features, label, propensity)

    if labels_first:
        observe()
    for entry_id, vector, class_id in old.entries:
        fresh.learn(entry_id, vector, class_id)
    if not labels_first:
        observe()
    fresh.tune()
    return fresh


def suite(seed: int = 0, hit_delta: float = HIT_DELTA) -> SuitePolicy:
    return SuitePolicy(hit_delta, audit=AUDIT, first_fit=FIRST_FIT, seed=seed)


def run(policy: Policy, seed: int, delta: float, noise: float = 0.0) -> Outcome:
    vectors, ids = stream(seed, REQUESTS)
    return replay(policy, vectors, ids, delta, seed, judge_noise=noise)


@cache
def watched(seed: int, delta: float) -> tuple[Watched, Outcome]:
    policy = Watched(suite(seed))
    return policy, run(policy, seed, delta)


def limit(delta: float, requests: int) -> float:
    """Errors that a policy just within the budget exceeds with little chance."""
    spread = math.sqrt(delta * (1.0 - delta) * requests)
    return delta * requests + QUANTILE * spread + 1.0


def broken_budgets(wrong: NDArray[np.bool_], delta: float) -> list[str]:
    """Seeds with more errors than the budget explains, bool [seeds, requests]."""
    seeds = [
        f"seed {seed}: {errors.sum()} of {len(errors)}"
        for seed, errors in enumerate(wrong)
        if errors.sum() > limit(delta, len(errors))
    ]
    pooled = [f"all: {wrong.sum()} of {wrong.size}"]
    return seeds + (pooled if wrong.sum() > limit(delta, wrong.size) else [])
