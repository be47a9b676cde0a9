# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The policies that are compared, and the suite policy without one of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from vllm_vectorq import guards, policy_suite
from vllm_vectorq import replay as replaying
from vllm_vectorq.config import VectorQConfig
from vllm_vectorq.lexical_evidence import lexical_evidence
from vllm_vectorq.policy import Decision, Evidence, Policy
from vllm_vectorq.policy_static import StaticPolicy
from vllm_vectorq.policy_suite import SuitePolicy
from vllm_vectorq.policy_vcache import VCachePolicy
from vllm_vectorq.record import Vector
from vllm_vectorq.service import policy_factory
from vllm_vectorq.suite_budget import Correction

SUITE = "suite"
STATIC = "static"
LEARNING = (SUITE, "vcache", "vcache_paper", "vectorq_v1")


class _EveryLabelInserted(SuitePolicy):
    """Keeps an entry of every question that was asked of the model."""

    def indexes(self, decision: Decision, label: bool | None) -> bool:
        return True


class _NoColdStart(SuitePolicy):
    """Serves nothing before the first model that was fitted here."""

    def decide(self, evidence: Evidence, delta: float, uniform: float) -> Decision:
        decision = super().decide(evidence, delta, uniform)
        if self._fitted:
            return decision
        return replace(decision, serve=False, propensity=1.0)


def _uncorrected(expected: object, wrong: object) -> Correction:
    return Correction(factors=(1.0,) * len(Correction().factors), floor=0.0)


def _without_agreement(
    signature: guards.Signature | None, others: Sequence[guards.Signature | None]
) -> tuple[NDArray[np.bool_], Vector]:
    conflicts, agreement = lexical_evidence(signature, others)
    return conflicts, np.zeros_like(agreement)


# What each takes away: a class in place of the policy's, and what is put in place of
# which name of which module while it runs.
ABLATIONS: dict[str, tuple[Callable[[], Policy], tuple[tuple[Any, str, Any], ...]]] = {
    "no_projection": (
        SuitePolicy,
        ((policy_suite, "_FIRST_PROJECTION", np.iinfo(np.int64).max),),
    ),
    "no_lexical_features": (
        SuitePolicy,
        ((replaying, "lexical_evidence", _without_agreement),),
    ),
    "no_correction": (
        SuitePolicy,
        ((policy_suite, "measure_correction", _uncorrected),),
    ),
    "no_pruning": (_EveryLabelInserted, ()),
    "no_cold_start": (_NoColdStart, ()),
    "no_caution": (partial(SuitePolicy, caution=0.0), ()),
}


@contextmanager
def policy_named(name: str) -> Iterator[Policy]:
    """A fresh policy, for as long as it runs.

    Args:
        name: ``static 0.90``, an ablation such as ``suite no_pruning``, the paper's
            ``vcache_paper``, else the plugin's policy of that name with its defaults.
    """
    base, _, rest = name.partition(" ")
    if base == STATIC:
        yield StaticPolicy(float(rest))
    elif rest:
        factory, replaced = ABLATIONS[rest]
        patches = [patch.object(*each) for each in replaced]
        for each in patches:
            each.start()
        try:
            yield factory()
        finally:
            for each in patches:
                each.stop()
    elif base == "vcache_paper":
        # No floor per hit, and no exploration that the budget does not ask for.
        yield VCachePolicy(hit_floor=0.0, min_exploration=0.0)
    else:
        yield policy_factory(VectorQConfig(policy=base))()
