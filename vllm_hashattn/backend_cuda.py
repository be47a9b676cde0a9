# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The attention backend for GPUs: vLLM's Triton backend but for decoded tokens.

Not run on hardware. Its kernels were tested in Triton's interpreter and compiled for
GPUs without one; these classes were tested with vLLM's own Triton kernels in the
interpreter, and against the signatures of the installed vLLM.

vLLM's cache holds a row for each token and KV head: its key, its value, and, made room
for here, its code. What a layer does with it is in layer_cuda.py. Register as
``AttentionBackendEnum.CUSTOM``.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionMetadata,
    TritonAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.utils import split_decodes_and_prefills
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec

from .budget import Budget
from .layer_cuda import HashAttnCudaImpl, HashAttnCudaMetadata
from .serving import serving
from .triton_workspace import HEAD_DIMS

if TYPE_CHECKING:
    from vllm.v1.attention.backend import CommonAttentionMetadata


class HashAttnCudaBackend(TritonAttentionBackend):
    """vLLM's Triton backend with a code beside each key and value."""

    # A quantised cache has another layout.
    supported_kv_cache_dtypes: ClassVar[list[Any]] = ["auto"]

    @staticmethod
    def get_name() -> str:
        """Return the name of the slot that vLLM keeps for plugins."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[HashAttnCudaImpl]:
        """Return the layer's class."""
        return HashAttnCudaImpl

    @staticmethod
    def get_builder_cls() -> type[HashAttnCudaMetadataBuilder]:
        """Return the class of what a step tells the layers."""
        return HashAttnCudaMetadataBuilder

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Make room for a code behind each key and value."""
        spec = super().customize_spec(spec)
        if (
            type(spec) is not FullAttentionSpec
            or spec.state_content_bytes is not None
            or spec.head_size_v != spec.head_size
        ):
            return spec
        wider = spec.state_content_size_bytes + serving().code_bytes
        return replace(spec, state_content_bytes=wider)

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        """Say which heads have kernels."""
        return head_size in HEAD_DIMS

    @classmethod
    def supports_kv_connector(cls) -> bool:
        """Refuse: connectors were not tested with codes in the cache."""
        return False

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        """Refuse: not tested."""
        return False

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        """Refuse: the batch is split by lengths that the host knows."""
        return False


class HashAttnCudaMetadataBuilder(TritonAttentionMetadataBuilder):
    """Adds to vLLM's metadata what hash attention needs, once for all layers."""

    # The kernels would allow more, but a graph would keep the address of `chosen`, new
    # in each step, and nobody has captured one: nothing here has run on a GPU. vLLM
    # then captures only what lies between the attention layers.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER
    reorder_batch_threshold: int | None = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        # What is added is not refreshed when vLLM reuses metadata of drafts.
        self.supports_draft_decode_metadata_update = False
        self._options, self._budget = serving().options, serving().budget

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> TritonAttentionMetadata:
        """Split the batch into sequences with one new token, and the others."""
        stock = super().build(common_prefix_len, common_attn_metadata, fast_build)
        step = HashAttnCudaMetadata(
            **{each.name: getattr(stock, each.name) for each in fields(stock)}
        )
        if (
            stock.causal is not True
            or stock.mm_prefix_range is not None
            or stock.rswa_prefix_lens is not None
        ):
            return step
        rows, others, first, tokens = split_decodes_and_prefills(
            common_attn_metadata, decode_threshold=1
        )
        # Rows of no tokens, and tokens of no row, are padding at the end.
        step.decodes = min(rows, first)
        step.chosen = chosen_tokens(
            stock.seq_lens[: step.decodes], self._budget, self._options.dense_below
        )
        if step.decodes and others:
            step.prefill = replace(
                stock,
                num_actual_tokens=tokens,
                query_start_loc=stock.query_start_loc[rows:] - first,
                seq_lens=stock.seq_lens[rows:],
                block_table=stock.block_table[rows:],
                slot_mapping=stock.slot_mapping[first:],
            )
        return step


def chosen_tokens(lengths: Tensor, budget: Budget, dense_below: int) -> Tensor:
    """Return :meth:`Budget.tokens` of each length, without waiting for the device.

    Args:
        lengths: int32 [sequences].
        budget: How many tokens.
        dense_below: Shorter sequences are read whole.

    Returns:
        int32 [sequences].
    """
    least = max(budget.min_tokens, budget.sink_tokens + budget.recent_tokens)
    # Float64, which is what the budget multiplies in.
    share = torch.ceil(lengths.double() * budget.density).clamp(min=least)
    chosen = torch.minimum(share.to(lengths.dtype), lengths)
    return torch.where(lengths < dense_below, lengths, chosen)
