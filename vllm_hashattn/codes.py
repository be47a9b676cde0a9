# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Hash codes: how bits are made, packed and compared.

Every kernel follows the rules of this file:

* a bit is 1 where the projection is at least 0, so a projection of exactly 0 counts as
  positive (the reference implementation of the paper uses ``torch.sign``, whose 0
  belongs to neither side and breaks the identity below);
* bit ``j`` of a code is bit ``j % 8`` (least significant first) of byte ``j // 8``;
* two codes agree by ``bits - 2 * hamming``, the dot product of their signs.

Source: HashAttention (arXiv 2412.14468), section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Bits that are set in each byte value, uint8 [256].
_POPCOUNT = torch.tensor([bin(value).count("1") for value in range(256)]).to(
    torch.uint8
)
_WEIGHTS = torch.tensor([1 << place for place in range(8)], dtype=torch.uint8)


def pack_signs(projections: Tensor) -> Tensor:
    """Return the codes of projected vectors.

    Args:
        projections: Any floating dtype, [..., bits]; bits a multiple of 8.

    Returns:
        uint8 [..., bits / 8].

    Raises:
        ValueError: The number of bits is no multiple of 8.
    """
    bits = projections.shape[-1]
    if bits % 8:
        raise ValueError(
            f"hashattn: a code of {bits} bits was asked for; codes are whole bytes, so "
            "the number of bits must be a multiple of 8."
        )
    ones = torch.unflatten((projections >= 0).to(torch.uint8), -1, (bits // 8, 8))
    weights = _WEIGHTS.to(projections.device)
    return (ones * weights).sum(dim=-1, dtype=torch.int32).to(torch.uint8)


def unpack_signs(codes: Tensor) -> Tensor:
    """Return the signs of codes.

    Args:
        codes: uint8 [..., bytes].

    Returns:
        float32 [..., 8 * bytes], each +1 or -1.
    """
    weights = _WEIGHTS.to(codes.device)
    ones = (codes.unsqueeze(-1) & weights) != 0
    return ones.flatten(-2).to(torch.float32) * 2.0 - 1.0


def agreement(one: Tensor, other: Tensor) -> Tensor:
    """Return by how much more bits agree than disagree.

    Args:
        one: uint8 [..., bytes].
        other: uint8, broadcastable to `one`.

    Returns:
        int32 [...], from ``-8 * bytes`` to ``8 * bytes``.
    """
    table = _POPCOUNT.to(one.device)
    differing = table[(one ^ other).to(torch.int32)].sum(dim=-1, dtype=torch.int32)
    return 8 * one.shape[-1] - 2 * differing
