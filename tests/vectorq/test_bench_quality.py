# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.vectorq import (
    bench_quality,
    datasets,
    quality_runs,
    quality_streams,
)
from benchmarks.vectorq.quality_policies import ABLATIONS
from benchmarks.vectorq.quality_runs import Run, perform
from benchmarks.vectorq.quality_streams import BANKING, Source
from vllm_vectorq.record import Vector

DIMENSIONS = 32
INTENTS = 6
QUESTIONS = 160
_SUBJECTS = ("card", "loan", "cheque", "branch", "refund", "passcode")
_VERBS = ("order", "cancel", "find", "change", "renew")
_TAILS = ("today", "please", "quickly", "again", "abroad", "online", "myself", "now")


def question(number: int) -> tuple[str, str]:
    subject = _SUBJECTS[number % INTENTS]
    number //= INTENTS
    verb, tail = _VERBS[number % len(_VERBS)], _TAILS[number // len(_VERBS) % 8]
    return f"how do I {verb} my {subject} {tail}", f"about_{subject}"


class WordModel:
    """Sums fixed directions of words; the first four intents share no subject."""

    fingerprint = "words" * 8
    dimensions = DIMENSIONS

    def embed(self, texts: list[str]) -> Vector:
        rows = np.stack([self._row(text) for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def fits(self, text: str) -> bool:
        return True

    def _row(self, text: str) -> Vector:
        row = np.zeros(DIMENSIONS, np.float32)
        for word in text.lower().split():
            digest = hashlib.sha256(word.encode()).digest()[:8]
            direction = np.random.default_rng(int.from_bytes(digest, "big"))
            weight = 3.0 if word in _SUBJECTS else 1.0
            row += weight * direction.standard_normal(DIMENSIONS).astype(np.float32)
        return row


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder with few questions, and a model that only adds words up."""
    root = tmp_path_factory.mktemp("quality")
    folder = root / "data" / "banking77"
    folder.mkdir(parents=True)
    for name, numbers in (("train", range(120)), ("test", range(120, QUESTIONS))):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "category"))
            writer.writerows(question(number) for number in numbers)
    model, pairs = WordModel(), datasets.trap_pairs()[:60]
    plan = replace(bench_quality.QUICK, deltas=(0.01,), further_deltas=(0.01,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUITE_DATA_DIR", str(root / "data"))
        patch.setattr(datasets, "cache_dir", lambda: root / "cache")
        patch.setattr(quality_streams, "model_of", lambda directory: model)
        patch.setattr(datasets, "trap_pairs", lambda: pairs)
        patch.setattr(bench_quality, "QUICK", plan)
        forget_sets()
        yield root
    forget_sets()


def forget_sets() -> None:
    quality_streams.labelled.cache_clear()
    quality_streams.embedded.cache_clear()


@pytest.fixture(scope="module")
def report(world: Path) -> dict[str, Any]:
    """The report of the whole benchmark."""
    status, found = bench(world)
    assert status == 0
    return found


def lines_set(folder: Path) -> None:
    """Some of the questions as a folder of lines."""
    for split, numbers in (("train", range(90)), ("valid", [90]), ("test", [91])):
        (folder / split).mkdir(parents=True)
        rows = [question(number) for number in numbers]
        (folder / split / "seq.in").write_text("\n".join(t for t, _ in rows) + "\n")
        (folder / split / "label").write_text("\n".join(c for _, c in rows) + "\n")


def bench(world: Path) -> tuple[int, dict[str, Any]]:
    further = world / "lines"
    if not further.exists():
        lines_set(further)
    out = world / "quality.json"
    status = bench_quality.main(
        [
            *("--quick", "--processes", "1", "--embedding-model", "none"),
            *("--out", str(out), "--pictures", str(world / "pictures")),
            *("--log", str(world / "runs.jsonl"), "--set", f"lines={further}"),
        ]
    )
    return status, json.loads(out.read_text())


def test_every_policy_is_compared_on_every_set(report: dict[str, Any]) -> None:
    sets = {BANKING, "lines"}
    assert {row["source"] for row in report["static"]} == sets
    for name in sets:
        compared = {r["policy"] for r in report["summary"] if r["source"] == name}
        assert compared == {"suite", "vcache", "vcache_paper", "vectorq_v1"}
    assert {(r["order"], r["source"]) for r in report["hindsight"]} == set(
        product(("0", "drift"), sets)
    )
    assert any(not row["guards"] for row in report["summary"])


def test_parts_labels_answers_and_traps_are_studied(report: dict[str, Any]) -> None:
    taken_away = {row["policy"] for row in report["ablations"]}
    assert taken_away == {f"suite {name}" for name in ABLATIONS}
    assert all(row["judge_noise"] > 0 for row in report["judge_noise"])
    assert [row["alike"] for row in report["answers"]] == [False, True]
    for row in report["answers"]:
        assert row["verdicts"]["verdicts equality same"] > 0
        assert row["faults"] == {}
    assert {row["policy"] for row in report["traps"]} >= {"suite", "static 0.90"}
    assert all(row["traps"] > 0 for row in report["traps"])


def test_the_report_is_small_and_has_pictures(
    world: Path, report: dict[str, Any]
) -> None:
    assert (world / "quality.json").stat().st_size < 100_000
    pictures = {path.name for path in (world / "pictures").glob("*.svg")}
    assert pictures == {"frontier.svg", "error_over_time.svg", "calibration.svg"}


def test_a_second_invocation_does_nothing_again(
    world: Path, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        quality_runs,
        "perform",
        lambda *arguments: pytest.fail("a finished run was done again"),
    )
    status, second = bench(world)
    assert status == 0
    assert second["runs"] == report["runs"]


def test_without_pruning_every_miss_becomes_an_entry(world: Path) -> None:
    kept, pruned = (
        perform(Run("ablations", Source(BANKING), "0", policy, 0.05), "none", None)
        for policy in ("suite no_pruning", "suite")
    )
    assert kept["entries"] == kept["requests"] - round(
        kept["hit_rate"] * kept["requests"]
    )
    assert pruned["entries"] <= kept["entries"]


def test_equal_trap_texts_are_of_one_class() -> None:
    traps = quality_streams.trap_texts()
    classes: dict[str, set[int]] = {}
    for text, class_id in zip(traps.texts, traps.classes.tolist(), strict=True):
        classes.setdefault(text, set()).add(class_id)
    assert all(len(found) == 1 for found in classes.values())
    assert len(set(traps.classes.tolist())) > len(traps.texts) // 4


def test_a_set_that_does_not_exist_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        bench_quality.main(["--set", f"name={tmp_path / 'nothing'}"])
    assert ended.value.code == 2
    assert "--set" in capsys.readouterr().err


def test_the_benchmark_says_where_missing_data_belongs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUITE_DATA_DIR", str(tmp_path))
    forget_sets()
    assert bench_quality.main(["--quick", "--embedding-model", "none"]) == 1
    assert "SUITE_DATA_DIR" in capsys.readouterr().err
