# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Why a request would be served from the cache, or not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from . import guards
from .entries import Entry
from .policy import Evidence
from .record import Vector
from .request import CacheRequest

if TYPE_CHECKING:
    from .cache import SemanticCache

# The largest chance there is: an explanation never explores.
_NO_EXPLORATION = 1.0 - 1e-9
_SHOWN_CHARS = 200


def explain(
    cache: SemanticCache,
    request: CacheRequest,
    vector: Vector | None,
    why_none: str = "",
) -> dict[str, Any]:
    """Say what would be served for a request, and why.

    Nothing changes but the policy's view of late traffic, by this one request.

    Args:
        cache: The cache asked.
        request: The request; only entries that it may be served are shown.
        vector: Its embedding; None without semantic look-up.
        why_none: Why there is none.
    """
    facts = {
        "partition": request.partition.digest.hex()[:16],
        "facts": dict(request.partition.facts),
        "mode": request.mode,
    }
    entry = cache.working_set.entries.exact(request.exact_key)
    if entry is not None and cache.fresh(entry, request):
        return {
            **facts,
            "served": True,
            "stage": "exact",
            "why": "the same request was answered before",
            "entry": _shown(entry),
        }
    if vector is None or request.text is None:
        why = why_none or "semantic matches are switched off"
        found = "no identical request" if entry is None else "the answer is too old"
        return {**facts, "served": False, "why": f"{found}, and {why}"}
    state = cache.working_set.partition(request.partition.digest)
    if state is None or state.index is None or not len(state.index):
        why = "nothing is stored for this model, prompt context and caller yet"
        return {**facts, "served": False, "why": why}
    evidence, entries = cache.evidence(state, request, vector)
    delta = cache.delta(request)
    decision = state.policy.decide(evidence, delta, _NO_EXPLORATION)
    result = {
        **facts,
        "policy": state.policy.name,
        "entries_in_partition": evidence.size,
        "delta": delta,
        "neighbours": [
            _neighbour(request, evidence, place, entry)
            for place, entry in enumerate(entries)
        ],
    }
    if decision.candidate is None:
        why = "a lexical guard forbids every near entry that could answer"
        if not entries:
            why = "every near entry has expired"
        return {**result, "served": False, "why": why}
    candidate = entries[decision.candidate]
    result |= {
        "stage": "semantic",
        "entry": _shown(candidate),
        "probability_right": decision.probability,
        "features": [round(float(value), 5) for value in decision.features],
    }
    if decision.serve and cache.learner.may_serve(candidate, request):
        return {**result, "served": True, "why": "the expected error is in the budget"}
    if decision.serve:
        why = "too few other clients have confirmed this entry"
    elif decision.probability == 0.0:
        why = "the policy has too few labels in this partition to serve anything yet"
    else:
        why = "the expected error would exceed the budget"
    return {**result, "served": False, "why": why}


def _neighbour(
    request: CacheRequest, evidence: Evidence, place: int, entry: Entry
) -> dict[str, Any]:
    veto = None
    if evidence.conflicts[place]:
        veto = "its text is not known to this process"
        if entry.signature is not None:
            veto = guards.conflict(
                guards.signature(request.text or ""), entry.signature
            )
    return {
        **_shown(entry),
        "class": entry.class_id,
        "similarity": round(float(evidence.similarities[place]), 5),
        "lexical_agreement": round(float(evidence.lexical[place]), 5),
        "guard": veto,
    }


def _shown(entry: Entry) -> dict[str, Any]:
    text = entry.text
    return {
        "entry_id": entry.entry_id,
        "text": None if text is None else text[:_SHOWN_CHARS],
        "answer": entry.stored.answer.text[:_SHOWN_CHARS],
        "age_s": round(max(time.time() - entry.created_s, 0.0), 3),
        "hits": entry.hits,
    }
