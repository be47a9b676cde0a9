# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Takes queries and keys out of a real model while it reads a text.

The model runs in transformers with its own attention; the attention function is the
one place that every decoder passes, and sees queries and keys after the rotary
embedding, as vLLM caches them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .training import Captured

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "hashattn_capture"


def capture(
    model: PreTrainedModel,
    token_ids: Tensor,
    queries: int,
    seed: int,
    offset: int = 0,
) -> dict[int, Captured]:
    """Run one document and return what each layer computed.

    Args:
        model: A decoder; its attention implementation is put back afterwards.
        token_ids: int64 [tokens].
        queries: How many are kept, from the second half of the document, where the
            context is long.
        seed: For choosing them.
        offset: Position of the first token. Attention stays the same, because rotary
            embeddings are relative, but keys are turned as those of later tokens are.

    Returns:
        By index of the layer. Keys and queries in the model's dtype.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    tokens = len(token_ids)
    random = torch.Generator().manual_seed(seed)
    later = torch.randperm(tokens - tokens // 2, generator=random) + tokens // 2
    positions = later[:queries].sort().values
    found: dict[int, Captured] = {}

    def keep(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        *rest: Any,  # noqa: ANN401
        **named: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        # Both [1, heads, tokens, head_dim].
        found[int(module.layer_idx)] = Captured(  # type: ignore[arg-type]
            query[0][:, positions].transpose(0, 1).clone(),
            positions,
            key[0].transpose(0, 1).clone(),
        )
        return sdpa_attention_forward(module, query, key, *rest, **named)

    before: str = model.config._attn_implementation
    register: Callable[[str, Any], None] = AttentionInterface.register
    register(_NAME, keep)
    try:
        model.set_attn_implementation(_NAME)
        # Not inference mode: what is kept is trained on.
        with torch.no_grad():
            places = torch.arange(offset, offset + tokens).unsqueeze(0)
            model(
                token_ids.unsqueeze(0),
                position_ids=places,
                use_cache=False,
                logits_to_keep=1,
            )
    finally:
        model.set_attn_implementation(before)
    return found


def offsets(documents: int, tokens: int, longest: int) -> list[int]:
    """Spread documents evenly over the positions of a model.

    Args:
        documents: How many.
        tokens: Of each.
        longest: Positions that will be served.
    """
    room = max(longest - tokens, 0)
    return [number * room // max(documents - 1, 1) for number in range(documents)]
