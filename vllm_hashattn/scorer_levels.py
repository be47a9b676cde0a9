# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The default scorer: a few channels of each key in sixteen levels.

A code of signs says on which side of its planes a key lies. As many bits say more as
fewer channels with levels: a linear map takes each key to 32 channels, of which four
bits each are kept, and the query's channels in eight bits make a dot product with them.
That is an estimate of the attention logit itself, so tokens can be drawn by their
weight (:mod:`~vllm_hashattn.weighted_choice`) and not only ranked.

Rules that every kernel follows:

* level: the integer part of the projection, from 0 to 15;
* channel ``j`` of ``C`` is the low half of byte ``j`` for ``j < C / 2``, else the high
  half of byte ``j - C / 2``;
* a query's unit is its largest channel divided by 127, and its channels are rounded to
  whole units, ties to even.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .scorer import Scorer, by_group, check_shapes

LEVELS = 16
MOST_ASKED = 127


@dataclass(frozen=True, slots=True)
class LevelHash:
    """Maps of one layer.

    Attributes:
        key_map: float32 [kv heads, head_dim, channels]; makes levels of keys.
        key_bias: float32 [kv heads, channels].
        query_map: float32 [query heads, head_dim, channels]; its product with levels
            is the logit of attention, but for a constant of each query.
        share: Of attention that goes to tokens not always read, as a mean, above 0,
            float32 [query heads]. Says which heads of a group matter more.

    Raises:
        ValueError: The shapes do not belong together.
    """

    key_map: Tensor
    key_bias: Tensor
    query_map: Tensor
    share: Tensor

    def __post_init__(self) -> None:
        kv_heads, head_dim, channels = self.key_map.shape
        heads = self.query_map.shape[0]
        check_shapes(
            "hash of levels",
            self,
            {
                "key_bias": (kv_heads, channels),
                "query_map": (heads, head_dim, channels),
                "share": (heads,),
            },
        )
        if heads % kv_heads or channels % 16 or not channels:
            raise ValueError(
                f"hashattn: a hash of {channels} channels for {heads} query heads and "
                f"{kv_heads} KV heads; channels must be a multiple of 16, and the "
                "query heads a multiple of the KV heads."
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
        return 4 * self.key_map.shape[2]


def random_levels(
    heads: int, kv_heads: int, head_dim: int, bits: int, random: torch.Generator
) -> LevelHash:
    """Return maps that nobody trained, for timing: what is chosen does not matter.

    Keys of a normal distribution use the levels as trained maps do.
    """
    channels = bits // 4
    width = head_dim**-0.5
    return LevelHash(
        torch.randn(kv_heads, head_dim, channels, generator=random) * 3.0 * width,
        torch.full((kv_heads, channels), LEVELS / 2),
        torch.randn(heads, head_dim, channels, generator=random) * 0.1 * width,
        torch.full((heads,), 0.5),
    )


def pack_levels(levels: Tensor) -> Tensor:
    """Return codes, uint8 [..., channels / 2], of levels, uint8 [..., channels]."""
    half = levels.shape[-1] // 2
    return levels[..., :half] | (levels[..., half:] << 4)


def unpack_levels(codes: Tensor) -> Tensor:
    """Return levels, uint8 [..., channels], of codes, uint8 [..., channels / 2]."""
    return torch.cat([codes & 15, codes >> 4], dim=-1)


class LevelScorer(Scorer):
    """Estimates logits from levels.

    Args:
        maps: Of this layer.
    """

    def __init__(self, maps: LevelHash) -> None:
        self.maps = maps
        self.bits = maps.bits

    def describe(self, keys: Tensor) -> Tensor:
        """Find the levels of keys, uint8 [tokens, kv heads, channels / 2]."""
        maps = self.maps
        projected = torch.einsum("thd,hdc->thc", keys.float(), maps.key_map)
        levels = (projected + maps.key_bias).floor().clamp(0, LEVELS - 1)
        return pack_levels(levels.to(torch.uint8))

    def unpack(self, described: Tensor) -> Tensor:
        """Return levels, float32 [tokens, kv heads, channels]."""
        return unpack_levels(described).float()

    def asked(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Round the channels of queries to units.

        Args:
            query: [..., query heads, head_dim].

        Returns:
            Whole numbers from -127 to 127, float32 [..., query heads, channels], and
            the unit of each head, float32 [..., query heads].
        """
        projected = torch.einsum("...hd,hdc->...hc", query.float(), self.maps.query_map)
        units = projected.abs().amax(dim=-1) / MOST_ASKED
        safe = units.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
        return (projected / safe).round(), units

    def dots(self, asked: Tensor, described: Tensor) -> Tensor:
        """Multiply channels in units by levels.

        Args:
            asked: From :meth:`asked`.
            described: What :meth:`describe` or :meth:`unpack` returned.

        Returns:
            Whole numbers, exact, float32 [..., query heads, tokens].
        """
        packed = described.dtype == torch.uint8
        levels = self.unpack(described) if packed else described
        return by_group(asked, levels.permute(1, 2, 0))

    def score(self, query: Tensor, described: Tensor) -> Tensor:
        """Logits, but for a constant of each query."""
        asked, units = self.asked(query)
        return self.dots(asked, described) * units.unsqueeze(-1)
