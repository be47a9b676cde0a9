# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Codes and decode attention by Triton on the KV cache of vLLM's Triton backend.

Not run on a GPU; see triton_encode.py.

Nothing here waits for the device or allocates while it decodes, and grids depend on
sizes that the host knows, so that a step can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .budget import Budget
from .hash_file import LayerHash
from .scorer_levels import LevelHash
from .triton_attention import attend
from .triton_cache import RowCache
from .triton_draw import draw
from .triton_encode import encode_keys, encode_queries
from .triton_levels import ask, encode_levels
from .triton_offsets import find_offsets
from .triton_scan import scan
from .triton_select import choose
from .triton_weights import find_distances
from .triton_workspace import LevelBuffers, SignBuffers, Workspace


def store_codes(cache: RowCache, keys: Tensor, slots: Tensor, maps: LayerHash) -> None:
    """Write the codes of new keys; vLLM writes the keys and values.

    Args:
        cache: Of the layer.
        keys: [tokens, kv heads, head_dim]; copied unless each head is contiguous.
        slots: ``block * block_tokens + offset`` of each token, int64 [tokens]; below 0
            for padding, which is skipped.
        maps: On the device of the cache.
    """
    keys = keys if keys.stride(2) == 1 else keys.contiguous()
    encode = encode_levels if isinstance(maps, LevelHash) else encode_keys
    encode(keys, slots, maps.key_map, maps.key_bias, cache.codes)


def decode(
    cache: RowCache,
    query: Tensor,
    maps: LayerHash | None,
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
        chosen: How many tokens of each are read, on average where they are drawn, int32
            [sequences]; all of a shorter sequence. At least those always read are.
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
    together = len(workspace.positions)
    for start in range(0, len(query), together):
        some = slice(start, start + together)
        step = blocks[some], tokens[some], tokens[some]
        if maps is not None:
            step = blocks[some], tokens[some], chosen[some]
            _choose(cache.codes, query[some], maps, *step, budget, workspace)
        attend(cache.data, query[some], *step, budget, scale, workspace, out[some])
    return out


def _choose(
    codes: Tensor,
    query: Tensor,
    maps: LayerHash,
    blocks: Tensor,
    tokens: Tensor,
    chosen: Tensor,
    budget: Budget,
    workspace: Workspace,
) -> None:
    """Write the positions to read; `codes` are those of the cache."""
    buffers, step = workspace.buffers, (blocks, tokens, chosen)
    if isinstance(maps, LevelHash):
        assert isinstance(buffers, LevelBuffers)
        ask(query, maps.query_map, buffers.asked, buffers.steps)
        find_offsets(codes, maps.share, *step, budget, workspace, buffers)
        find_distances(codes, *step, budget, workspace, buffers)
        draw(tokens, chosen, budget, workspace, buffers)
    else:
        assert isinstance(buffers, SignBuffers)
        asked = buffers.codes[: len(query)]
        encode_queries(query, maps.query_map, maps.query_bias, asked)
        scan(codes, asked, *step, budget, workspace, buffers)
        choose(tokens, chosen, budget, workspace, buffers)


def _check_step(
    cache: RowCache,
    query: Tensor,
    maps: LayerHash | None,
    blocks: Tensor,
    out: Tensor,
    budget: Budget,
    workspace: Workspace,
) -> None:
    _, heads, _, head_dim = workspace.sums.shape
    _, kv_heads, max_tokens = workspace.distances.shape
    sizes = {
        "query": (query.shape[1:], (heads, head_dim)),
        "out": (out.shape, query.shape),
        "KV cache": ((cache.data.shape[1], cache.head_dim), (kv_heads, head_dim)),
        "block table": (blocks.shape[:1], query.shape[:1]),
    }
    if maps is not None:
        columns, words = _widths(maps, workspace)
        sizes["codes"] = (cache.codes.shape[3:], (words,))
        sizes["key map"] = (maps.key_map.shape, (kv_heads, head_dim, columns))
        sizes["query map"] = (maps.query_map.shape, (heads, head_dim, columns))
    for name, (found, wanted) in sizes.items():
        if tuple(found) != tuple(wanted):
            raise ValueError(
                f"hashattn: a {name} of {tuple(found)} was given; it must be "
                f"{tuple(wanted)} for this query, cache and workspace."
            )
    most = budget.tokens(max_tokens)
    if maps is not None and most > workspace.max_chosen:
        raise ValueError(
            f"hashattn: a budget of up to {most} tokens with a workspace for "
            f"{workspace.max_chosen}; allocate a larger one."
        )


def _widths(maps: LayerHash, workspace: Workspace) -> tuple[int, int]:
    """Return columns of maps and words of codes that go with a workspace."""
    buffers, levels = workspace.buffers, isinstance(maps, LevelHash)
    if levels != isinstance(buffers, LevelBuffers):
        found, made = ("levels", "signs") if levels else ("signs", "levels")
        raise ValueError(
            f"hashattn: a hash of {found} was given with a workspace for {made}; "
            "allocate one for the hash."
        )
    if isinstance(buffers, LevelBuffers):
        channels = buffers.asked.shape[2]
        return channels, channels // 8
    words = buffers.codes.shape[2]
    return 32 * words, words
