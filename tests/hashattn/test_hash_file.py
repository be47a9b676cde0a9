# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Hash files: what comes back, and which model they refuse."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.hashattn.paged_cases import random_level_maps
from vllm_hashattn.hash_file import (
    LEVELS_FORMAT,
    SIGNS_FORMAT,
    HashFile,
    HashFileError,
    load,
    model_fingerprint,
)
from vllm_hashattn.scorer_levels import LevelHash
from vllm_hashattn.scorer_linear import LinearHash


@pytest.fixture
def trained() -> HashFile:
    layers = {
        index: LinearHash(
            torch.randn(2, 32, 16),
            torch.randn(2, 16),
            torch.randn(6, 32, 16),
            torch.randn(6, 16),
        )
        for index in (0, 1, 11)
    }
    return HashFile(layers, {"hidden_size": 64, "keys": "abc"}, {"steps": 3})


def test_everything_comes_back(trained: HashFile, tmp_path: Path) -> None:
    path = tmp_path / "hash.safetensors"
    trained.save(path)
    found = load(path)
    assert (found.model, found.training) == (trained.model, trained.training)
    assert list(found.layers) == [0, 1, 11]
    for index, maps in trained.layers.items():
        for part in ("key_map", "key_bias", "query_map", "query_bias"):
            assert torch.equal(getattr(found.layers[index], part), getattr(maps, part))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_other_files_are_refused_with_the_reason(
    trained: HashFile, tmp_path: Path
) -> None:
    with pytest.raises(HashFileError, match="cannot be read"):
        load(tmp_path / "missing.safetensors")
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"not a safetensors file at all")
    with pytest.raises(HashFileError, match="cannot be read"):
        load(garbage)
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    with pytest.raises(HashFileError, match="has the format None"):
        load(other)
    whole = tmp_path / "hash.safetensors"
    trained.save(whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-10])
    with pytest.raises(HashFileError, match="cannot be read"):
        load(cut)


def test_another_model_is_refused_and_the_difference_named(trained: HashFile) -> None:
    trained.check_model({"hidden_size": 64, "keys": "abc"})
    with pytest.raises(HashFileError, match="hidden_size 128 instead of 64"):
        trained.check_model({"hidden_size": 128, "keys": "abc"})
    with pytest.raises(HashFileError, match="keys None instead of 'abc'"):
        trained.check_model({"hidden_size": 64})
    unknown = replace(trained, model={"hidden_size": 64})
    with pytest.raises(HashFileError, match="keys 'abc' instead of None"):
        unknown.check_model({"hidden_size": 64, "keys": "abc"})


def test_fingerprint_knows_the_model_and_its_weights(
    model_path: str, tmp_path: Path
) -> None:
    original = model_fingerprint(Path(model_path))
    assert original["num_key_value_heads"] == 3
    assert len(original["keys"]) == 64
    copy = tmp_path / "model"
    shutil.copytree(model_path, copy)
    assert model_fingerprint(copy) == original
    (weights,) = copy.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    name = next(n for n in header if n.endswith("layers.0.self_attn.k_proj.weight"))
    data[start + header[name]["data_offsets"][0]] ^= 1
    weights.write_bytes(data)
    assert model_fingerprint(copy)["keys"] != original["keys"]


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HashFileError, match="no folder of a model"):
        model_fingerprint(tmp_path)


def test_levels_come_back_and_kinds_do_not_mix(
    trained: HashFile, tmp_path: Path
) -> None:
    path = tmp_path / "levels.safetensors"
    levels = {layer: random_level_maps(6, 2, 64, 128, seed=layer) for layer in (0, 5)}
    HashFile(levels, {"hidden_size": 64}, {"steps": 3}).save(path)
    found = load(path)
    assert found.format == LEVELS_FORMAT and trained.format == SIGNS_FORMAT
    for layer, maps in levels.items():
        again = found.layers[layer]
        assert isinstance(again, LevelHash)
        assert torch.equal(again.query_map, maps.query_map)
        assert torch.equal(again.share, maps.share)
    mixed = HashFile({**trained.layers, 9: levels[0]}, {}, {})
    with pytest.raises(ValueError, match="holds one kind of code in all layers"):
        mixed.save(path)
