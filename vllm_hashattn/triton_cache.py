# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The KV cache of vLLM's Triton backend, with a code behind each key and value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
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
