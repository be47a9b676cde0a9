# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Published numbers: made from the rows in the repository, and never by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measured_block import END, begin, with_block
from benchmarks.program_sched import publish


@pytest.fixture
def published(repository_root: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((repository_root / publish.ROWS).read_text())
    return data


def test_the_readme_says_what_the_rows_say(
    repository_root: Path, published: dict[str, Any]
) -> None:
    readme = (repository_root / publish.README).read_text()
    text = publish.measured_block(published)
    assert with_block(readme, publish.WRITER, text) == readme


def test_the_picture_is_in_the_repository(repository_root: Path) -> None:
    picture = repository_root / publish.PICTURE
    assert picture.with_suffix(".png").is_file()
    assert picture.with_suffix(".svg").is_file()


def test_what_is_claimed_has_three_seeds_and_a_commit(
    published: dict[str, Any],
) -> None:
    seeds: dict[tuple[str, float], set[int]] = {}
    for cell in published["cells"]:
        seeds.setdefault((cell["policy"], cell["load"]), set()).add(cell["seed"])
    loads = {load for _, load in seeds}
    claimed = [(policy, load) for policy in ("fcfs", "gittins") for load in loads]
    claimed.append(("srpt", max(loads)))
    assert all(len(seeds[cell]) >= 3 for cell in claimed)
    assert "+changes" not in published["environment"]["commit"]


def test_rows_name_no_path_of_a_machine(repository_root: Path) -> None:
    text = (repository_root / publish.ROWS).read_text()
    assert '"/' not in text
    assert "/." not in text


def test_a_run_with_failed_programs_is_not_published(
    published: dict[str, Any],
) -> None:
    published["cells"][0]["programs"][0]["error"] = "HTTP 500"
    with pytest.raises(ValueError, match="programs failed"):
        publish.measured_block(published)


def test_a_run_without_plain_vllm_is_not_published(published: dict[str, Any]) -> None:
    published["cells"] = [c for c in published["cells"] if c["policy"] != "fcfs"]
    with pytest.raises(ValueError, match="plain vLLM was not measured"):
        publish.measured_block(published)


def test_a_document_without_markers_is_left_alone() -> None:
    for document in ("# Title", begin("me"), f"{begin('me')} {END} {begin('me')}"):
        with pytest.raises(ValueError, match="once"):
            with_block(document, "me", "text")


def test_publishing_nothing_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish.main([str(tmp_path / "missing.json")]) == 1
    assert "finish a run of bench_programs" in capsys.readouterr().err
