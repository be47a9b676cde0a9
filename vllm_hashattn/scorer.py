# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What scores the tokens of one layer's context, and the scorers without a hash.

A scorer sees keys once, when they are written to the KV cache, and keeps a small
*description* of each. At a decode step it scores all tokens from the descriptions and
the query alone; keys and values are then read only where the scores are best.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Scorer(ABC):
    """Scores the tokens of one layer.

    Attributes:
        bits: Size of a token's description for one KV head, in bits.
        page_tokens: Consecutive tokens that are described together, as one page.
    """

    bits: int
    page_tokens: int = 1

    @abstractmethod
    def describe(self, keys: Tensor) -> Tensor:
        """Describe keys as they are cached, after the rotary embedding.

        Args:
            keys: [tokens, kv heads, head_dim].

        Returns:
            [tokens, kv heads, ...].
        """

    def unpack(self, described: Tensor) -> Tensor:
        """Return descriptions as they are quickest to score, where room matters less.

        Args:
            described: What :meth:`describe` returned.
        """
        return described

    @abstractmethod
    def score(self, query: Tensor, described: Tensor) -> Tensor:
        """Score every token for every query head.

        Args:
            query: Of one decode step, or of many, [..., query heads, head_dim].
            described: What :meth:`describe` or :meth:`unpack` returned; the same for
                all of them.

        Returns:
            Larger is more important, float32 [..., query heads, tokens].
        """


def of_group(scores: Tensor, kv_heads: int) -> Tensor:
    """Sum the scores of the query heads that share a KV head.

    One choice per KV head reads each chosen key once. Choices of single query heads,
    united, read three to five times as much for little gain.

    Args:
        scores: [..., query heads, tokens].
        kv_heads: KV heads.

    Returns:
        [..., kv heads, tokens].
    """
    return torch.unflatten(scores, -2, (kv_heads, -1)).sum(dim=-2)


def by_group(vectors: Tensor, matrices: Tensor) -> Tensor:
    """Multiply vectors of query heads by the matrix of the KV head they share.

    The vectors of all leading dimensions go into one product for each KV head, because
    a broadcast would copy the matrices for each of them.

    Args:
        vectors: [..., query heads, inputs].
        matrices: [kv heads, inputs, outputs].

    Returns:
        [..., query heads, outputs].
    """
    kv_heads, _, outputs = matrices.shape
    *leading, heads, inputs = vectors.shape
    rows = vectors.reshape(-1, kv_heads, heads // kv_heads, inputs).transpose(0, 1)
    found = rows.reshape(kv_heads, -1, inputs) @ matrices
    found = torch.unflatten(found, 1, (-1, heads // kv_heads)).transpose(0, 1)
    return found.reshape(*leading, heads, outputs)


def check_shapes(what: str, maps: object, expected: dict[str, tuple[int, ...]]) -> None:
    """Refuse maps that do not belong together.

    Args:
        what: For the message.
        maps: Of one layer, with a ``key_map``.
        expected: Shapes of the others, by name.

    Raises:
        ValueError: One has another shape.
    """
    key_map = tuple(maps.key_map.shape)  # type: ignore[attr-defined]
    for name, shape in expected.items():
        found = tuple(getattr(maps, name).shape)
        if found != shape:
            raise ValueError(
                f"hashattn: {name} of a {what} has the shape {found}; with a key_map "
                f"of {key_map} it must be {shape}."
            )


class OracleScorer(Scorer):
    """The true dot products: what any description of keys can only approach."""

    def __init__(self, head_dim: int) -> None:
        """Keep keys of `head_dim` as 16-bit numbers."""
        self.bits = 16 * head_dim

    def describe(self, keys: Tensor) -> Tensor:
        """Keep the keys."""
        return keys

    def score(self, query: Tensor, described: Tensor) -> Tensor:
        """Dot products, float32 [..., query heads, tokens]."""
        return by_group(query.float(), described.float().permute(1, 2, 0))


class WindowScorer(Scorer):
    """No scores: of equal ones the newest are chosen, which is a sliding window."""

    bits = 0

    def describe(self, keys: Tensor) -> Tensor:
        """Keep nothing, [tokens, kv heads, 0]."""
        return keys[..., :0]

    def score(self, query: Tensor, described: Tensor) -> Tensor:
        """Zeros, float32 [..., query heads, tokens]."""
        return torch.zeros(*query.shape[:-1], len(described), device=query.device)


class RandomScorer(WindowScorer):
    """Random scores: what choosing as many tokens is worth by itself."""

    def __init__(self, seed: int = 0) -> None:
        """Draw from a generator of its own, so that runs can be repeated."""
        self._random = torch.Generator().manual_seed(seed)

    def score(self, query: Tensor, described: Tensor) -> Tensor:
        """Uniform numbers, float32 [..., query heads, tokens]."""
        size = *query.shape[:-1], len(described)
        return torch.rand(size, generator=self._random).to(query.device)
