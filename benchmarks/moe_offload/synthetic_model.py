# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A mixture-of-experts checkpoint of any size, with random weights.

No package index has a real one of a suitable size. For speed only the shapes matter,
and that the router spreads tokens over all experts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

_SPREAD = 0.05


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A model of Mixtral's kind.

    Attributes:
        layers: All with experts.
        hidden: Width.
        intermediate: Of an expert.
        experts: Of a layer.
        top_k: Experts of a token.
        heads: Of the attention.
        kv_heads: Of the attention.
        vocabulary: Tokens.
    """

    layers: int
    hidden: int
    intermediate: int
    experts: int
    top_k: int = 2
    heads: int = 16
    kv_heads: int = 4
    vocabulary: int = 4096

    @property
    def name(self) -> str:
        """Of its folder."""
        return (
            f"mixtral-{self.layers}x{self.hidden}-{self.experts}x{self.intermediate}"
            f"-top{self.top_k}"
        )

    @property
    def expert_bytes(self) -> int:
        """Of one expert, in bfloat16."""
        return 3 * self.hidden * self.intermediate * 2

    @property
    def total_expert_bytes(self) -> int:
        """Of all of them."""
        return self.layers * self.experts * self.expert_bytes


def ensure_synthetic(shape: Synthetic, folder: Path) -> Path:
    """Return the checkpoint's folder; writes it unless it is there whole.

    Args:
        shape: Of the model.
        folder: To put it in.
    """
    path = folder / shape.name
    done = path / "complete"
    if done.is_file():
        return path
    path.mkdir(parents=True, exist_ok=True)
    pool = _pool(shape)
    names: dict[str, str] = {}
    for number, tensors in enumerate(_shards(shape, pool)):
        file = f"model-{number:05}.safetensors"
        save_file(tensors, path / file, {"format": "pt"})
        names |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": names}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    (path / "config.json").write_text(json.dumps(_config(shape)), "utf-8")
    done.touch()
    return path


def _pool(shape: Synthetic) -> Tensor:
    """Random numbers that all matrices are cut from, at different places."""
    torch.manual_seed(0)
    largest = max(
        shape.hidden * shape.intermediate,
        shape.hidden * shape.hidden,
        shape.vocabulary * shape.hidden,
    )
    return (torch.randn(2 * largest) * _SPREAD).bfloat16()


def _shards(shape: Synthetic, pool: Tensor) -> Iterator[dict[str, Tensor]]:
    places = torch.Generator().manual_seed(1)

    def cut(rows: int, columns: int) -> Tensor:
        room = len(pool) - rows * columns
        start = int(torch.randint(room, (1,), generator=places))
        return pool[start : start + rows * columns].view(rows, columns).clone()

    width, kv_width = shape.hidden, shape.hidden // shape.heads * shape.kv_heads
    ones = torch.ones(width, dtype=torch.bfloat16)
    yield {
        "model.embed_tokens.weight": cut(shape.vocabulary, width),
        "lm_head.weight": cut(shape.vocabulary, width),
        "model.norm.weight": ones,
    }
    for layer in range(shape.layers):
        begin = f"model.layers.{layer}"
        found = {
            f"{begin}.input_layernorm.weight": ones.clone(),
            f"{begin}.post_attention_layernorm.weight": ones.clone(),
            f"{begin}.self_attn.q_proj.weight": cut(width, width),
            f"{begin}.self_attn.k_proj.weight": cut(kv_width, width),
            f"{begin}.self_attn.v_proj.weight": cut(kv_width, width),
            f"{begin}.self_attn.o_proj.weight": cut(width, width),
            f"{begin}.block_sparse_moe.gate.weight": cut(shape.experts, width),
        }
        for expert in range(shape.experts):
            of = f"{begin}.block_sparse_moe.experts.{expert}"
            found[f"{of}.w1.weight"] = cut(shape.intermediate, width)
            found[f"{of}.w3.weight"] = cut(shape.intermediate, width)
            found[f"{of}.w2.weight"] = cut(width, shape.intermediate)
        yield found


def _config(shape: Synthetic) -> dict[str, object]:
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "dtype": "bfloat16",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "num_local_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
