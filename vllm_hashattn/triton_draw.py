# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
# mypy: disable-error-code="import-untyped,untyped-decorator"
"""Triton kernels that draw the tokens to read, by their weight.

Not run on a GPU; see triton_encode.py for that and for the rules of kernels. The
numbers are those of weighted_choice.py.

1. ``_threshold`` finds the threshold below which chances fall: from how often each
   distance occurs, or from all distances where too many are too far to be counted.
2. ``_count`` counts the tokens of each part that are drawn.
3. ``_draw`` writes their positions, those always read around them, all in ascending
   order, and of how many tokens each stands for the logarithm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from .budget import Budget
from .triton_sequence import limits, this_sequence

if TYPE_CHECKING:
    from .triton_workspace import LevelBuffers, Workspace

_OCTAVE = tl.constexpr(32)
_FARTHEST = tl.constexpr(65535)
_CERTAIN = tl.constexpr(32768)
_CERTAIN_OCTAVES = tl.constexpr(15.0)
# What a step adds to a chance, within an octave.
_OF_STEP = tl.constexpr(-512)
_LOWEST_THRESHOLD = tl.constexpr(-1024)
# So much farther than the threshold no token has a chance.
_HOPELESS = tl.constexpr(16 * 32)
# Halvings of the thresholds that counts can say, and of all.
_HALVINGS_COUNTED = tl.constexpr(13)
_HALVINGS = tl.constexpr(16)
_GOLDEN = tl.constexpr(20251)
_OF_LENGTH = tl.constexpr(25173)
_OF_HEAD = tl.constexpr(13849)
# More than are wanted have room, as draws vary.
_SPARE = tl.constexpr(64)


@triton.jit
def _chances(distance: tl.tensor, threshold: tl.tensor) -> tl.tensor:
    """Chances of which _CERTAIN is 1, int32."""
    below = tl.maximum(distance - threshold, 0)
    return (below % _OCTAVE * _OF_STEP + _CERTAIN) >> tl.minimum(below // _OCTAVE, 31)


@triton.jit
def _distances(distances: tl.tensor, token: tl.tensor, free: tl.tensor) -> tl.tensor:
    """Of tokens not always read, int32; they have 16 bits and no sign."""
    return tl.load(distances + token, mask=free, other=0).to(tl.int32) & 0xFFFF


@triton.jit
def _threshold(
    tokens: tl.tensor,
    chosen: tl.tensor,
    distances: tl.tensor,
    counts: tl.tensor,
    thresholds: tl.tensor,
    sink: int,
    recent: int,
    KV_HEADS: tl.constexpr,
    MAX_TOKENS: tl.constexpr,
    MAX_CHOSEN: tl.constexpr,
    BINS: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid: sequences, KV heads."""
    length, read, first, last, _ = this_sequence(
        tokens, chosen, sink, recent, MAX_TOKENS, MAX_CHOSEN, PARTS, TILE
    )
    if read >= length:
        return
    pair = tl.program_id(0).to(tl.int64) * KV_HEADS + tl.program_id(1)
    wanted = (read - first - (length - last)).to(tl.int64) * _CERTAIN
    bin = tl.arange(0, BINS)
    count = tl.load(counts + pair * BINS + bin).to(tl.int64)
    # Up to here the tokens that were not counted have no chance.
    counted = tl.full((), BINS - _HOPELESS, tl.int32)
    low = tl.full((), _LOWEST_THRESHOLD, tl.int32)
    high = counted
    for _ in range(_HALVINGS_COUNTED):
        middle = low + (high - low + 1) // 2
        fits = tl.sum(count * _chances(bin, middle), axis=0) <= wanted
        low = tl.where(fits, middle, low)
        high = tl.where(fits, high, middle - 1)
    if low == counted:
        distances += pair * MAX_TOKENS
        high = tl.full((), _FARTHEST, tl.int32)
        for _ in range(_HALVINGS):
            middle = low + (high - low + 1) // 2
            found = tl.zeros((TILE,), tl.int64)
            for start in range(first, last, TILE):
                token = start + tl.arange(0, TILE)
                free = token < last
                chance = _chances(_distances(distances, token, free), middle)
                found += tl.where(free, chance, 0)
            fits = tl.sum(found, axis=0) <= wanted
            low = tl.where(fits, middle, low)
            high = tl.where(fits, high, middle - 1)
    tl.store(thresholds + pair, low)


@triton.jit
def _drawn(
    token: tl.tensor,
    free: tl.tensor,
    distances: tl.tensor,
    threshold: tl.tensor,
    length: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """Whether tokens are drawn, and their chances, int32."""
    chance = _chances(_distances(distances, token, free), threshold)
    # Only the lowest 15 bits matter, and with no more of each factor nothing overflows.
    seed = length % _CERTAIN * _OF_LENGTH + tl.program_id(1) * _OF_HEAD
    hurdle = (token % _CERTAIN * _GOLDEN + seed) % _CERTAIN
    return free & (chance > hurdle), chance


@triton.jit
def _count(
    tokens: tl.tensor,
    chosen: tl.tensor,
    distances: tl.tensor,
    thresholds: tl.tensor,
    drawn: tl.tensor,
    sink: int,
    recent: int,
    KV_HEADS: tl.constexpr,
    MAX_TOKENS: tl.constexpr,
    MAX_CHOSEN: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid: sequences, KV heads, parts."""
    length, read, first, last, size = this_sequence(
        tokens, chosen, sink, recent, MAX_TOKENS, MAX_CHOSEN, PARTS, TILE
    )
    if read >= length:
        return
    pair = tl.program_id(0).to(tl.int64) * KV_HEADS + tl.program_id(1)
    distances += pair * MAX_TOKENS
    threshold = tl.load(thresholds + pair)
    found = tl.zeros((TILE,), tl.int32)
    begin = tl.program_id(2) * size
    for start in range(begin, tl.minimum(begin + size, last), TILE):
        token = start + tl.arange(0, TILE)
        free = (token >= first) & (token < last)
        mine, _ = _drawn(token, free, distances, threshold, length)
        found += mine.to(tl.int32)
    tl.store(drawn + pair * PARTS + tl.program_id(2), tl.sum(found, axis=0))


@triton.jit
def _draw(
    tokens: tl.tensor,
    chosen: tl.tensor,
    distances: tl.tensor,
    thresholds: tl.tensor,
    drawn: tl.tensor,
    positions: tl.tensor,
    extras: tl.tensor,
    rows: tl.tensor,
    sink: int,
    recent: int,
    KV_HEADS: tl.constexpr,
    MAX_TOKENS: tl.constexpr,
    MAX_CHOSEN: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid: sequences, KV heads, parts."""
    length, read, first, last, size = this_sequence(
        tokens, chosen, sink, recent, MAX_TOKENS, MAX_CHOSEN, PARTS, TILE
    )
    if read >= length:
        return
    pair = tl.program_id(0).to(tl.int64) * KV_HEADS + tl.program_id(1)
    distances += pair * MAX_TOKENS
    positions += pair * MAX_ROWS
    extras += pair * MAX_ROWS
    threshold = tl.load(thresholds + pair)
    part = tl.arange(0, PARTS)
    count = tl.load(drawn + pair * PARTS + part)
    before = tl.sum(tl.where(part < tl.program_id(2), count, 0), axis=0)
    always = first + length - last
    room = read - always
    room += tl.maximum(room // 4, _SPARE)
    # Of draws that have no room the newest are left out.
    kept = tl.minimum(tl.sum(count, axis=0), room)
    tl.store(rows + pair, always + kept, mask=tl.program_id(2) == 0)
    begin = tl.program_id(2) * size
    for start in range(begin, tl.minimum(begin + size, length), TILE):
        token = start + tl.arange(0, TILE)
        free = (token >= first) & (token < last)
        mine, chance = _drawn(token, free, distances, threshold, length)
        nth = before + tl.cumsum(mine.to(tl.int32), 0) - 1
        before += tl.sum(mine.to(tl.int32), axis=0)
        keep = tl.where(free, mine & (nth < kept), token < length)
        place = tl.where(token < first, token, first + kept + token - last)
        place = tl.where(free, first + nth, place)
        extra = -(tl.log2(tl.maximum(chance, 1).to(tl.float32)) - _CERTAIN_OCTAVES)
        tl.store(positions + place, token, mask=keep)
        tl.store(extras + place, tl.where(free, extra, 0.0), mask=keep)


def draw(
    tokens: Tensor,
    chosen: Tensor,
    budget: Budget,
    workspace: Workspace,
    buffers: LevelBuffers,
) -> None:
    """Write the positions to read, by what ``triton_weights.weigh`` wrote.

    Args:
        tokens: Length of each sequence, int32 [sequences].
        chosen: How many tokens of each are read on average, int32 [sequences].
        budget: Which tokens are always read.
        workspace: With room for the sequences.
        buffers: Of the workspace.
    """
    sizes = limits(workspace)
    grid = len(tokens), sizes["KV_HEADS"]
    step = tokens, chosen, workspace.distances
    known = buffers.thresholds, buffers.drawn
    always = budget.sink_tokens, budget.recent_tokens
    _threshold[grid](
        *(*step, buffers.counts, buffers.thresholds, *always),
        BINS=buffers.counts.shape[2],
        num_warps=8,
        **sizes,
    )
    _count[*grid, sizes["PARTS"]](*step, *known, *always, **sizes)
    _draw[*grid, sizes["PARTS"]](
        *(*step, *known, workspace.positions, buffers.extras, buffers.rows, *always),
        MAX_ROWS=workspace.positions.shape[2],
        **sizes,
    )
