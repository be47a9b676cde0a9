# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Small mixture-of-experts models with random weights, in the forms of real ones.

Weights are spread wide: with the usual spread all tokens have the same answer, and the
router sends them all to the same experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_COMMON = {
    "vocab_size": 512,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
    "eos_token_id": 7,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "dtype": "float32",
}
# At least three layers, so that not all of them fit; odd numbers of layers, numbers of
# experts that no number of micro-batches divides, one to eight experts of a token.
SHAPES: dict[str, dict[str, Any]] = {
    "mixtral": {"layers": 3, "experts": 8, "top_k": 2, "intermediate": 192},
    "mixtral-top1": {"layers": 3, "experts": 5, "top_k": 1, "intermediate": 96},
    "mixtral-deep": {"layers": 7, "experts": 4, "top_k": 2, "intermediate": 64},
    "qwen3_moe": {"layers": 3, "experts": 6, "top_k": 2, "intermediate": 96},
    "qwen3_moe-many": {"layers": 4, "experts": 32, "top_k": 8, "intermediate": 32},
    "qwen3_moe-top1": {"layers": 5, "experts": 7, "top_k": 1, "intermediate": 64},
    "olmoe": {"layers": 3, "experts": 16, "top_k": 8, "intermediate": 96},
    "olmoe-few": {"layers": 4, "experts": 3, "top_k": 2, "intermediate": 64},
    "olmoe-top1": {"layers": 5, "experts": 9, "top_k": 1, "intermediate": 32},
}


def make_model(name: str, folder: Path, tokenizer: str | None = None) -> Path:
    """Write a model; return its folder.

    Args:
        name: One of ``SHAPES``.
        folder: To put it in.
        tokenizer: Folder of a model whose tokenizer it gets, with as many tokens.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    path = folder / name
    changes = {}
    if tokenizer is not None:
        found = AutoTokenizer.from_pretrained(tokenizer)
        found.save_pretrained(path)
        changes["vocab_size"] = len(found)
    AutoModelForCausalLM.from_config(_config(name, changes)).save_pretrained(path)
    return path


def _config(name: str, changes: dict[str, Any]) -> Any:  # noqa: ANN401
    from transformers import MixtralConfig, OlmoeConfig, Qwen3MoeConfig

    shape = SHAPES[name]
    kind = name.partition("-")[0]
    common = {
        **_COMMON,
        **changes,
        "num_hidden_layers": shape["layers"],
        "num_experts_per_tok": shape["top_k"],
        "intermediate_size": shape["intermediate"],
    }
    if kind == "mixtral":
        return MixtralConfig(num_local_experts=shape["experts"], **common)
    if kind == "olmoe":
        return OlmoeConfig(num_experts=shape["experts"], **common)
    return Qwen3MoeConfig(
        num_experts=shape["experts"],
        moe_intermediate_size=shape["intermediate"],
        head_dim=32,
        norm_topk_prob=True,
        **common,
    )
