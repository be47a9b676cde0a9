# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Sizes of a model, read from what its config.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class ConfigNames(NamedTuple):
    """How an architecture's config.json names what others name differently.

    Attributes:
        experts: Experts of a layer.
        expert_hidden: Width of an expert.
    """

    experts: str
    expert_hidden: str


# By ``model_type``.
SUPPORTED = {
    "mixtral": ConfigNames("num_local_experts", "intermediate_size"),
    "qwen3_moe": ConfigNames("num_experts", "moe_intermediate_size"),
    "olmoe": ConfigNames("num_experts", "intermediate_size"),
}
_DTYPE_BYTES = {"bfloat16": 2.0, "float16": 2.0, "float32": 4.0}


def sizes(config: Mapping[str, Any], weight_bytes: float | None) -> dict[str, Any]:
    """Return the attributes of a :class:`moe_offload.model_shape.ModelShape`.

    Args:
        config: What config.json of the model holds.
        weight_bytes: Of one weight of an expert; None: read from the configuration.

    Raises:
        ValueError: The architecture or its form is not supported, or something is
            missing.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in SUPPORTED:
        raise ValueError(
            f"moe_offload: asked for a model of type {kind!r}, whose layout is not "
            f"known. Choose a model of one of the types {sorted(SUPPORTED)}."
        )
    _refuse_dense_layers(config)
    names = SUPPORTED[kind]
    heads = _size(config, "num_attention_heads")
    hidden = _size(config, "hidden_size")
    dense, expert = _weight_bytes(config, weight_bytes)
    return {
        "layers": _size(config, "num_hidden_layers"),
        "hidden": hidden,
        "expert_hidden": _size(config, names.expert_hidden),
        "experts": _size(config, names.experts),
        "experts_per_token": _size(config, "num_experts_per_tok"),
        "heads": heads,
        "kv_heads": _size(config, "num_key_value_heads", heads),
        "head_dim": _size(config, "head_dim", max(1, hidden // heads)),
        "vocab": _size(config, "vocab_size"),
        "weight_bytes": expert,
        "dense_weight_bytes": dense,
        # That of a quantised model is not quantised unless a server is told so.
        "cache_value_bytes": _dtype_bytes(config),
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def _size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"moe_offload: asked for the sizes of a {config['model_type']} model, but "
            f"its {name} is {value!r}. Correct its config.json: a positive integer."
        )
    return value


def _dtype_bytes(config: Mapping[str, Any]) -> float:
    name = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if name not in _DTYPE_BYTES:
        raise ValueError(
            f"moe_offload: asked for a model with weights of type {name!r}. Types that "
            f"are known are {sorted(_DTYPE_BYTES)}."
        )
    return _DTYPE_BYTES[name]


def _weight_bytes(
    config: Mapping[str, Any], asked: float | None
) -> tuple[float, float]:
    """Bytes of a weight outside of experts and within."""
    plain = _dtype_bytes(config)
    quantised = config.get("quantization_config") or {}
    method = quantised.get("quant_method")
    if asked is not None:
        return (1.0 if method == "fp8" else plain), asked
    if method == "fp8":
        return 1.0, 1.0
    if method is not None:
        raise ValueError(
            f"moe_offload: asked for a model that is quantised with {method!r}, whose "
            "bytes per weight are not known. Give weight_bytes, those of a weight of "
            "an expert with its scales, such as 0.5625."
        )
    return plain, plain


def _refuse_dense_layers(config: Mapping[str, Any]) -> None:
    step = config.get("decoder_sparse_step", 1)
    if step != 1 or config.get("mlp_only_layers"):
        raise ValueError(
            f"moe_offload: asked for a {config['model_type']} model in which some "
            f"layers have no experts (decoder_sparse_step {step!r}, mlp_only_layers "
            f"{config.get('mlp_only_layers')!r}). Choose one with experts in "
            "every layer."
        )
