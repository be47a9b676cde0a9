# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Comparisons of arms, and the evaluation command on a real model."""

import json
from pathlib import Path

import pytest

from tests.hashattn.paged_cases import random_level_maps, random_maps
from vllm_hashattn.budget import Budget
from vllm_hashattn.cli import _parser, main
from vllm_hashattn.cli_eval import _arms
from vllm_hashattn.evaluation_arms import dense_arm, window_arm
from vllm_hashattn.hash_file import HashFile, model_fingerprint
from vllm_hashattn.quality import measure_texts
from vllm_hashattn.scorer_linear import LinearScorer


def test_arms_are_compared_on_texts_and_tasks(
    model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = {
        layer: random_level_maps(9, 3, 64, 128, seed=layer) for layer in range(30)
    }
    hash_file = tmp_path / "hash.safetensors"
    HashFile(layers, model_fingerprint(Path(model_path)), {}).save(hash_file)
    text = tmp_path / "text.txt"
    text.write_text(Path(json.__file__).read_text("utf-8"), "utf-8")
    status = main(
        [
            *("eval", "--model", model_path, "--hash", str(hash_file)),
            *("--data", str(text), "--tokens", "1500", "--predicted", "33"),
            *("--documents", "1", "--contexts", "1", "--density", "0.1", "--json"),
        ]
    )
    assert status == 0
    rows = {row["arm"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {"dense", "levels", "oracle", "window"}
    assert rows["dense"]["bytes_share"] == 1.0
    assert rows["window"]["bytes_share"] < rows["levels"]["bytes_share"] < 0.5
    assert len({row["perplexity"] for row in rows.values()}) == 4
    assert rows["dense"]["tasks"]["passkey"] == 1.0
    assert all(1.0 < row["perplexity"] < 1000.0 for row in rows.values())
    dense = rows.pop("dense")
    assert (dense["divergence"], dense["same_top"]) == (0.0, 1.0)
    assert dense["perplexity_change_interval"] == [0.0, 0.0]
    assert 0.0 < rows["oracle"]["divergence"] < rows["window"]["divergence"]
    for row in rows.values():
        low, high = row["perplexity_change_interval"]
        assert low < row["perplexity_change"] < high
        ratio = row["perplexity"] / dense["perplexity"]
        assert row["perplexity_change"] == pytest.approx(ratio - 1, abs=1e-4)


def test_a_comparison_begins_with_an_arm_that_reads_everything() -> None:
    sparse = window_arm(Budget(0.1))
    for arms in ([], [sparse, dense_arm()]):
        with pytest.raises(ValueError, match="begin with dense_arm"):
            list(measure_texts(None, [], 32, arms, print))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give at least 3"):
        list(measure_texts(None, [], 2, [dense_arm()], print))  # type: ignore[arg-type]


def test_files_of_signs_keep_their_arm(model_path: str, tmp_path: Path) -> None:
    hash_file = tmp_path / "hash.safetensors"
    layers = {0: random_maps(9, 3, 64, 128)}
    HashFile(layers, model_fingerprint(Path(model_path)), {}).save(hash_file)
    options = _parser().parse_args(
        ["eval", "--model", model_path, "--hash", str(hash_file), "--data", "x"]
    )
    arms = _arms(options)
    assert [arm.name for arm in arms] == ["dense", "linear", "oracle", "window"]
    assert isinstance(arms[1].scorer(0), LinearScorer)


def test_another_models_hash_is_refused(
    model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hash_file = tmp_path / "hash.safetensors"
    HashFile({0: random_maps(9, 3, 64, 128)}, {"model_type": "x"}, {}).save(hash_file)
    arguments = ["eval", "--model", model_path, "--hash", str(hash_file), "--data", "x"]
    assert main(arguments) == 1
    assert "trained for another model" in capsys.readouterr().err
