# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Published numbers of hash attention: made from the files in the repository."""

from pathlib import Path

import pytest

from benchmarks.hashattn import publish
from benchmarks.measured_block import with_block


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


def test_what_is_claimed_was_repeated_at_a_commit(measured: publish.Reports) -> None:
    assert all(
        "+changes" not in report["environment"]["commit"]
        for report in measured.values()
    )
    for row in measured["op"]["rows"]:
        assert all(len(times) == 3 for times in row["ms"].values())
    for what in ("decode", "prefill"):
        for arms in publish.times(publish.speeds(measured), what).values():
            assert {len(times) for times in arms.values()} == {3}


def test_sparse_attention_read_its_share(measured: publish.Reports) -> None:
    shares = [
        row["read_share"]
        for row in publish.speeds(measured)
        if row["arm"] == "hashattn" and row["what"] == "decode"
    ]
    assert shares and all(0.06 < share < 0.07 for share in shares)


def test_ratios_are_of_pairs() -> None:
    assert publish.ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0]) == "2.00 (2.00 to 3.00)"
    assert publish.ratio([2.0], [1.0]) == "2.00"


def test_publishing_without_results_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    assert publish.main([]) == 1
    assert "finish that benchmark" in capsys.readouterr().err
