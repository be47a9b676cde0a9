# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the kernels do, in plain torch: where there is no compiler, or another CPU.

Correct for every dtype, head size and group, and slow: decoding gains nothing here.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .attention import attend_biased
from .budget import Budget
from .codes import agreement
from .hash_file import LayerHash
from .paged_cache import PagedCache
from .scorer import of_group
from .scorer_levels import LevelHash, LevelScorer
from .scorer_linear import LinearHash, LinearScorer
from .selection import pivotal_tokens
from .weighted_choice import Estimates

_LEAST = 1e-9  # a density that leaves the number to `min_tokens`


def store(
    cache: PagedCache,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    codes: LayerHash | Tensor | None,
) -> None:
    """Write keys, values and codes; see :func:`vllm_hashattn.kernels.store`."""
    kept = slots >= 0
    block = slots[kept] // cache.block_tokens
    offset = slots[kept] % cache.block_tokens
    # Advanced indices around a slice: [tokens, kv heads, ...].
    rows = cache.rows()
    rows[block, :, offset, 0] = keys[kept]
    rows[block, :, offset, 1] = values[kept]
    if codes is None:
        return
    if isinstance(codes, LinearHash):
        codes = LinearScorer(codes).describe(keys)
    elif isinstance(codes, LevelHash):
        codes = LevelScorer(codes).describe(keys)
    cache.codes()[block, :, offset] = codes[kept]


def decode(
    cache: PagedCache,
    query: Tensor,
    codes: LayerHash | Tensor | None,
    blocks: Tensor,
    tokens: Tensor,
    chosen: Tensor,
    budget: Budget,
    scale: float,
    out: Tensor,
) -> None:
    """Attend, sequence by sequence; see :func:`vllm_hashattn.kernels.decode`."""
    for row, (held, read) in enumerate(
        zip(tokens.tolist(), chosen.tolist(), strict=True)
    ):
        if held <= 0:
            continue
        keys, values, stored = cache.read(blocks[row], held)
        bias = torch.zeros(keys.shape[1], held)
        if read < held and isinstance(codes, LevelHash):
            bias = _drawn(query[row], codes, stored, budget, read)
        elif read < held:
            assert not isinstance(codes, LevelHash)
            picked = _picked(query[row], codes, stored, row, budget, read)
            bias.fill_(-torch.inf).scatter_(1, picked, 0.0)
        out[row] = attend_biased(query[row], keys, values, scale, bias)


def _drawn(
    query: Tensor, maps: LevelHash, stored: Tensor, budget: Budget, read: int
) -> Tensor:
    """Draw tokens of one sequence; returns a bias, float32 [kv heads, tokens]."""
    scorer = LevelScorer(maps)
    asked, units = scorer.asked(query.unsqueeze(0))
    tokens, kv_heads = stored.shape[:2]
    estimates = Estimates(scorer.dots(asked, stored), units, maps.share, kv_heads)
    return estimates.drawn(torch.tensor([tokens]), _exactly(budget, read))[0]


def _exactly(budget: Budget, read: int) -> Budget:
    return replace(budget, density=_LEAST, min_tokens=read)


def _picked(
    query: Tensor,
    codes: LinearHash | Tensor | None,
    stored: Tensor,
    row: int,
    budget: Budget,
    read: int,
) -> Tensor:
    """Choose `read` tokens of one sequence, int64 [kv heads, read]."""
    if isinstance(codes, LinearHash):
        scores = of_group(LinearScorer(codes).score(query, stored), stored.shape[1])
    else:
        assert codes is not None
        # [kv heads, codes, 1, bytes] with [kv heads, 1, tokens, bytes]
        each = agreement(codes[row].unsqueeze(2), stored.transpose(0, 1).unsqueeze(1))
        scores = each.sum(dim=1)
    return pivotal_tokens(scores, _exactly(budget, read))


def prefill(
    cache: PagedCache,
    query: Tensor,
    blocks: Tensor,
    before: int,
    scale: float,
    out: Tensor,
) -> None:
    """Attend causally; see :func:`vllm_hashattn.kernels.prefill`."""
    new = len(query)
    keys, values, _ = cache.read(blocks, before + new)
    place = torch.arange(before + new)
    mask = place <= place[before:].unsqueeze(1)
    q, k, v = (each.transpose(0, 1).unsqueeze(0) for each in (query, keys, values))
    result = scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    out.copy_(result[0].transpose(0, 1))
