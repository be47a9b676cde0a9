# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Codes and decode attention by Triton on the KV cache of vLLM's Triton backend.

Not run on a GPU; see triton_encode.py.

Nothing here waits for the device or allocates while it decodes, and grids depend on
sizes that the host knows, so that a step can be captured in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .budget import Budget
from .scorer_linear import LinearHash
from .triton_attention import attend
from .triton_encode import encode_keys, encode_queries
from .triton_select import choose, scan

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_DIMS = (64, 96, 128)
MAX_GROUP = 16
MAX_BITS = 512
_ALIGNED_BYTES = 16


@dataclass(frozen=True, slots=True)
class RowCache:
    """The KV cache of one layer: a row of key, value and code for each token.

    Attributes:
        data: [blocks, kv heads, block_tokens, width] in the dtype of keys and values,
            any strides but for the last dimension, which is contiguous.
        head_dim: Of a key and of a value.
        code_bytes: Of a key's code, behind the value.

    Raises:
        ValueError: The rows have another size, or codes would not be aligned.
    """

    data: Tensor
    head_dim: int
    code_bytes: int

    def __post_init__(self) -> None:
        item = self.data.dtype.itemsize
        row = 2 * self.head_dim * item + self.code_bytes
        if self.data.dtype not in DTYPES or self.data.shape[-1] * item != row:
            raise ValueError(
                f"hashattn: a KV cache of {self.data.dtype} with rows of "
                f"{self.data.shape[-1] * item} bytes; keys and values of "
                f"{self.head_dim} and codes of {self.code_bytes} bytes need {row}."
            )
        first = int(self.data.storage_offset())
        starts = [n * item for n in (first, *self.data.stride()[:3])]
        if self.data.stride(3) != 1 or any(n % _ALIGNED_BYTES for n in starts):
            raise ValueError(
                f"hashattn: a KV cache whose rows begin {starts[1:]} bytes apart; rows "
                f"must be contiguous and begin at multiples of {_ALIGNED_BYTES} bytes."
            )

    @property
    def rows(self) -> Tensor:
        """Keys and values as vLLM knows them, [..., 2 * head_dim]; a view."""
        return self.data[..., : 2 * self.head_dim]

    @property
    def codes(self) -> Tensor:
        """Codes, int32 [blocks, kv heads, block_tokens, words]; a view."""
        return self.data[..., 2 * self.head_dim :].view(torch.int32)


@dataclass(frozen=True, slots=True)
class Workspace:
    """Buffers of a decode step, for all layers of a device in turn.

    More sequences than there is room for are decoded one roomful after another.

    Attributes:
        codes: Of queries, int32 [sequences, query heads, words].
        distances: int16 [sequences, kv heads, max tokens].
        counts: int32 [sequences, kv heads, parts, group * bits + 1].
        plans: int32 [sequences, kv heads, parts, 3].
        positions: int32 [sequences, kv heads, max chosen].
        tops: float32 [sequences, query heads, parts].
        totals: Likewise.
        sums: float32 [sequences, query heads, parts, head_dim].
    """

    codes: Tensor
    distances: Tensor
    counts: Tensor
    plans: Tensor
    positions: Tensor
    tops: Tensor
    totals: Tensor
    sums: Tensor

    @classmethod
    def allocate(
        cls,
        heads: int,
        kv_heads: int,
        head_dim: int,
        bits: int,
        max_tokens: int,
        max_chosen: int,
        max_sequences: int = 64,
        parts: int = 32,
        device: torch.device | str = "cuda",
    ) -> Workspace:
        """Allocate for the largest step there can be.

        Args:
            heads: Query heads.
            kv_heads: KV heads.
            head_dim: Of a key.
            bits: Of a code.
            max_tokens: Of a sequence.
            max_chosen: Most tokens that are read of a sequence that is not read whole.
            max_sequences: That are decoded together.
            parts: Programs that share a sequence and KV head, a power of 2.
            device: Where the cache is.

        Raises:
            ValueError: There are no kernels for these sizes.
        """
        _check_sizes(heads, kv_heads, head_dim, bits)
        if parts < 1 or parts & (parts - 1):
            raise ValueError(
                f"hashattn: {parts} parts were asked for; give a power of 2."
            )
        bins = heads // kv_heads * bits + 1
        both = max_sequences, kv_heads
        each = max_sequences, heads, parts

        def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        return cls(
            codes=empty((max_sequences, heads, bits // 32), torch.int32),
            distances=empty((*both, max_tokens), torch.int16),
            counts=empty((*both, parts, bins), torch.int32),
            plans=empty((*both, parts, 3), torch.int32),
            positions=empty((*both, max_chosen), torch.int32),
            tops=empty(each, torch.float32),
            totals=empty(each, torch.float32),
            sums=empty((*each, head_dim), torch.float32),
        )


def _check_sizes(heads: int, kv_heads: int, head_dim: int, bits: int) -> None:
    if (
        heads % kv_heads
        or heads > MAX_GROUP * kv_heads
        or head_dim not in HEAD_DIMS
        or bits % 128
        or not 0 < bits <= MAX_BITS
    ):
        raise ValueError(
            f"hashattn: no Triton kernel for {heads} query heads and {kv_heads} KV "
            f"heads of {head_dim} with codes of {bits} bits; there are kernels for at "
            f"most {MAX_GROUP} query heads for each KV head, heads of {HEAD_DIMS}, and "
            f"codes of multiples of 128 bits up to {MAX_BITS}."
        )


def store_codes(cache: RowCache, keys: Tensor, slots: Tensor, maps: LinearHash) -> None:
    """Write the codes of new keys; vLLM writes the keys and values.

    Args:
        cache: Of the layer.
        keys: [tokens, kv heads, head_dim]; copied unless each head is contiguous.
        slots: ``block * block_tokens + offset`` of each token, int64 [tokens]; below 0
            for padding, which is skipped.
        maps: On the device of the cache.
    """
    keys = keys if keys.stride(2) == 1 else keys.contiguous()
    encode_keys(keys, slots, maps.key_map, maps.key_bias, cache.codes)


def decode(
    cache: RowCache,
    query: Tensor,
    maps: LinearHash | None,
    blocks: Tensor,
    tokens: Tensor,
    chosen: Tensor,
    budget: Budget,
    scale: float,
    workspace: Workspace,
    out: Tensor | None = None,
) -> Tensor:
    """Attention of one new token of each sequence.

    Args:
        cache: Of the layer; the new tokens are in it.
        query: [sequences, query heads, head_dim]; copied unless heads are contiguous.
        maps: For the codes of the queries; None where all sequences are read whole.
        blocks: Block table, int32 [sequences, blocks].
        tokens: Length of each sequence, int32 [sequences].
        chosen: How many tokens of each are read, int32 [sequences]; all of a shorter
            sequence. At least those always read are.
        budget: Which tokens are always read, and how many at most.
        scale: Of the dot products.
        workspace: Of this model. A sequence whose choice does not fit is read whole.
        out: Written; like `query`. A new tensor if None.

    Returns:
        Like `query`; zeros for sequences of no tokens.

    Raises:
        ValueError: The sizes do not belong together, or the workspace is too small for
            the budget.
    """
    query = query if query.stride(2) == 1 else query.contiguous()
    out = torch.empty_like(query) if out is None else out
    _check_step(cache, query, maps, blocks, out, budget, workspace)
    together = len(workspace.codes)
    for start in range(0, len(query), together):
        some = slice(start, start + together)
        step = blocks[some], tokens[some], tokens[some]
        if maps is not None:
            step = blocks[some], tokens[some], chosen[some]
            asked = workspace.codes[: len(step[0])]
            encode_queries(query[some], maps.query_map, maps.query_bias, asked)
            scan(cache.codes, asked, *step, budget, workspace)
            choose(*step[1:], budget, workspace)
        attend(cache.data, query[some], *step, budget, scale, workspace, out[some])
    return out


def _check_step(
    cache: RowCache,
    query: Tensor,
    maps: LinearHash | None,
    blocks: Tensor,
    out: Tensor,
    budget: Budget,
    workspace: Workspace,
) -> None:
    _, heads, _, head_dim = workspace.sums.shape
    _, kv_heads, max_tokens = workspace.distances.shape
    words = workspace.codes.shape[2]
    sizes = {
        "query": (query.shape[1:], (heads, head_dim)),
        "out": (out.shape, query.shape),
        "KV cache": ((cache.data.shape[1], cache.head_dim), (kv_heads, head_dim)),
        "block table": (blocks.shape[:1], query.shape[:1]),
    }
    if maps is not None:
        sizes["codes"] = (cache.codes.shape[3:], (words,))
        sizes["key map"] = (maps.key_map.shape, (kv_heads, head_dim, 32 * words))
        sizes["query map"] = (maps.query_map.shape, (heads, head_dim, 32 * words))
    for name, (found, wanted) in sizes.items():
        if tuple(found) != tuple(wanted):
            raise ValueError(
                f"hashattn: a {name} of {tuple(found)} was given; it must be "
                f"{tuple(wanted)} for this query, cache and workspace."
            )
    most = budget.tokens(max_tokens)
    if maps is not None and most > workspace.positions.shape[2]:
        raise ValueError(
            f"hashattn: a budget of up to {most} tokens with a workspace for "
            f"{workspace.positions.shape[2]}; allocate a larger one."
        )
