# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Attention of one layer on CPUs: what is stored, and what a step reads.

A layer that hash attention must not touch is vLLM's own, on the part of each cell that
vLLM's kernels lay out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.logger import init_logger
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
)

from .huge_pages import ask_for_huge_pages
from .kernels import decode, prefill, store
from .layer_codes import LayerCodes, of_rank
from .paged_cache import PagedCache
from .serving import serving
from .step_plan import StepPlan

logger = init_logger("vllm.plugins.hashattn")


@dataclass
class HashAttnMetadata(CPUAttentionMetadata):
    """What a step tells the layers, and how much each sequence reads.

    Attributes:
        plan: Of the step; None for encoders.
        decode_blocks: Block table of the decoding tokens, int32 [decodes, blocks].
    """

    plan: StepPlan | None = None
    decode_blocks: Tensor | None = None


class HashAttnImpl(CPUAttentionBackendImpl):
    """Attention of one layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._serving = serving()
        self._codes: LayerCodes | None = None
        self._prepared = False
        self._cache: PagedCache | None = None
        self._cache_address = 0
        has = {
            "attention of another kind": self.attn_type != AttentionType.DECODER,
            "sinks": self.sinks is not None,
            "ALiBi": self.alibi_slopes is not None,
            "a soft cap": bool(self.logits_soft_cap),
            "a sliding window": self.sliding_window > 0,
        }
        found = [name for name, applies in has.items() if applies]
        self._stock = bool(found)
        if found:
            logger.info_once(
                "hashattn: layers with %s are left to vLLM's attention",
                " and ".join(found),
            )

    def forward(
        self,
        layer: Any,  # noqa: ANN401
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attend; see the base class for shapes."""
        if attn_metadata is None:  # vLLM warms up
            self._prepare(layer)
        if self._stock or attn_metadata is None:
            return super().forward(
                *(layer, query, key, value, self._stock_cache(kv_cache)),
                *(attn_metadata, output, output_scale, output_block_scale),
            )
        assert isinstance(attn_metadata, HashAttnMetadata)
        plan = attn_metadata.plan
        assert plan is not None
        self._prepare(layer)
        cache = self._view(kv_cache)
        result = output.view(-1, self.num_heads, self.head_size)
        if len(plan.places):
            self._decode(query, cache, attn_metadata, plan, result)
        for each in plan.prefills:
            part = slice(each.first, each.first + each.new)
            blocks = attn_metadata.block_table[each.row]
            prefill(
                *(cache, query[part], blocks, each.before),
                *(self.scale, result[part]),
            )
        return output

    def _decode(
        self,
        query: Tensor,
        cache: PagedCache,
        step: HashAttnMetadata,
        plan: StepPlan,
        result: Tensor,
    ) -> None:
        """One kernel call for all; a batch that only decodes needs no copies."""
        count = len(plan.places)
        asked = query[:count] if plan.in_order else query[plan.places]
        asked = asked.contiguous()
        assert step.decode_blocks is not None
        found = decode(
            cache,
            asked,
            None if self._codes is None else self._codes.of_queries(asked),
            step.decode_blocks,
            plan.held,
            plan.held if self._codes is None else plan.chosen,
            self._serving.budget,
            self.scale,
            result[:count] if plan.in_order else None,
        )
        if not plan.in_order:
            result[plan.places] = found

    def do_kv_cache_update(
        self,
        layer: torch.nn.Module,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
    ) -> None:
        """Write keys and values, and the codes of the keys."""
        if self._stock:
            super().do_kv_cache_update(
                layer, key, value, self._stock_cache(kv_cache), slot_mapping
            )
            return
        self._prepare(layer)
        key = key[: len(slot_mapping)]
        codes = None if self._codes is None else self._codes.of_keys(key)
        store(self._view(kv_cache), key, value, slot_mapping, codes)

    def _prepare(self, layer: Any) -> None:  # noqa: ANN401
        """Find the layer's hash, at the first call: before it no name is known.

        Raises:
            HashFileError: The file has none for this layer.
        """
        if self._prepared or self._stock:
            return
        from vllm.distributed import get_tensor_model_parallel_rank
        from vllm.model_executor.models.utils import extract_layer_index

        self._prepared = True
        index = extract_layer_index(layer.layer_name)
        # A layer that reads another one's cache finds codes of that layer's hash.
        borrowed = self.kv_sharing_target_layer_name is not None
        if index < self._serving.options.dense_layers or borrowed:
            return
        maps = of_rank(
            self._serving.maps_of(index),
            self.num_heads,
            self.num_kv_heads,
            get_tensor_model_parallel_rank,
        )
        self._codes = LayerCodes(maps, self.num_kv_heads)

    def _view(self, kv_cache: Tensor) -> PagedCache:
        """Look at vLLM's tensor, [blocks, kv heads, block_tokens, width]."""
        if self._cache is None or kv_cache.data_ptr() != self._cache_address:
            blocks, kv_heads, block_tokens, _ = kv_cache.shape
            self._cache = PagedCache(
                kv_cache.view(torch.uint8).view(blocks, kv_heads, -1),
                block_tokens,
                self.head_size,
                self._serving.code_bytes,
                kv_cache.dtype,
            )
            self._cache_address = kv_cache.data_ptr()
            ask_for_huge_pages(kv_cache)
        return self._cache

    def _stock_cache(self, kv_cache: Tensor) -> Tensor:
        """Return the part of each cell that vLLM's own kernels lay out."""
        if kv_cache.dim() != 4 or kv_cache.shape[3] <= 2 * self.head_size:
            return kv_cache
        blocks, kv_heads, block_tokens, _ = kv_cache.shape
        size = block_tokens * 2 * self.head_size
        part = kv_cache.view(blocks, kv_heads, -1)[:, :, :size]
        return torch.unflatten(part, 2, (block_tokens, 2 * self.head_size))
