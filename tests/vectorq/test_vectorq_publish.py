# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Published numbers of the cache: made from the files in the repository."""

from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.measured_block import with_block
from benchmarks.vectorq import publish
from vllm_vectorq.judge_embedding import MINILM_THRESHOLDS


@pytest.fixture(scope="module")
def measured() -> publish.Reports:
    return publish.read_reports(publish.ROOT)


@pytest.mark.parametrize("name", publish.DOCUMENTS)
def test_documents_say_what_was_measured(name: str, measured: publish.Reports) -> None:
    document = (publish.ROOT / name).read_text("utf-8")
    text = publish.DOCUMENTS[name](measured)
    assert with_block(document, publish.WRITER, text) == document


@pytest.mark.parametrize("name", publish.NAMES)
def test_files_name_no_path_of_a_machine(name: str) -> None:
    text = (publish.ROOT / publish.RESULTS / f"{name}.json").read_text("utf-8")
    assert '"/' not in text
    assert "/." not in text


def test_what_is_claimed_has_several_orders_and_a_commit(
    measured: publish.Reports,
) -> None:
    quality, latency = measured["quality"], measured["latency"]
    shuffled = [r for r in quality["summary"] if r["order"] == "shuffled"]
    assert min(row["runs"] for row in shuffled) >= 3
    described = [
        *(measured[name]["environment"] for name in publish.NAMES if name != "latency"),
        *latency["environment"].values(),
    ]
    assert all("+changes" not in each["commit"] for each in described)
    assert {cell["repeat"] for cell in latency["server"]["cells"]} == {0, 1, 2}


def test_thresholds_of_the_judge_are_the_measured_ones(
    measured: publish.Reports,
) -> None:
    assert measured["judge"]["thresholds"] == asdict(MINILM_THRESHOLDS)


def test_publishing_without_results_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    assert publish.main([]) == 1
    assert "finish that benchmark" in capsys.readouterr().err
