# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The attention backend for CPUs: stock vLLM but for decoder layers.

The KV cache gets a code for each token beside its key and value, in the same block, so
that prefix caching, preemption and copies carry it. Keys and values are laid out row by
row instead of in vLLM's tiles, because single tokens are read; so prefill runs here,
too, as torch's scaled dot-product attention.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.logger import init_logger
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec

from .budget import Budget
from .compat import current_config, options_of
from .config import HashAttnConfig
from .hash_file import HashFile, load
from .kernels import PagedCache, decode, store
from .prefill import prefill
from .scorer_linear import LinearHash
from .steps import STEPS

if TYPE_CHECKING:
    from vllm.v1.attention.backend import CommonAttentionMetadata

logger = init_logger("vllm.plugins.hashattn")


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
        """Make room for a code beside each key and value."""
        if type(spec) is not FullAttentionSpec or spec.state_content_bytes is not None:
            return spec
        wider = spec.state_content_size_bytes + _code_bytes()
        return replace(spec, state_content_bytes=wider)


@dataclass
class HashAttnMetadata(CPUAttentionMetadata):
    """What a step tells the layers, and how much each sequence reads.

    Attributes:
        decode_tokens: Places of tokens that come alone in the batch, int64 [decodes].
        decode_lengths: int32 [decodes].
        decode_blocks: int32 [decodes, blocks].
        chosen: Tokens that a sparse layer reads of each, int32 [decodes].
        prefills: Row, first token, new tokens, whole length of the other sequences.
    """

    decode_tokens: Tensor | None = None
    decode_lengths: Tensor | None = None
    decode_blocks: Tensor | None = None
    chosen: Tensor | None = None
    prefills: tuple[tuple[int, int, int, int], ...] = ()


class HashAttnMetadataBuilder(CPUAttentionMetadataBuilder):
    """Adds to vLLM's metadata what hash attention needs, once for all layers."""

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> CPUAttentionMetadata:
        """Split the batch into sequences with one new token, and the others."""
        stock = super().build(common_prefix_len, common_attn_metadata, fast_build)
        starts = stock.query_start_loc[: len(stock.seq_lens) + 1].tolist()
        lengths = stock.seq_lens.tolist()
        options = _options()
        budget = _budget(options)
        rows, places, kept, prefills = [], [], [], []
        for row, length in enumerate(lengths):
            first, new = starts[row], starts[row + 1] - starts[row]
            if new == 1:
                rows.append(row)
                places.append(first)
                short = length < options.dense_below
                kept.append(length if short else budget.tokens(length))
            elif new > 1:
                prefills.append((row, first, new, length))
        STEPS.count(lengths, rows, kept)
        alone = torch.tensor(rows, dtype=torch.int64)
        return HashAttnMetadata(
            **{each.name: getattr(stock, each.name) for each in fields(stock)},
            decode_tokens=torch.tensor(places, dtype=torch.int64),
            decode_lengths=stock.seq_lens[alone].to(torch.int32),
            decode_blocks=stock.block_table[alone].to(torch.int32),
            chosen=torch.tensor(kept, dtype=torch.int32),
            prefills=tuple(prefills),
        )


class HashAttnImpl(CPUAttentionBackendImpl):
    """Attention of one layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._options = _options()
        self._budget = _budget(self._options)
        self._maps: LinearHash | None = None
        self._sparse: bool | None = None
        unlike = {
            "sinks": self.sinks is not None,
            "ALiBi": self.alibi_slopes is not None,
            "a soft cap": bool(self.logits_soft_cap),
            "a sliding window": self.sliding_window > 0,
            "a shared KV cache": self.kv_sharing_target_layer_name is not None,
        }
        found = [name for name, has in unlike.items() if has]
        if found and self.attn_type == AttentionType.DECODER:
            raise ValueError(
                f"hashattn: this model's attention has {', '.join(found)}, which hash "
                "attention does not do. Remove --additional-config.hashattn.weights."
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
        if self.attn_type != AttentionType.DECODER or not isinstance(
            attn_metadata, HashAttnMetadata
        ):
            # No metadata: vLLM warms up.
            return super().forward(
                *(layer, query, key, value, kv_cache, attn_metadata, output),
                *(output_scale, output_block_scale),
            )
        cached = self._view(kv_cache)
        result = output.view(-1, self.num_heads, self.head_size)
        self._decode(layer, query, cached, attn_metadata, result)
        for row, first, new, length in attn_metadata.prefills:
            part = slice(first, first + new)
            result[part] = prefill(
                query[part],
                key[part],
                value[part],
                cached,
                attn_metadata.block_table[row],
                length - new,
                self.scale,
            )
        return output

    def _decode(
        self,
        layer: Any,  # noqa: ANN401
        query: Tensor,
        cached: PagedCache,
        step: HashAttnMetadata,
        result: Tensor,
    ) -> None:
        assert step.decode_tokens is not None and step.decode_blocks is not None
        assert step.decode_lengths is not None and step.chosen is not None
        if not len(step.decode_tokens):
            return
        sparse = self._is_sparse(layer)
        # One kernel call for all; a batch of decodes alone needs no copies.
        whole = len(step.decode_tokens) == step.num_actual_tokens
        asked = query[: step.num_actual_tokens] if whole else query[step.decode_tokens]
        found = decode(
            cached,
            asked.contiguous(),
            self._maps if sparse else None,
            step.decode_blocks,
            step.decode_lengths,
            step.chosen if sparse else step.decode_lengths,
            self._budget,
            self.scale,
        )
        if whole:
            result[: step.num_actual_tokens] = found
        else:
            result[step.decode_tokens] = found

    def do_kv_cache_update(
        self,
        layer: torch.nn.Module,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
    ) -> None:
        """Write keys and values, and the codes of the keys."""
        if self.attn_type != AttentionType.DECODER:
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
            return
        sparse = self._is_sparse(layer)
        count = len(slot_mapping)
        store(
            self._view(kv_cache),
            key[:count],
            value[:count],
            slot_mapping,
            self._maps if sparse else None,
        )

    def _is_sparse(self, layer: Any) -> bool:  # noqa: ANN401
        """Whether this layer chooses; finds its hash at the first call."""
        if self._sparse is None:
            from vllm.model_executor.models.utils import extract_layer_index

            index = extract_layer_index(layer.layer_name)
            self._sparse = index >= self._options.dense_layers
            if self._sparse:
                hashes = _hashes(self._options.weights)
                self._maps = _of_rank(
                    hashes.layers[index], self.num_heads, self.num_kv_heads
                )
        return self._sparse

    def _view(self, kv_cache: Tensor) -> PagedCache:
        """Look at vLLM's tensor, [blocks, kv heads, block_tokens, width]."""
        blocks, kv_heads, block_tokens, _ = kv_cache.shape
        return PagedCache(
            kv_cache.view(torch.uint8).view(blocks, kv_heads, -1),
            block_tokens,
            self.head_size,
            _code_bytes(),
            kv_cache.dtype,
        )


def _of_rank(maps: LinearHash, heads: int, kv_heads: int) -> LinearHash:
    """Return the part of a tensor-parallel rank."""
    if maps.query_map.shape[0] == heads:
        return maps
    from vllm.distributed import get_tensor_model_parallel_rank

    rank = get_tensor_model_parallel_rank()
    asked = slice(rank * heads, (rank + 1) * heads)
    group = maps.query_map.shape[0] // maps.key_map.shape[0]
    first = rank * heads // group  # with more ranks than KV heads they share one
    stored = slice(first, first + kv_heads)
    return LinearHash(
        maps.key_map[stored].contiguous(),
        maps.key_bias[stored].contiguous(),
        maps.query_map[asked].contiguous(),
        maps.query_bias[asked].contiguous(),
    )


@cache
def _hashes(path: str) -> HashFile:
    return load(Path(path))


def _options() -> HashAttnConfig:
    config = current_config()
    options = None if config is None else options_of(config.additional_config)
    if options is not None:
        _remember(options)
    return _REMEMBERED[0]


# One process serves one configuration; steps are built outside of its context.
_REMEMBERED: list[HashAttnConfig] = []


def _remember(options: HashAttnConfig) -> None:
    if not _REMEMBERED:
        logger.info(
            "hashattn: decode attention reads %.3g %% of contexts of %d tokens and "
            "more, in all layers but the first %d, by the hash in %s",
            100 * options.density,
            options.dense_below,
            options.dense_layers,
            options.weights,
        )
    _REMEMBERED[:] = [options]


def _budget(options: HashAttnConfig) -> Budget:
    return Budget(
        options.density,
        options.min_tokens,
        options.sink_tokens,
        options.recent_tokens,
    )


def _code_bytes() -> int:
    layers = _hashes(_options().weights).layers
    return next(iter(layers.values())).key_map.shape[2] // 8
