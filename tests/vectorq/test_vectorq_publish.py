# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Published numbers of the cache: made from the files in the repository."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measured_block import with_block
from benchmarks.vectorq import publish


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, Any], dict[str, Any]]:
    quality, latency = (
        json.loads((publish.ROOT / path).read_text("utf-8"))
        for path in (publish.QUALITY, publish.LATENCY)
    )
    return quality, latency


@pytest.mark.parametrize("name", publish.DOCUMENTS)
def test_documents_say_what_was_measured(
    name: str, measured: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    document = (publish.ROOT / name).read_text("utf-8")
    text = publish.DOCUMENTS[name](*measured)
    assert with_block(document, publish.WRITER, text) == document


@pytest.mark.parametrize("path", [publish.QUALITY, publish.LATENCY])
def test_files_name_no_path_of_a_machine(path: Path) -> None:
    text = (publish.ROOT / path).read_text("utf-8")
    assert '"/' not in text
    assert "/." not in text


def test_what_is_claimed_has_several_orders_and_a_commit(
    measured: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    quality, latency = measured
    shuffled = [r for r in quality["summary"] if r["order"] == "shuffled"]
    assert min(row["runs"] for row in shuffled) >= 3
    described = [quality["environment"], *latency["environment"].values()]
    assert all("+changes" not in each["commit"] for each in described)
    assert {cell["repeat"] for cell in latency["server"]["cells"]} == {0, 1, 2}


def test_publishing_without_results_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    assert publish.main([]) == 1
    assert "bench_quality" in capsys.readouterr().err
