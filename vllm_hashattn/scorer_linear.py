# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The default scorer: one linear hash of each key, shared by the heads of its group.

The paper hashes a key once for every query head with a network of three layers. One
linear map for each KV head with more bits takes the same room, costs a fraction and
finds more of the tokens that matter (as HATA, arXiv 2506.02572, found too).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .codes import pack_signs, unpack_signs
from .scorer import Scorer, by_group, check_shapes


@dataclass(frozen=True, slots=True)
class LinearHash:
    """Maps of one layer.

    Attributes:
        key_map: float32 [kv heads, head_dim, bits].
        key_bias: float32 [kv heads, bits].
        query_map: float32 [query heads, head_dim, bits].
        query_bias: float32 [query heads, bits].

    Raises:
        ValueError: The shapes do not belong together.
    """

    key_map: Tensor
    key_bias: Tensor
    query_map: Tensor
    query_bias: Tensor

    def __post_init__(self) -> None:
        kv_heads, head_dim, bits = self.key_map.shape
        heads = self.query_map.shape[0]
        check_shapes(
            "linear hash",
            self,
            {
                "key_bias": (kv_heads, bits),
                "query_map": (heads, head_dim, bits),
                "query_bias": (heads, bits),
            },
        )
        if heads % kv_heads or bits % 8:
            raise ValueError(
                f"hashattn: a linear hash of {bits} bits for {heads} query heads and "
                f"{kv_heads} KV heads; bits must be a multiple of 8, and the query "
                "heads a multiple of the KV heads."
            )

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.query_map.shape[0]

    @property
    def head_dim(self) -> int:
        """Channels of a key."""
        return self.key_map.shape[1]

    @property
    def bits(self) -> int:
        """Of a key's code for one KV head."""
        return self.key_map.shape[2]


def random_hash(
    heads: int, kv_heads: int, head_dim: int, bits: int, random: torch.Generator
) -> LinearHash:
    """Return planes that nobody trained, for timing: what is chosen does not matter."""
    shapes = (
        *((kv_heads, head_dim, bits), (kv_heads, bits)),
        *((heads, head_dim, bits), (heads, bits)),
    )
    return LinearHash(*(torch.randn(shape, generator=random) for shape in shapes))


class LinearScorer(Scorer):
    """Compares signs of linear maps.

    Args:
        maps: Of this layer.
        asymmetric: Leave the query's projection as it is, and take only the key's
            signs. Keeps more of the query at no cost in memory; the scan is dearer.
    """

    def __init__(self, maps: LinearHash, *, asymmetric: bool = False) -> None:
        self._maps = maps
        self._asymmetric = asymmetric
        self.bits = maps.key_map.shape[2]

    def describe(self, keys: Tensor) -> Tensor:
        """Hash keys, uint8 [tokens, kv heads, bits / 8]."""
        maps = self._maps
        projected = torch.einsum("thd,hdb->thb", keys.float(), maps.key_map)
        return pack_signs(projected + maps.key_bias)

    def unpack(self, described: Tensor) -> Tensor:
        """Return the signs of bits, float32 [tokens, kv heads, bits]."""
        return unpack_signs(described)

    def score(self, query: Tensor, described: Tensor) -> Tensor:
        """Agreement of codes, or of the projection with the signs of the key."""
        maps = self._maps
        projected = torch.einsum("...hd,hdb->...hb", query.float(), maps.query_map)
        projected = projected + maps.query_bias
        if not self._asymmetric:
            # Agreement is the product of signs, and exact: whole numbers, all small.
            projected = torch.where(projected >= 0, 1.0, -1.0)
        packed = described.dtype == torch.uint8
        signs = self.unpack(described) if packed else described
        return by_group(projected, signs.permute(1, 2, 0))
