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

from .codes import agreement, pack_signs, unpack_signs
from .scorer import Scorer


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
        expected = {
            "key_bias": (kv_heads, bits),
            "query_map": (heads, head_dim, bits),
            "query_bias": (heads, bits),
        }
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(
                    f"hashattn: {name} of a linear hash has the shape {found}; with a "
                    f"key_map of {tuple(self.key_map.shape)} it must be {shape}."
                )
        if heads % kv_heads or bits % 8:
            raise ValueError(
                f"hashattn: a linear hash of {bits} bits for {heads} query heads and "
                f"{kv_heads} KV heads; bits must be a multiple of 8, and the query "
                "heads a multiple of the KV heads."
            )


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

    def score(self, query: Tensor, described: Tensor) -> Tensor:
        """Agreement of codes, or of the projection with the signs of the key."""
        maps = self._maps
        projected = torch.einsum("hd,hdb->hb", query.float(), maps.query_map)
        projected = projected + maps.query_bias
        codes = described.transpose(0, 1)  # [kv heads, tokens, bytes]
        groups = torch.unflatten(projected, 0, (codes.shape[0], -1))
        if self._asymmetric:
            return (groups @ unpack_signs(codes).mT).flatten(0, 1)
        return (
            agreement(pack_signs(groups).unsqueeze(2), codes.unsqueeze(1))
            .float()
            .flatten(0, 1)
        )
