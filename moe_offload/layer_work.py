# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What each operation of the schedule does to a model of vLLM in one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .host_attention import decode, prefill, store
from .model_experts import ModelExperts
from .operations import Kind, Operation
from .stages import Stages
from .step_batch import MicroBatch


@dataclass(slots=True)
class _State:
    """Of a micro-batch between two operations.

    Attributes:
        batch: Its requests.
        positions: Of its tokens.
        hidden: What the next layer reads.
        residual: Residual stream; None before the first layer.
        queries: Of the layer, then what came out of the attention.
        keys: Of the layer.
        values: Of the layer.
    """

    batch: MicroBatch
    positions: Tensor
    hidden: Tensor
    residual: Tensor | None = None
    queries: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None


class LayerWork:
    """A step of a model, cut into operations.

    Args:
        stages: Pieces of the model.
        experts: Of the model.
        caches: Of each layer, [blocks, kv_heads, block_tokens, 2 * head_dim].
        scale: Of the attention.
    """

    def __init__(
        self,
        stages: Stages,
        experts: ModelExperts,
        caches: Sequence[Tensor],
        scale: float,
    ) -> None:
        self._stages = stages
        self._experts = experts
        self._caches = caches
        self._scale = scale
        self._states: list[_State] = []

    def begin(
        self, input_ids: Tensor, positions: Tensor, batches: Sequence[MicroBatch]
    ) -> None:
        """Take the tokens of a step.

        Args:
            input_ids: Of all tokens, [tokens].
            positions: Of all tokens, int64 [tokens].
            batches: The micro-batches.
        """
        self._states = [
            _State(
                batch, positions[batch.rows], self._stages.embed(input_ids[batch.rows])
            )
            for batch in batches
        ]

    def handlers(self) -> Mapping[Kind, Callable[[Operation], None]]:
        """Return what does each kind of operation."""
        return {
            Kind.PRE_ATTENTION: self.before_attention,
            Kind.HOST_ATTENTION: self.attention,
            Kind.LOAD_PAGES: self.load_pages,
            Kind.POST_ATTENTION: self.after_attention,
        }

    def before_attention(self, operation: Operation) -> None:
        """Make queries, keys and values."""
        state = self._states[operation.micro_batch]
        state.queries, state.keys, state.values, state.residual = (
            self._stages.before_attention(
                operation.layer, state.positions, state.hidden, state.residual
            )
        )

    def attention(self, operation: Operation) -> None:
        """Append keys and values to the cache, and attend to all of it."""
        state = self._states[operation.micro_batch]
        batch, cache = state.batch, self._caches[operation.layer]
        queries, keys, values = state.queries, state.keys, state.values
        assert queries is not None and keys is not None and values is not None
        store(keys, values, cache, batch.slots)
        attended = torch.empty_like(queries, memory_format=torch.contiguous_format)
        one = batch.decodes
        if one:
            decode(
                *(queries[:one], cache, batch.table[:one], batch.lengths[:one]),
                self._scale,
                out=attended[:one],
            )
        for request in range(one, len(batch.lengths)):
            start, end = batch.starts[request : request + 2].tolist()
            attended[start:end] = prefill(
                *(queries[start:end], cache, batch.table[request]),
                int(batch.lengths[request]),
                self._scale,
            )
        state.queries, state.keys, state.values = attended, None, None

    def after_attention(self, operation: Operation) -> None:
        """Compute the rest of the layer."""
        state = self._states[operation.micro_batch]
        assert state.queries is not None and state.residual is not None
        state.hidden, state.residual = self._stages.after_attention(
            operation.layer, state.queries, state.residual
        )
        state.queries = None

    def load_pages(self, operation: Operation) -> None:
        """Bring pages of the experts in."""
        ahead = operation.step * self._experts.layers + operation.layer
        self._experts.load(ahead, operation.pages)

    def result(self) -> Tensor:
        """Return what logits are computed from, in vLLM's order of tokens."""
        first = self._states[0].hidden
        tokens = sum(len(state.batch.rows) for state in self._states)
        found = first.new_empty(tokens, first.shape[-1])
        for state in self._states:
            assert state.residual is not None
            found[state.batch.rows] = self._stages.finish(state.hidden, state.residual)
        self._states = []
        return found
