# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Sizes of models, as they are published, and what cannot be one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_offload.model_shape import ModelShape
from tests.moe_offload.planner_cases import MIXTRAL_8X7B, QWEN3_30B_A3B, TINY

MIXTRAL_CONFIG: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
QWEN3_CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "dtype": "bfloat16",
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "vocab_size": 151936,
}
OLMOE_CONFIG: dict[str, Any] = {
    "model_type": "olmoe",
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "torch_dtype": "bfloat16",
    "vocab_size": 50304,
}


# Weights of the published checkpoints, and how many of them are in norms: two of each
# layer and the last one, and those of queries and keys.
@pytest.mark.parametrize(
    ("config", "weights", "norms"),
    [
        (MIXTRAL_CONFIG, 46_702_792_704, 65 * 4096),
        (QWEN3_CONFIG, 30_532_122_624, 97 * 2048 + 48 * 2 * 128),
        (OLMOE_CONFIG, 6_919_161_856, 33 * 2048 + 16 * 2 * 2048),
    ],
)
def test_published_models_have_their_number_of_weights(
    config: dict[str, Any], weights: int, norms: int
) -> None:
    assert ModelShape.from_config(config).total_bytes == 2 * (weights - norms)


def test_configurations_of_known_models() -> None:
    assert ModelShape.from_config(MIXTRAL_CONFIG) == MIXTRAL_8X7B
    assert ModelShape.from_config(QWEN3_CONFIG) == QWEN3_30B_A3B
    olmoe = ModelShape.from_config(OLMOE_CONFIG)
    assert (olmoe.experts, olmoe.expert_hidden, olmoe.head_dim) == (64, 1024, 128)


def test_sizes_of_mixtral() -> None:
    assert MIXTRAL_8X7B.expert_bytes == 3 * 4096 * 14336 * 2
    assert MIXTRAL_8X7B.layer_expert_bytes == 8 * MIXTRAL_8X7B.expert_bytes
    assert MIXTRAL_8X7B.cache_bytes_per_token == 4096
    assert MIXTRAL_8X7B.dense_layer_bytes == 2 * 4096 * (2 * 4096 + 2 * 1024 + 8)
    assert MIXTRAL_8X7B.embedding_bytes == 2 * 2 * 32000 * 4096


def test_bytes_of_weights_and_cache_count_where_they_belong() -> None:
    four_bit = replace(MIXTRAL_8X7B, weight_bytes=0.5625)
    assert four_bit.expert_bytes == MIXTRAL_8X7B.expert_bytes * 0.5625 / 2
    assert four_bit.dense_bytes == MIXTRAL_8X7B.dense_bytes
    small_cache = replace(MIXTRAL_8X7B, cache_value_bytes=1.0)
    assert small_cache.cache_bytes_per_token == 2048
    assert small_cache.total_bytes == MIXTRAL_8X7B.total_bytes
    tied = replace(MIXTRAL_8X7B, tied_embeddings=True)
    assert tied.embedding_bytes == MIXTRAL_8X7B.embedding_bytes / 2
    shared = replace(TINY, shared_expert_hidden=10)
    assert shared.dense_layer_bytes - TINY.dense_layer_bytes == 3 * 64 * 10 * 2


@pytest.mark.parametrize(
    ("changes", "attribute", "value"),
    [
        ({"head_dim": None}, "head_dim", 128),
        ({"head_dim": 64}, "head_dim", 64),
        ({"num_key_value_heads": None}, "kv_heads", 32),
        ({"tie_word_embeddings": True}, "tied_embeddings", True),
        ({"torch_dtype": "float16"}, "weight_bytes", 2.0),
        ({"torch_dtype": "float32"}, "weight_bytes", 4.0),
        ({"torch_dtype": "float32"}, "cache_value_bytes", 4.0),
        ({"quantization_config": {"quant_method": "fp8"}}, "weight_bytes", 1.0),
        ({"quantization_config": {"quant_method": "fp8"}}, "dense_weight_bytes", 1.0),
        ({"quantization_config": {"quant_method": "fp8"}}, "cache_value_bytes", 2.0),
    ],
)
def test_what_a_configuration_may_say(
    changes: dict[str, Any], attribute: str, value: object
) -> None:
    shape = ModelShape.from_config({**MIXTRAL_CONFIG, **changes})
    assert getattr(shape, attribute) == value


def test_other_quantisation_needs_the_bytes() -> None:
    config = {**MIXTRAL_CONFIG, "quantization_config": {"quant_method": "awq"}}
    with pytest.raises(ValueError, match=r"'awq'.*Give weight_bytes"):
        ModelShape.from_config(config)
    shape = ModelShape.from_config(config, weight_bytes=0.5625)
    assert (shape.weight_bytes, shape.dense_weight_bytes) == (0.5625, 2.0)
    config = {**MIXTRAL_CONFIG, "quantization_config": {"quant_method": "fp8"}}
    shape = ModelShape.from_config(config, weight_bytes=1.125)
    assert (shape.weight_bytes, shape.dense_weight_bytes) == (1.125, 1.0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "llama"}, r"'llama'.*\['mixtral', 'olmoe', 'qwen3_moe'\]"),
        ({"model_type": None}, "type None"),
        ({"model_type": ["mixtral"]}, "is not known"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_local_experts": "8"}, "num_local_experts is '8'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"torch_dtype": "int8"}, "'int8'"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step 2"),
        ({"mlp_only_layers": [0]}, r"mlp_only_layers \[0\]"),
        ({"num_key_value_heads": 5}, "kv_heads=5.*divisor of heads=32"),
    ],
)
def test_what_cannot_be_read_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^moe_offload: .*{sentence}"):
        ModelShape.from_config({**MIXTRAL_CONFIG, **changes})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layers", 0),
        ("hidden", -1),
        ("experts", 2.0),
        ("vocab", True),
        ("weight_bytes", 0.0),
        ("weight_bytes", float("nan")),
        ("cache_value_bytes", float("inf")),
        ("cache_value_bytes", "2"),
        ("shared_expert_hidden", -1),
        ("experts_per_token", 9),
        ("kv_heads", 3),
    ],
)
def test_impossible_shapes_are_refused(name: str, value: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=f"^moe_offload: .*{name}="):
        replace(MIXTRAL_8X7B, **{name: value})


def test_a_folder_with_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL_CONFIG))
    assert ModelShape.from_folder(tmp_path) == MIXTRAL_8X7B
    assert ModelShape.from_folder(str(tmp_path), 1.0).weight_bytes == 1.0


@pytest.mark.parametrize("content", [None, "no JSON", "[]"])
def test_a_folder_without_a_model(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"^moe_offload: .*Give a folder with a model"):
        ModelShape.from_folder(tmp_path)
