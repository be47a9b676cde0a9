# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A real server that is killed and started again."""

import time
from pathlib import Path

import pytest

from tests.vectorq.vectorq_server import serving

pytestmark = pytest.mark.vllm

QUESTION = "How do I reset my password?"
REPHRASED = "how can I reset my password"
# What was stored longer ago survives, as documented.
WRITTEN_S = 1.0


def test_a_killed_server_leaves_its_answers_to_the_next(
    model_path: str, embedding_model_path: str, tmp_path: Path, topic: str
) -> None:
    with serving(model_path, embedding_model_path, tmp_path) as first:
        answer = first.ask(QUESTION, topic).json()["choices"]
        first.wait_for_rephrasing(REPHRASED, topic)
        time.sleep(2 * WRITTEN_S)
        first.server.kill()
    with serving(model_path, embedding_model_path, tmp_path) as second:
        again = second.ask(QUESTION, topic)
        assert again.headers["x-vectorq-stage"] == "exact"
        assert again.json()["choices"] == answer
        assert second.result(REPHRASED, topic) == "semantic"
        assert second.finished() == 0
