# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Attention of one layer on GPUs: vLLM's Triton attention but for decoded tokens.

Not run on hardware; see backend_cuda.py. vLLM is shown each row of the cache without
the code behind it, and does all that is not listed here: prefill, the first layers, and
layers with sliding windows, sinks and the like.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionImpl,
    TritonAttentionMetadata,
)

from .compat import current_config
from .hash_file import LayerHash
from .layer_codes import of_rank
from .paper_file import PaperNetworks
from .scorer_levels import LevelHash
from .serving import serving
from .triton_cache import RowCache
from .triton_decode import decode, store_codes
from .triton_workspace import Workspace

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Sequences that are decoded together, which bounds the buffers.
_MAX_SEQUENCES = 64


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


class HashAttnCudaImpl(TritonAttentionImpl):
    """Attention of one layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._options, self._budget = serving().options, serving().budget
        self._max_tokens, self._max_sequences = _limits(current_config())
        self._cached: RowCache | None = None
        self._maps: LayerHash | None = None
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
                self._maps = _on_device(self._find_maps(index), device)
                self._workspace = _workspace(
                    self.num_heads,
                    *self._maps.key_map.shape[:2],
                    self._maps.bits,
                    self._max_tokens,
                    self._budget.tokens(self._max_tokens),
                    self._max_sequences,
                    device,
                    levels=isinstance(self._maps, LevelHash),
                )
        return self._sparse

    def _find_maps(self, index: int) -> LayerHash:
        from vllm.distributed import get_tensor_model_parallel_rank

        maps = of_rank(
            *(serving().maps_of(index), self.num_heads, self.num_kv_heads),
            get_tensor_model_parallel_rank,
        )
        assert not isinstance(maps, PaperNetworks)  # refused at start
        return maps

    def _view(self, kv_cache: Tensor) -> RowCache:
        """Look at vLLM's tensor, [blocks, kv heads, block_tokens, width]."""
        if self._cached is None or self._cached.data is not kv_cache:
            self._cached = RowCache(kv_cache, self.head_size, serving().code_bytes)
        return self._cached


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
    *,
    levels: bool,
) -> Workspace:
    """One for all layers of the same shape: they run one after another."""
    return Workspace.allocate(
        *(heads, kv_heads, head_dim, bits, max_tokens, max_chosen, max_sequences),
        device=device,
        levels=levels,
    )


def _on_device(maps: LayerHash, device: torch.device) -> LayerHash:
    return type(maps)(*(getattr(maps, each.name).to(device) for each in fields(maps)))
