# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Buffers of a decode step on a GPU, made once: decoding allocates nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .weighted_choice import OCTAVE

HEAD_DIMS = (64, 96, 128)
MAX_GROUP = 16
MAX_BITS = 512
# Distances that are counted one by one when tokens are drawn: weights down to 2 ** -91
# of the sum. Farther ones are rare, and then looked up token by token.
DRAWN_BINS = 128 * OCTAVE


@dataclass(frozen=True, slots=True)
class SignBuffers:
    """Of choices of those tokens whose codes of signs agree most.

    Attributes:
        codes: Of queries, int32 [sequences, query heads, words].
        counts: int32 [sequences, kv heads, parts, group * bits + 1].
        plans: int32 [sequences, kv heads, parts, 3].
    """

    codes: Tensor
    counts: Tensor
    plans: Tensor


@dataclass(frozen=True, slots=True)
class LevelBuffers:
    """Of choices of tokens that are drawn by their weight.

    Attributes:
        asked: Channels of queries in units, int8 [sequences, query heads, channels].
        steps: That one unit is, float32 [sequences, query heads].
        offsets: Of the weights, in whole steps, float32 [sequences, query heads].
        counts: Of distances, int32 [sequences, kv heads, DRAWN_BINS].
        thresholds: int32 [sequences, kv heads].
        drawn: Tokens of each part, int32 [sequences, kv heads, parts].
        rows: That are read in all, int32 [sequences, kv heads].
        extras: Logarithm to base 2 of how many tokens each read one stands for, float32
            [sequences, kv heads, most rows].
    """

    asked: Tensor
    steps: Tensor
    offsets: Tensor
    counts: Tensor
    thresholds: Tensor
    drawn: Tensor
    rows: Tensor
    extras: Tensor


@dataclass(frozen=True, slots=True)
class Workspace:
    """Buffers of a decode step, for all layers of a device in turn.

    More sequences than there is room for are decoded one roomful after another.

    Attributes:
        distances: int16 [sequences, kv heads, max tokens]; without a sign where tokens
            are drawn.
        positions: int32 [sequences, kv heads, most rows].
        tops: float32 [sequences, query heads, parts].
        totals: Likewise.
        sums: float32 [sequences, query heads, parts, head_dim].
        buffers: Of the way tokens are chosen.
        max_chosen: Most tokens that are read, on average where they are drawn.
    """

    distances: Tensor
    positions: Tensor
    tops: Tensor
    totals: Tensor
    sums: Tensor
    buffers: SignBuffers | LevelBuffers
    max_chosen: int

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
        *,
        levels: bool = False,
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
            levels: Codes are levels and tokens are drawn; else codes are signs.

        Raises:
            ValueError: There are no kernels for these sizes.
        """
        _check_sizes(heads, kv_heads, head_dim, bits)
        if parts < 1 or parts & (parts - 1):
            raise ValueError(
                f"hashattn: {parts} parts were asked for; give a power of 2."
            )
        rows = _most_rows(max_chosen) if levels else max_chosen
        both, each = (max_sequences, kv_heads), (max_sequences, heads)
        kind = _level_buffers if levels else _sign_buffers
        return cls(
            distances=_empty((*both, max_tokens), torch.int16, device),
            positions=_empty((*both, rows), torch.int32, device),
            tops=_empty((*each, parts), torch.float32, device),
            totals=_empty((*each, parts), torch.float32, device),
            sums=_empty((*each, parts, head_dim), torch.float32, device),
            buffers=kind(both, each, bits, parts, rows, device),
            max_chosen=max_chosen,
        )


def _most_rows(chosen: int) -> int:
    """Return how many rows are read at most: draws vary, and little."""
    return chosen + max(64, chosen // 4)


def _empty(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def _sign_buffers(
    both: tuple[int, int],
    each: tuple[int, int],
    bits: int,
    parts: int,
    rows: int,
    device: torch.device | str,
) -> SignBuffers:
    bins = each[1] // both[1] * bits + 1
    return SignBuffers(
        codes=_empty((*each, bits // 32), torch.int32, device),
        counts=_empty((*both, parts, bins), torch.int32, device),
        plans=_empty((*both, parts, 3), torch.int32, device),
    )


def _level_buffers(
    both: tuple[int, int],
    each: tuple[int, int],
    bits: int,
    parts: int,
    rows: int,
    device: torch.device | str,
) -> LevelBuffers:
    return LevelBuffers(
        asked=_empty((*each, bits // 4), torch.int8, device),
        steps=_empty(each, torch.float32, device),
        offsets=_empty(each, torch.float32, device),
        counts=_empty((*both, DRAWN_BINS), torch.int32, device),
        thresholds=_empty(both, torch.int32, device),
        drawn=_empty((*both, parts), torch.int32, device),
        rows=_empty(both, torch.int32, device),
        extras=_empty((*both, rows), torch.float32, device),
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
