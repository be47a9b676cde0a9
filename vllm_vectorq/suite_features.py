# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the neighbours of a request say about its answer, as a few numbers.

The candidate is the answer class with the largest weight among the neighbours; near
ones weigh more. A neighbour that a lexical guard forbids votes for its class, but
its own answer is not served. Scalar Python is faster than NumPy at this size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .policy import Evidence
from .suite_classes import AnswerClasses

NAMES = (
    "bias",
    "similarity",
    "behind_nearest",
    "margin",
    "vote",
    "projected",
    "projected_margin",
    "log_votes",
    "centre",
    "centre_margin",
    "log_entries",
    "log_class_size",
    "similarity_squared",
    "vote_similarity",
    "centre_margin_vote",
    "projected_margin_projected",
    "lexical",
    "lexical_margin",
    "conflicts",
)
N_FEATURES = len(NAMES)

# Neighbours weigh exp(-(distance)/width); both similarities count half.
_WIDTH = 0.05
_MOST_SURE = 1e-4
# Stand-ins for what a rival would say when there is none.
_FAR = 0.2
_FAR_CENTRE = 0.5


@dataclass(frozen=True, slots=True)
class Candidate:
    """The entry that would answer, and why.

    Attributes:
        index: Its place in the evidence.
        features: As in :data:`NAMES`.
    """

    index: int
    features: list[float]


@dataclass(slots=True)
class _Class:
    """What the neighbours of one answer class say."""

    best: int
    weight: float = 0.0
    served: int = -1
    projected: float = -1.0
    votes: int = 0
    forbidden: int = 0
    lexical: float = 0.0


def candidate(evidence: Evidence, classes: AnswerClasses) -> Candidate | None:
    """Choose the candidate; None when its answer may not be served.

    Args:
        evidence: The neighbours.
        classes: What is known of the answer classes.
    """
    forbidden = evidence.conflicts.tolist()
    if all(forbidden):
        return None
    similarities = evidence.similarities.tolist()
    vector, projected = classes.projected(evidence)
    votes = _vote(evidence, forbidden, similarities, projected)
    first = second = None
    total = 0.0
    for class_id, one in votes.items():
        total += one.weight
        if first is None or one.weight > votes[first].weight:
            first, second = class_id, first
        elif second is None or one.weight > votes[second].weight:
            second = class_id
    assert first is not None  # There is a neighbour, so there is a class.
    own = votes.pop(first)
    if own.served < 0:
        return None
    share = min(max(own.weight / total, _MOST_SURE), 1.0 - _MOST_SURE)
    vote = math.log(share / (1.0 - share))
    similarity, nearest = similarities[own.best], similarities[0]
    centre = classes.towards(first, vector)
    if second is None:
        rival = min(similarities[-1], nearest - _FAR)
        rival_projected = min(min(projected), own.projected - _FAR)
        rival_lexical, rival_centre = 0.0, centre - _FAR_CENTRE
    else:
        rival = rival_projected = -1.0
        rival_lexical = 0.0
        for one in votes.values():
            rival = max(rival, similarities[one.best])
            rival_projected = max(rival_projected, one.projected)
            rival_lexical = max(rival_lexical, one.lexical)
        rival_centre = classes.towards(second, vector)
    centre_margin = centre - rival_centre
    projected_margin = own.projected - rival_projected
    return Candidate(
        own.served,
        [
            1.0,
            similarity,
            similarity - nearest,
            similarity - rival,
            vote,
            own.projected,
            projected_margin,
            math.log(own.votes),
            centre,
            centre_margin,
            math.log(evidence.size + 1.0),
            math.log(classes.size(first, evidence.size)),
            similarity * similarity,
            vote * similarity,
            0.1 * centre_margin * vote,
            projected_margin * own.projected,
            own.lexical,
            own.lexical - rival_lexical,
            own.forbidden / own.votes,
        ],
    )


def _vote(
    evidence: Evidence,
    forbidden: list[bool],
    similarities: list[float],
    projected: list[float],
) -> dict[int, _Class]:
    lexical = evidence.lexical.tolist()
    classes: dict[int, _Class] = {}
    for i, class_id in enumerate(evidence.class_ids.tolist()):
        one = classes.get(class_id)
        if one is None:
            one = classes[class_id] = _Class(best=i)
        near = projected[i]
        one.weight += math.exp((0.5 * (near + similarities[i]) - 1.0) / _WIDTH)
        one.votes += 1
        if near > one.projected:
            one.projected = near
        if forbidden[i]:
            one.forbidden += 1
        elif one.served < 0:
            one.served = i
        if lexical[i] > one.lexical:
            one.lexical = lexical[i]
    return classes
