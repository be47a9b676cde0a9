# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The evaluation command on a real model."""

import json
from pathlib import Path

import pytest

from tests.hashattn.paged_cases import random_maps
from vllm_hashattn.cli import main
from vllm_hashattn.hash_file import HashFile, model_fingerprint


def test_arms_are_compared_on_texts_and_tasks(
    model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = {layer: random_maps(9, 3, 64, 128, seed=layer) for layer in range(30)}
    hash_file = tmp_path / "hash.safetensors"
    HashFile(layers, model_fingerprint(Path(model_path)), {}).save(hash_file)
    text = tmp_path / "text.txt"
    text.write_text(Path(json.__file__).read_text("utf-8"), "utf-8")
    status = main(
        [
            *("eval", "--model", model_path, "--hash", str(hash_file)),
            *("--data", str(text), "--tokens", "1500", "--predicted", "24"),
            *("--documents", "1", "--contexts", "1", "--density", "0.1", "--json"),
        ]
    )
    assert status == 0
    rows = {row["arm"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {"dense", "linear", "oracle", "window"}
    assert rows["dense"]["bytes_share"] == 1.0
    assert rows["window"]["bytes_share"] < rows["linear"]["bytes_share"] < 0.5
    assert len({row["perplexity"] for row in rows.values()}) == 4
    assert rows["dense"]["tasks"]["passkey"] == 1.0
    assert all(1.0 < row["perplexity"] < 1000.0 for row in rows.values())


def test_another_models_hash_is_refused(
    model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hash_file = tmp_path / "hash.safetensors"
    HashFile({0: random_maps(9, 3, 64, 128)}, {"model_type": "x"}, {}).save(hash_file)
    arguments = ["eval", "--model", model_path, "--hash", str(hash_file), "--data", "x"]
    assert main(arguments) == 1
    assert "trained for another model" in capsys.readouterr().err
