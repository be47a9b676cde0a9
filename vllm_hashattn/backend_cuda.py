# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The attention backend for GPUs: vLLM's Triton backend but for decoded tokens.

Not run on hardware. Its kernels were tested in Triton's interpreter and compiled for
GPUs without one; the classes below were tested with vLLM's own Triton kernels in the
interpreter, and against the signatures of the installed vLLM.

vLLM's cache holds a row for each token and KV head: its key, its value, and, made room
for here, its code. vLLM is shown the row without the code, and does all that is not
listed here: prefill, the first layers, and layers with sliding windows, sinks and the
like. Register as ``AttentionBackendEnum.CUSTOM``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionCGSupport, AttentionType
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadata,
    TritonAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.utils import split_decodes_and_prefills
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec

from .budget import Budget
from .compat import current_config
from .layer_codes import of_rank
from .scorer_linear import LinearHash
from .serving import serving
from .triton_decode import HEAD_DIMS, RowCache, Workspace, decode, store_codes

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.attention.backend import CommonAttentionMetadata

# Sequences that are decoded together, which bounds the buffers.
_MAX_SEQUENCES = 64


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


@dataclass
class HashAttnCudaMetadata(TritonAttentionMetadata):
    """What a step tells the layers; the batch begins with sequences that decode.

    Attributes:
        decodes: Sequences at the front with one new token each; 0 leaves all to vLLM.
        chosen: Tokens that a sparse layer reads of each, int32 [decodes].
        prefill: Of the other sequences, if there are any.
    """

    decodes: int = 0
    chosen: Tensor | None = None
    prefill: TritonAttentionMetadata | None = None


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


class HashAttnCudaImpl(TritonAttentionImpl):
    """Attention of one layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._options, self._budget = serving().options, serving().budget
        self._max_tokens, self._max_sequences = _limits(current_config())
        self._cached: RowCache | None = None
        self._maps: LinearHash | None = None
        self._workspace: Workspace | None = None
        self._sparse: bool | None = None
        # Layers of other kinds are vLLM's.
        if (
            self.attn_type != AttentionType.DECODER
            or self.sinks is not None
            or self.alibi_slopes is not None
            or self.logits_soft_cap
            or self.sliding_window != (-1, -1)
            or self.chunk_lookback > -1
            or self.kv_sharing_target_layer_name is not None
        ):
            self._sparse = False

    def fused_output_quant_supported(self, quant_key: Any) -> bool:  # noqa: ANN401
        """Refuse: decoded tokens are written as they are."""
        return False

    def fused_rope_kvcache_supported(self) -> bool:
        """Refuse: vLLM would write keys without their codes."""
        return False

    def forward(
        self,
        layer: Any,  # noqa: ANN401
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: TritonAttentionMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attend; see the base class for shapes."""
        # Also in the profiling run, so that maps and buffers count as used memory.
        sparse = self._is_sparse(layer, query.device)
        rows = kv_cache[..., : 2 * self.head_size]
        step = attn_metadata
        if not (sparse and isinstance(step, HashAttnCudaMetadata) and step.decodes):
            return super().forward(
                *(layer, query, key, value, rows),
                *(step, output, output_scale, output_block_scale),  # type: ignore[arg-type]
            )
        assert step.chosen is not None and self._workspace is not None
        some = step.decodes
        result = output.view(-1, self.num_heads, self.head_size)
        decode(
            self._view(kv_cache),
            query[:some],
            self._maps,
            step.block_table[:some],
            step.seq_lens[:some],
            step.chosen,
            self._budget,
            self.scale,
            self._workspace,
            result[:some],
        )
        if step.prefill is not None:
            others = slice(some, None)
            super().forward(
                *(layer, query[others], key[others], value[others], rows),
                *(step.prefill, result[others]),
            )
        return output

    def do_kv_cache_update(
        self,
        layer: Any,  # noqa: ANN401
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
    ) -> None:
        """Write keys and values, and the codes of the keys."""
        rows = kv_cache[..., : 2 * self.head_size]
        super().do_kv_cache_update(layer, key, value, rows, slot_mapping)
        if self._is_sparse(layer, key.device):
            assert self._maps is not None
            store_codes(self._view(kv_cache), key, slot_mapping, self._maps)

    def _is_sparse(self, layer: Any, device: torch.device) -> bool:  # noqa: ANN401
        """Whether this layer chooses; finds its hash at the first call."""
        if self._sparse is None:
            from vllm.model_executor.models.utils import extract_layer_index

            index = extract_layer_index(layer.layer_name)
            self._sparse = index >= self._options.dense_layers
            if self._sparse:
                from vllm.distributed import get_tensor_model_parallel_rank

                maps = of_rank(
                    *(serving().maps_of(index), self.num_heads, self.num_kv_heads),
                    get_tensor_model_parallel_rank,
                )
                assert isinstance(maps, LinearHash)  # start_checks refuses others
                self._maps = _on_device(maps, device)
                self._workspace = _workspace(
                    *(self.num_heads, *self._maps.key_map.shape, self._max_tokens),
                    *(self._budget.tokens(self._max_tokens), self._max_sequences),
                    device,
                )
        return self._sparse

    def _view(self, kv_cache: Tensor) -> RowCache:
        """Look at vLLM's tensor, [blocks, kv heads, block_tokens, width]."""
        if self._cached is None or self._cached.data is not kv_cache:
            self._cached = RowCache(kv_cache, self.head_size, serving().code_bytes)
        return self._cached


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


def _limits(config: VllmConfig | None) -> tuple[int, int]:
    """Most tokens of a sequence, and most sequences that are decoded together."""
    if config is None:
        raise ValueError("hashattn: a layer was made outside of vLLM's configuration.")
    most = config.scheduler_config.max_num_seqs
    return config.model_config.max_model_len, min(most, _MAX_SEQUENCES)


@cache
def _workspace(
    heads: int,
    kv_heads: int,
    head_dim: int,
    bits: int,
    max_tokens: int,
    max_chosen: int,
    max_sequences: int,
    device: torch.device,
) -> Workspace:
    """One for all layers of the same shape: they run one after another."""
    return Workspace.allocate(
        *(heads, kv_heads, head_dim, bits, max_tokens, max_chosen, max_sequences),
        device=device,
    )


def _on_device(maps: LinearHash, device: torch.device) -> LinearHash:
    return LinearHash(
        maps.key_map.to(device),
        maps.key_bias.to(device),
        maps.query_map.to(device),
        maps.query_bias.to(device),
    )
