# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Training on a real model's queries and keys, from text to file, and interrupted."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from vllm_hashattn.capture import capture, offsets
from vllm_hashattn.cli import main
from vllm_hashattn.hash_file import load
from vllm_hashattn.training import TrainingSettings
from vllm_hashattn.training_run import TrainingRun
from vllm_hashattn.training_texts import Documents, read_documents

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 320


@pytest.fixture(scope="module")
def model(model_path: str) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)


@pytest.fixture(scope="module")
def token_ids() -> Tensor:
    return torch.randint(1000, (TOKENS,), generator=torch.Generator().manual_seed(0))


def test_captured_queries_and_keys_are_those_of_the_model(
    model: "PreTrainedModel", token_ids: Tensor
) -> None:
    before = model.config._attn_implementation
    found = capture(model, token_ids, queries=40, seed=1)
    assert model.config._attn_implementation == before
    assert sorted(found) == list(range(model.config.num_hidden_layers))
    # The model's own cache holds the keys as they are attended to.
    with torch.inference_mode():
        cache = model(token_ids.unsqueeze(0), use_cache=True).past_key_values
    for layer in (0, 7, 29):
        one = found[layer]
        keys = cache.layers[layer].keys[0].transpose(0, 1)
        torch.testing.assert_close(one.keys, keys, rtol=1e-4, atol=1e-4)
        assert one.queries.shape == (40, 9, 64)
        assert (one.positions >= TOKENS // 2).all()
        assert one.positions.unique().numel() == 40


def test_weights_from_captured_vectors_are_the_models_own(
    model: "PreTrainedModel", token_ids: Tensor
) -> None:
    from vllm_hashattn.attention import attention_weights

    found = capture(model, token_ids, queries=3, seed=1)
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            output = model(token_ids.unsqueeze(0), output_attentions=True)
    finally:
        model.set_attn_implementation("sdpa")
    one = found[5]
    for query, position in zip(one.queries, one.positions.tolist(), strict=True):
        mine = attention_weights(query, one.keys[: position + 1], 64**-0.5)
        theirs = output.attentions[5][0][:, position, : position + 1]
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_later_positions_turn_keys_and_leave_attention(
    model: "PreTrainedModel", token_ids: Tensor
) -> None:
    here, there = (capture(model, token_ids, 5, 1, offset) for offset in (0, 3000))
    for layer in (0, 15):
        one, other = here[layer], there[layer]
        assert not torch.allclose(one.keys, other.keys, rtol=0.1, atol=0.1)
        dots = (
            torch.einsum("qd,td->qt", e.queries[:, 0], e.keys[:, 0])
            for e in (one, other)
        )
        torch.testing.assert_close(*dots, rtol=1e-3, atol=0.05)


def test_documents_are_spread_over_the_positions_that_are_served() -> None:
    assert offsets(3, 1000, 5000) == [0, 2000, 4000]
    assert offsets(3, 1000, 900) == [0, 0, 0]
    assert offsets(1, 10, 100) == [0]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("texts")
    words = ("the river bends near an old mill where seven boats lie " * 40).split()
    for number in range(4):
        text = " ".join(words[(i * (number + 3)) % 97] for i in range(500))
        (folder / f"{number}.txt").write_text(text)
    yield folder


def test_an_interrupted_training_goes_on_and_ends_the_same(
    model: "PreTrainedModel", model_path: str, texts: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    documents = read_documents([texts], tokenizer, TOKENS, 2, 1)
    settings = TrainingSettings(bits=64, steps=2, queries=4)
    folder = Path(model_path)

    lines: list[str] = []
    whole = TrainingRun(folder, tmp_path / "whole.safetensors", settings, lines.append)
    whole.capture(model, documents)
    reports = whole.train(2)
    assert len(reports) == 30
    assert len(lines) == 33
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole.safetensors"]

    def stop(line: str) -> None:
        if line.startswith("layer 4 "):
            raise KeyboardInterrupt

    out = tmp_path / "again.safetensors"
    first = TrainingRun(folder, out, settings, stop)
    first.capture(model, documents)
    with pytest.raises(KeyboardInterrupt):
        first.train(2)
    assert not out.exists()
    with pytest.raises(ValueError, match="training with other settings"):
        TrainingRun(folder, out, TrainingSettings(bits=192), lines.append)
    lines.clear()
    second = TrainingRun(folder, out, settings, lines.append)
    second.capture(model, documents)
    assert lines == []  # no document ran again
    second.train(2)
    one, other = load(tmp_path / "whole.safetensors"), load(out)
    for layer, maps in one.layers.items():
        assert torch.equal(maps.key_map, other.layers[layer].key_map)


def test_held_out_documents_share_no_file_with_the_others(
    model_path: str, texts: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    found: Documents = read_documents([texts], tokenizer, 100, 3, 3)
    assert [len(ids) for ids in (*found.training, *found.held_out)] == [100] * 6
    first = tokenizer((texts / "0.txt").read_text())["input_ids"]
    assert found.training[0].tolist() == first[:100]
    last = tokenizer((texts / "3.txt").read_text())["input_ids"]
    assert found.held_out[0].tolist() == last[:100]
    with pytest.raises(ValueError, match="need more text than 4 files hold"):
        read_documents([texts], tokenizer, 100, 100, 1)
    with pytest.raises(ValueError, match="neither a text file nor a folder"):
        read_documents([texts / "missing"], tokenizer, 100, 1, 1)


def test_command_says_what_is_wrong(
    model_path: str, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "hash.safetensors")
    command = ["train", "--model", model_path, "--data", str(texts), "--out", out]
    assert main([*command, "--tokens", "100000"]) == 1
    assert "Give more files" in capsys.readouterr().err
    assert main(["train", "--model", str(tmp_path), *command[3:]]) == 1
    assert "no folder of a model" in capsys.readouterr().err
    assert main(["inspect", out]) == 1
    assert "cannot be read as a hash file" in capsys.readouterr().err


def test_command_shows_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vllm_hashattn.hash_file import HashFile
    from vllm_hashattn.scorer_linear import LinearHash

    maps = LinearHash(
        torch.zeros(2, 32, 16),
        torch.zeros(2, 16),
        torch.zeros(6, 32, 16),
        torch.zeros(6, 16),
    )
    path = tmp_path / "hash.safetensors"
    HashFile({0: maps}, {"hidden_size": 64}, {"steps": 1}).save(path)
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["layers"], facts["bits_per_kv_head"], facts["head_dim"]) == (
        1,
        16,
        32,
    )
    assert main(["inspect", str(path)]) == 0
    assert "model hidden_size: 64" in capsys.readouterr().out
