# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Attention of one layer as vLLM calls it, on caches filled with noise.

Several caches are used in turn, so that none stays in the CPU's own cache: a model has
many layers. Codes are noise, so the tokens that are read lie anywhere, which is the
worst case for memory. Both arms' caches ask for large pages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import vllm._C  # noqa: F401
import vllm._custom_ops as ops
from torch import Tensor
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from vllm_hashattn import kernels
from vllm_hashattn.budget import Budget
from vllm_hashattn.huge_pages import ask_for_huge_pages
from vllm_hashattn.paged_cache import PagedCache
from vllm_hashattn.scorer_levels import random_levels

BLOCK_TOKENS = 128
CODE_BYTES = 16
DTYPE = torch.bfloat16
_CACHES_BYTES = 400_000_000  # so much memory is gone through before any comes again
_MOST_CACHES = 8


@dataclass(frozen=True)
class Shape:
    """Of one layer.

    Attributes:
        heads: Query heads.
        kv_heads: KV heads.
        head_dim: Of both.
    """

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def row_bytes(self) -> int:
        """Of a key and its value in one head."""
        return 2 * self.head_dim * DTYPE.itemsize

    def caches(self, tokens: int) -> int:
        """How many layers' caches are gone through."""
        size = tokens * self.kv_heads * (self.row_bytes + CODE_BYTES)
        return max(2, min(_MOST_CACHES, _CACHES_BYTES // size + 1))


def _filled(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    tensor = torch.empty(shape, dtype=DTYPE)
    ask_for_huge_pages(tensor)
    noise = torch.randn(shape[1:], generator=random).to(DTYPE)
    for block in tensor:
        block.copy_(noise)
    return tensor


class OwnLayer:
    """Layers with this plugin's cache and kernels."""

    def __init__(self, shape: Shape, batch: int, tokens: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self._shape = shape
        per_sequence = -(-tokens // BLOCK_TOKENS)
        blocks = per_sequence * batch
        self._caches = [
            self._cache(blocks, random) for _ in range(shape.caches(tokens * batch))
        ]
        order = torch.randperm(blocks, generator=random).to(torch.int32)
        self._blocks = order.view(batch, per_sequence)
        self._tokens = torch.full((batch,), tokens, dtype=torch.int32)
        kv, heads, dim = shape.kv_heads, shape.heads, shape.head_dim
        bits = 8 * CODE_BYTES
        self._maps = random_levels(heads, kv, dim, bits, random)
        self._query = torch.randn(batch, heads, dim, generator=random).to(DTYPE)
        self._out = torch.empty_like(self._query)

    def _cache(self, blocks: int, random: torch.Generator) -> PagedCache:
        shape = self._shape
        width = BLOCK_TOKENS * (shape.row_bytes + CODE_BYTES)
        data = _filled((blocks, shape.kv_heads, width // DTYPE.itemsize), random)
        cache = PagedCache(
            data.view(torch.uint8), BLOCK_TOKENS, shape.head_dim, CODE_BYTES, DTYPE
        )
        codes = cache.codes()
        codes.copy_(torch.randint(0, 256, codes.shape, generator=random))
        return cache

    def decode(self, budget: Budget | None) -> Callable[[int], None]:
        """Return one decoding step of the layer, sparse or whole."""
        tokens = int(self._tokens[0])
        count = tokens if budget is None else budget.tokens(tokens)
        chosen = torch.full_like(self._tokens, count)
        own = budget or Budget(1.0)
        scale = self._shape.head_dim**-0.5

        def step(number: int) -> None:
            kernels.decode(
                self._caches[number % len(self._caches)],
                self._query,
                None if budget is None else self._maps,
                self._blocks,
                self._tokens,
                chosen,
                own,
                scale,
                self._out,
            )

        return step

    def prefill(self, new: int, seed: int = 0) -> Callable[[int], None]:
        """Return a prefill of the last `new` tokens of the first sequence."""
        shape = self._shape
        random = torch.Generator().manual_seed(seed)
        query = torch.randn(new, shape.heads, shape.head_dim, generator=random)
        query, out = query.to(DTYPE), torch.empty_like(query, dtype=DTYPE)
        before = int(self._tokens[0]) - new

        def step(number: int) -> None:
            cache = self._caches[number % len(self._caches)]
            scale = shape.head_dim**-0.5
            kernels.prefill(cache, query, self._blocks[0], before, scale, out)

        return step


class StockLayer:
    """Layers with vLLM's cache and kernel."""

    def __init__(self, shape: Shape, batch: int, tokens: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self._shape, self._batch = shape, batch
        per_sequence = -(-tokens // BLOCK_TOKENS)
        blocks = per_sequence * batch
        width = 2 * shape.head_dim
        self._caches = [
            _filled((blocks, shape.kv_heads, BLOCK_TOKENS, width), random)
            for _ in range(shape.caches(tokens * batch))
        ]
        order = torch.randperm(blocks, generator=random).to(torch.int32)
        self._blocks = order.view(batch, per_sequence)
        self._tokens = torch.full((batch,), tokens, dtype=torch.int32)

    def attend(self, new: int, seed: int = 0) -> Callable[[int], None]:
        """Return attention of the last `new` tokens of each sequence."""
        shape = self._shape
        random = torch.Generator().manual_seed(seed)
        size = self._batch * new, shape.heads, shape.head_dim
        query = torch.randn(size, generator=random).to(DTYPE)
        out = torch.empty_like(query)
        starts = torch.arange(0, self._batch * new + 1, new, dtype=torch.int32)
        plan = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=self._batch,
            num_heads=shape.heads,
            num_kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            seq_lens=self._tokens,
            dtype=DTYPE,
            query_start_loc=starts,
            causal=True,
            sliding_window_size=-1,
            isa=_get_attn_isa(DTYPE, BLOCK_TOKENS, shape.head_dim),
            enable_kv_split=True,
        )

        def step(number: int) -> None:
            cells = self._caches[number % len(self._caches)]
            view = cells.view(len(cells), shape.kv_heads, 2 * BLOCK_TOKENS, -1)
            keys, values = view.chunk(2, dim=2)
            ops.cpu_attention_with_kv_cache(
                query=query,
                key_cache=keys,
                value_cache=values,
                output=out,
                query_start_loc=starts,
                seq_lens=self._tokens,
                scale=shape.head_dim**-0.5,
                causal=True,
                alibi_slopes=None,
                sliding_window=-1,
                block_table=self._blocks,
                softcap=0.0,
                scheduler_metadata=plan,
                s_aux=None,
            )

        return step


def times_ms(step: Callable[[int], None], repeats: int, warm: int = 3) -> list[float]:
    """Time a step again and again, each time on another cache."""
    for number in range(warm):
        step(number)
    found = []
    for number in range(repeats):
        started_s = time.perf_counter()
        step(number)
        found.append(1e3 * (time.perf_counter() - started_s))
    return found
