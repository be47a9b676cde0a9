# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""From which context on reading a part is faster than reading all, on this machine.

Times the kernels on caches of a model's shape. Contents are noise, so the tokens that
are read lie anywhere: real text is no worse.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .budget import Budget
from .huge_pages import ask_for_huge_pages
from .kernels import decode
from .paged_cache import PagedCache
from .scorer_levels import random_levels

CONTEXTS = tuple(512 << step for step in range(7))
_BLOCK_TOKENS = 128
_REPEATS = 15
_CACHES_BYTES = 64 << 20  # gone through before any comes again, as layers are
# A gain below this is within the noise of a shared machine.
_WORTH = 1.05


@dataclass(frozen=True, slots=True)
class Geometry:
    """Attention of a model.

    Attributes:
        heads: Query heads.
        kv_heads: KV heads.
        head_dim: Of both.
        dtype: Of keys and values.
    """

    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def of_model(cls, folder: Path) -> Geometry:
        """Read it from ``config.json``.

        Raises:
            ValueError: The folder holds none.
        """
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            config = config.get("text_config", config)
            heads = int(config["num_attention_heads"])
            head_dim = config.get("head_dim") or int(config["hidden_size"]) // heads
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"hashattn: {folder} is no folder of a model: {error!r}"
            ) from error
        return cls(heads, config.get("num_key_value_heads") or heads, head_dim)


@dataclass(frozen=True, slots=True)
class Timing:
    """One layer, one decoding step.

    Attributes:
        context_tokens: Length.
        read_tokens: Read by the sparse one.
        dense_ms: Median time of reading all.
        sparse_ms: Median time of reading the part, codes included.
    """

    context_tokens: int
    read_tokens: int
    dense_ms: float
    sparse_ms: float

    @property
    def speedup(self) -> float:
        """How many times faster the sparse one is."""
        return self.dense_ms / self.sparse_ms


def timings(
    geometry: Geometry,
    budget: Budget,
    batch: int = 1,
    bits: int = 128,
    contexts: Sequence[int] = CONTEXTS,
) -> Iterator[Timing]:
    """Time both at growing contexts.

    Args:
        geometry: Of the model.
        budget: What the sparse one reads.
        batch: Sequences in a step.
        bits: Of a key's code.
        contexts: Lengths.
    """
    for tokens in contexts:
        yield _timing(geometry, budget, batch, bits, tokens)


def crossover(found: Sequence[Timing]) -> int | None:
    """Return the length from which on the sparse one is always faster, if any."""
    best = None
    for timing in reversed(found):
        if timing.speedup < _WORTH:
            break
        best = timing.context_tokens
    return best


def _timing(
    geometry: Geometry, budget: Budget, batch: int, bits: int, tokens: int
) -> Timing:
    random = torch.Generator().manual_seed(tokens)
    kv_heads, dim = geometry.kv_heads, geometry.head_dim
    blocks = batch * -(-tokens // _BLOCK_TOKENS)
    row_bytes = 2 * dim * geometry.dtype.itemsize
    width = _BLOCK_TOKENS * (row_bytes + bits // 8)
    caches = []
    for _ in range(max(1, min(64, _CACHES_BYTES // (blocks * kv_heads * width)))):
        data = torch.empty(blocks, kv_heads, width, dtype=torch.uint8)
        ask_for_huge_pages(data)
        cache = PagedCache(data, _BLOCK_TOKENS, dim, bits // 8, geometry.dtype)
        cache.rows().normal_(generator=random)
        cache.codes().random_(generator=random)
        caches.append(cache)
    maps = random_levels(geometry.heads, kv_heads, dim, bits, random)
    query = torch.randn(batch, geometry.heads, dim, generator=random)
    query = query.to(geometry.dtype)
    table = torch.randperm(blocks, generator=random).to(torch.int32).view(batch, -1)
    held = torch.full((batch,), tokens, dtype=torch.int32)
    chosen = torch.full_like(held, budget.tokens(tokens))

    def dense(number: int) -> None:
        cache = caches[number % len(caches)]
        decode(cache, query, None, table, held, held, budget, dim**-0.5)

    def sparse(number: int) -> None:
        cache = caches[number % len(caches)]
        decode(cache, query, maps, table, held, chosen, budget, dim**-0.5)

    return Timing(tokens, budget.tokens(tokens), _median_ms(dense), _median_ms(sparse))


def _median_ms(step: Callable[[int], None]) -> float:
    for number in range(3):
        step(number)
    times = []
    for number in range(_REPEATS):
        started_s = time.perf_counter()
        step(number)
        times.append(1e3 * (time.perf_counter() - started_s))
    return statistics.median(times)
