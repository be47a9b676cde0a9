# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A model of vLLM in the pieces that the schedule puts in order.

A decoder layer is cut before and after its attention: what comes before makes queries,
keys and values, what comes after is the output projection, the router and the experts.
The pieces call vLLM's own modules. Models with these modules have an adapter here,
others are refused at start.

Source: MoE-Lightning (2411.11217), section 4.1 (PreAttn, CPUAttn, PostAttn).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Stages:
    """The pieces of a model.

    Args:
        model: Of vLLM, for causal language modelling.

    Attributes:
        layers: Decoder layers.
    """

    # Name of the layer's module with router and experts.
    experts_name = "mlp"

    def __init__(self, model: nn.Module) -> None:
        inner: Any = model.model
        self._inner = inner
        self.layers: list[Any] = list(inner.layers)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return what the first layer reads, [tokens, hidden]."""
        found: Tensor = self._inner.embed_input_ids(input_ids)
        return found

    def before_attention(
        self, layer: int, positions: Tensor, hidden: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries, keys, values and the residual stream.

        Args:
            layer: Number of the layer.
            positions: Of the tokens, int64 [tokens].
            hidden: Output of the layer before, [tokens, hidden].
            residual: To be added to it; ``None`` in the first layer.

        Returns:
            Queries [tokens, heads, head_dim], keys and values [tokens, kv_heads,
            head_dim], and the residual stream [tokens, hidden].
        """
        block = self.layers[layer]
        if residual is None:
            residual, hidden = hidden, block.input_layernorm(hidden)
        else:
            hidden, residual = block.input_layernorm(hidden, residual)
        attention = block.self_attn
        joined, _ = attention.qkv_proj(hidden)
        sizes = [attention.q_size, attention.kv_size, attention.kv_size]
        queries, keys, values = joined.split(sizes, dim=-1)
        queries, keys = self.normalised(attention, queries, keys)
        queries, keys = attention.rotary_emb(positions, queries, keys)
        by_head = (len(hidden), -1, attention.head_dim)
        return queries.view(by_head), keys.view(by_head), values.view(by_head), residual

    def after_attention(
        self, layer: int, attended: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the layer's output and the residual stream.

        Args:
            layer: Number of the layer.
            attended: Result of the attention, [tokens, heads, head_dim].
            residual: As of :meth:`before_attention`.
        """
        block = self.layers[layer]
        hidden, _ = block.self_attn.o_proj(attended.flatten(1))
        hidden, residual = block.post_attention_layernorm(hidden, residual)
        return getattr(block, self.experts_name)(hidden), residual

    def finish(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """Return what logits are computed from."""
        found: Tensor = self._inner.norm(hidden, residual)[0]
        return found

    def normalised(
        self,
        attention: Any,
        queries: Tensor,
        keys: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return queries and keys as the model normalises them: here as they are."""
        return queries, keys


class MixtralStages(Stages):
    """Mixtral, which does not normalise them."""

    experts_name = "block_sparse_moe"


class Qwen3MoeStages(Stages):
    """Qwen3-MoE, which normalises each head."""

    def normalised(
        self,
        attention: Any,
        queries: Tensor,
        keys: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return them with each head normalised."""
        size = attention.head_dim
        by_head = [each.view(len(each), -1, size) for each in (queries, keys)]
        queries, keys = attention.q_norm(by_head[0]), attention.k_norm(by_head[1])
        return queries.flatten(1), keys.flatten(1)


class OlmoeStages(Stages):
    """OLMoE, which normalises all heads as one."""

    def normalised(
        self,
        attention: Any,
        queries: Tensor,
        keys: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return them normalised, over all ranks of tensor parallelism."""
        found: tuple[Tensor, Tensor] = attention._apply_qk_norm(queries, keys)
        return found


# By the name of the architecture in a model's config.json.
STAGES: dict[str, type[Stages]] = {
    "MixtralForCausalLM": MixtralStages,
    "Qwen3MoeForCausalLM": Qwen3MoeStages,
    "OlmoeForCausalLM": OlmoeStages,
}
