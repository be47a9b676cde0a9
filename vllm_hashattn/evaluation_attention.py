# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A context that is read once, and the attention of many decode steps after it.

Keys and values of the context lie there once for all branches and arms; those of
branches have room of their own (:mod:`~vllm_hashattn.evaluation_branches`), and one
softmax goes over both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .scorer import by_group

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "hashattn_evaluation"


@contextmanager
def attention_by(
    model: PreTrainedModel,
    attend: Callable[..., Any],
) -> Iterator[None]:
    """Let a model attend by a function of its own; put the old one back afterwards."""
    from transformers import AttentionInterface

    before: str = model.config._attn_implementation
    register: Callable[[str, Any], None] = AttentionInterface.register
    register(_NAME, attend)
    try:
        model.set_attn_implementation(_NAME)
        with torch.inference_mode():
            yield
    finally:
        model.set_attn_implementation(before)


@dataclass(frozen=True, slots=True)
class Context:
    """A context that was read by dense attention, for all arms.

    Attributes:
        keys: Of each layer, after the rotary embedding, [kv heads, tokens, head_dim].
        values: Likewise.
        next_logits: For the token after the context, [vocabulary].
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    next_logits: Tensor

    @property
    def tokens(self) -> int:
        """Length of the context."""
        return self.keys[0].shape[1]


def read_context(model: PreTrainedModel, token_ids: Tensor) -> Context:
    """Read a context densely, once.

    Args:
        model: A decoder without sliding windows.
        token_ids: int64 [tokens], at least one.

    Raises:
        ValueError: The context is empty, or a layer has a sliding window.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not len(token_ids):
        raise ValueError(
            "hashattn: a context of 0 tokens was given; give at least one."
        )
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def keep(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *rest: Any,  # noqa: ANN401
        **named: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        if named.get("sliding_window") is not None:
            raise ValueError(
                f"hashattn: layer {module.layer_idx} of the model has a sliding "
                "window; take a model that attends to the whole context."
            )
        keys.append(key[0].contiguous())
        values.append(value[0].contiguous())
        return sdpa_attention_forward(module, query, key, value, *rest, **named)

    with attention_by(model, keep):
        logits = model(token_ids.unsqueeze(0), use_cache=False, logits_to_keep=1).logits
    return Context(tuple(keys), tuple(values), logits[0, -1])


def attend_rows(
    query: Tensor,
    context: tuple[Tensor, Tensor],
    branches: tuple[Tensor, Tensor],
    own: Tensor,
    bias: Tensor,
    scale: float,
) -> Tensor:
    """Attention of many tokens over the context and their own branch.

    Args:
        query: [n, query heads, head_dim].
        context: Keys and values, [kv heads, context tokens, head_dim].
        branches: Keys and values of all branches, [kv heads, held, head_dim].
        own: Which of those are of the row's branch, int64 [n, branch tokens].
        bias: Added to the dot products, 0 for a token that is read, more for one that
            stands for others too, minus infinity for one that is not read; float32 [n,
            kv heads or 1, context + branch tokens].
        scale: Of the dot products.

    Returns:
        In the query's dtype, [n, query heads, head_dim].
    """
    rows, heads, _ = query.shape
    wide = query.float() * scale
    mine = own.unsqueeze(1).expand(-1, heads, -1)
    of_branches = by_group(wide, branches[0].float().mT).gather(2, mine)
    dots = torch.cat([by_group(wide, context[0].float().mT), of_branches], dim=2)
    kv_heads, tokens, _ = context[0].shape
    by_head = torch.unflatten(dots, 1, (kv_heads, -1)).add_(bias.unsqueeze(2))
    weights = torch.softmax(by_head, dim=-1).flatten(1, 2)
    placed = weights.new_zeros(rows, heads, branches[0].shape[1])
    placed.scatter_(2, mine, weights[:, :, tokens:])
    result = by_group(weights[:, :, :tokens], context[1].float())
    return (result + by_group(placed, branches[1].float())).to(query.dtype)
