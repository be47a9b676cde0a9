# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""HashAttention as published: a network of three layers for each query head.

Source: HashAttention (arXiv 2412.14468), section 4: head_dim -> 128 -> 128 -> bits with
SiLU between, on keys and queries after the rotary embedding, 32 bits for each query
head. Written from the description. We hash each key once, when it is cached, and pack
its bits; the reference hashes all keys anew at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from .codes import pack_signs, unpack_signs
from .scorer import Scorer


@dataclass(frozen=True, slots=True)
class HeadNetworks:
    """The networks of all query heads of a layer, for keys or for queries.

    Attributes:
        weights: One for each step, float32 [query heads, inputs, outputs].
        biases: One for each step, float32 [query heads, outputs].

    Raises:
        ValueError: A step does not fit the one before it.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]

    def __post_init__(self) -> None:
        if not self.weights or len(self.weights) != len(self.biases):
            raise ValueError(
                f"hashattn: a network of {len(self.weights)} weights and "
                f"{len(self.biases)} biases; it needs one of each for every step."
            )
        heads, inputs = self.weights[0].shape[:2]
        for weight, bias in zip(self.weights, self.biases, strict=True):
            outputs = weight.shape[2]
            if tuple(weight.shape[:2]) != (heads, inputs) or tuple(bias.shape) != (
                heads,
                outputs,
            ):
                raise ValueError(
                    f"hashattn: a weight of {tuple(weight.shape)} with a bias of "
                    f"{tuple(bias.shape)} where {heads} heads of {inputs} inputs come "
                    "in."
                )
            inputs = outputs

    def __call__(self, vectors: Tensor) -> Tensor:
        """Map vectors, [query heads, n, head_dim], to [query heads, n, bits]."""
        hidden = vectors
        last = len(self.weights) - 1
        for step, (weight, bias) in enumerate(
            zip(self.weights, self.biases, strict=True)
        ):
            hidden = torch.baddbmm(bias.unsqueeze(1), hidden, weight)
            if step < last:
                hidden = silu(hidden)
        return hidden


class PaperScorer(Scorer):
    """Compares 32-bit codes of each query head.

    Args:
        key_networks: For keys.
        query_networks: For queries.
        kv_heads: KV heads; a key is hashed by all query heads of its group.
    """

    def __init__(
        self, key_networks: HeadNetworks, query_networks: HeadNetworks, kv_heads: int
    ) -> None:
        self._keys, self._queries = key_networks, query_networks
        heads, _, bits = key_networks.weights[-1].shape
        self._group = heads // kv_heads
        self.bits = bits * self._group

    def describe(self, keys: Tensor) -> Tensor:
        """Hash keys, uint8 [tokens, kv heads, group * bits / 8], head by head."""
        repeated = keys.float().transpose(0, 1).repeat_interleave(self._group, dim=0)
        codes = pack_signs(self._keys(repeated))  # [query heads, tokens, bytes]
        by_group = torch.unflatten(codes, 0, (-1, self._group)).permute(2, 0, 1, 3)
        return by_group.flatten(2)

    def unpack(self, described: Tensor) -> Tensor:
        """Return the signs of bits, float32 [tokens, kv heads, group * bits]."""
        return unpack_signs(described)

    def score(self, query: Tensor, described: Tensor) -> Tensor:
        """Agreement of the head's codes, float32 [..., query heads, tokens]."""
        rows = query.float().reshape(-1, *query.shape[-2:]).transpose(0, 1)
        projected = self._queries(rows)  # [query heads, n, bits]
        asked = torch.where(projected >= 0, 1.0, -1.0)
        packed = described.dtype == torch.uint8
        signs = self.unpack(described) if packed else described
        # [tokens, kv heads, group * bits] to [query heads, bits, tokens]
        stored = torch.unflatten(signs, 2, (self._group, -1)).permute(1, 2, 3, 0)
        # The product of signs is the agreement of codes, exactly.
        found = asked @ stored.flatten(0, 1)
        return found.transpose(0, 1).reshape(*query.shape[:-1], -1)
