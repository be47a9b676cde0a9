# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The attention backend for CPUs: stock vLLM but for decoder layers.

The KV cache gets a code for each token beside its key and value, in the same block, so
that prefix caching, preemption and copies carry it. Keys and values are laid out row by
row instead of in vLLM's tiles, because single tokens are read; so prefill has a kernel
of its own, too. Layers that hash attention must not touch (encoders, cross attention,
sliding windows, sinks, ALiBi, soft caps) go to vLLM's own code.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    FullAttentionSpec,
    SlidingWindowSpec,
)

from .layer_cpu import HashAttnImpl, HashAttnMetadata
from .metrics import StepMetrics
from .request_density import densities_of_batch
from .serving import serving
from .step_plan import plan_step
from .steps import STEPS

if TYPE_CHECKING:
    from vllm.v1.attention.backend import CommonAttentionMetadata


class HashAttnBackend(CPUAttentionBackend):
    """Takes the place of vLLM's CPU backend when asked for."""

    @staticmethod
    def get_impl_cls() -> type[HashAttnImpl]:
        """Return the layer's class."""
        return HashAttnImpl

    @staticmethod
    def get_builder_cls() -> type[HashAttnMetadataBuilder]:
        """Return the class of what a step tells the layers."""
        return HashAttnMetadataBuilder

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Make room for a code beside each key and value.

        Layers with a sliding window have no codes, but get the room as well: vLLM
        wants pages of the same size.
        """
        if (
            type(spec) not in (FullAttentionSpec, SlidingWindowSpec)
            or spec.state_content_bytes is not None
        ):
            return spec
        wider = spec.state_content_size_bytes + serving().code_bytes
        return replace(spec, state_content_bytes=wider)


class HashAttnMetadataBuilder(CPUAttentionMetadataBuilder):
    """Adds to vLLM's metadata what hash attention needs, once for all layers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._serving = serving()
        self._metrics: StepMetrics | None = None
        spec = self.kv_cache_spec
        self._ours = type(spec) is FullAttentionSpec
        # Ranks do the same steps, each for its own heads: the first one speaks.
        first = self.vllm_config.parallel_config.rank == 0
        if isinstance(spec, FullAttentionSpec) and self._ours and first:
            self._metrics = self._make_metrics(spec)

    def _make_metrics(self, spec: FullAttentionSpec) -> StepMetrics:
        config = self.vllm_config
        layers = len(self.layer_names) - self._serving.options.dense_layers
        places = max(layers, 0) * self.num_kv_heads
        row_bytes = 2 * self.head_dim * spec.dtype.itemsize
        return StepMetrics(
            STEPS,
            str(config.model_config.served_model_name),
            places * row_bytes,
            places * self._serving.code_bytes,
        )

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> CPUAttentionMetadata:
        """Split the batch into tokens that decode, and prefills."""
        stock = super().build(common_prefix_len, common_attn_metadata, fast_build)
        if not self._ours:
            return stock
        options = self._serving.options
        lengths = stock.seq_lens.tolist()
        plan = plan_step(
            stock.query_start_loc[: len(lengths) + 1].tolist(),
            lengths,
            self._serving.budget,
            options.dense_below,
            densities_of_batch(len(lengths)),
        )
        STEPS.count(plan.held.tolist(), plan.chosen.tolist())
        if self._metrics is not None:
            self._metrics.publish()
        return HashAttnMetadata(
            **{each.name: getattr(stock, each.name) for each in fields(stock)},
            plan=plan,
            decode_blocks=stock.block_table[plan.rows].to(torch.int32),
        )
