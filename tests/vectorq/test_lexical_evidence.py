# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The guards' word on each neighbour; what cannot be compared is forbidden."""

import numpy as np
import pytest

from vllm_vectorq.guards import Signature, agreement, signature
from vllm_vectorq.lexical_evidence import lexical_evidence

REQUEST = "How do I get a refund of 20 euros?"
SIGNATURE = signature(REQUEST)


def of(*texts: str | None) -> tuple[list[bool], list[float]]:
    others = [None if text is None else signature(text) for text in texts]
    conflicts, shared = lexical_evidence(SIGNATURE, others)
    return conflicts.tolist(), shared.tolist()


def test_same_text_agrees_in_full() -> None:
    assert of(REQUEST) == ([False], [1.0])


def test_each_neighbour_is_judged_by_itself_and_in_its_place() -> None:
    conflicts, shared = of(
        "How do I get a refund of 200 euros?",
        REQUEST,
        "How can I get 20 euros refunded?",
    )
    assert conflicts == [True, False, False]
    assert shared[0] == 0.0
    assert 0.0 < shared[2] <= shared[1] == 1.0


def test_agreement_is_that_of_the_signatures() -> None:
    other = "How long does a refund of 20 euros take?"
    conflicts, shared = of(other)
    expected = 0.0 if conflicts[0] else agreement(SIGNATURE, signature(other))
    assert shared == pytest.approx([expected])


def test_neighbour_without_a_signature_is_forbidden() -> None:
    assert of(None, REQUEST) == ([True, False], [0.0, 1.0])


@pytest.mark.parametrize("others", [[], [None], [SIGNATURE, None, signature("No.")]])
def test_without_guards_nothing_is_forbidden(others: list[Signature | None]) -> None:
    conflicts, shared = lexical_evidence(None, others)
    assert not conflicts.any()
    assert not shared.any()
    assert len(conflicts) == len(shared) == len(others)


def test_no_neighbours_give_empty_evidence_of_the_right_types() -> None:
    conflicts, shared = lexical_evidence(SIGNATURE, [])
    assert conflicts.shape == shared.shape == (0,)
    assert conflicts.dtype == np.bool_
    assert shared.dtype == np.float32
