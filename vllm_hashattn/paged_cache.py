# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How keys, values and codes lie in the KV cache of one layer on CPUs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PagedCache:
    """The KV cache of one layer as the kernels see it.

    A cell belongs to one block and one KV head: rows of a key and its value, side by
    side, for each token of the block, then a code for each token.

    Attributes:
        data: uint8 [blocks, kv heads, bytes of a cell], the last dimension contiguous.
        block_tokens: Tokens of a block.
        head_dim: Of a key and of a value.
        code_bytes: Of a key's code.
        dtype: Of keys and values.

    Raises:
        ValueError: The cells have another size.
    """

    data: Tensor
    block_tokens: int
    head_dim: int
    code_bytes: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        cell = self.block_tokens * (self.row_bytes + self.code_bytes)
        if self.data.dtype != torch.uint8 or self.data.shape[2] != cell:
            raise ValueError(
                f"hashattn: a KV cache of {self.data.dtype} with cells of "
                f"{self.data.shape[2]}; {self.block_tokens} tokens with heads of "
                f"{self.head_dim} in {self.dtype} and codes of {self.code_bytes} bytes "
                f"need cells of {cell} bytes."
            )

    @property
    def row_bytes(self) -> int:
        """Bytes of a key and its value."""
        return 2 * self.head_dim * self.dtype.itemsize

    def rows(self) -> Tensor:
        """Keys and values, [blocks, kv heads, block_tokens, 2, head_dim]; a view."""
        size = self.block_tokens * self.row_bytes
        flat = self.data[:, :, :size].view(self.dtype)
        return torch.unflatten(flat, 2, (self.block_tokens, 2, self.head_dim))

    def codes(self) -> Tensor:
        """Codes, uint8 [blocks, kv heads, block_tokens, code_bytes]; a view."""
        start = self.block_tokens * self.row_bytes
        flat = self.data[:, :, start:]
        return torch.unflatten(flat, 2, (self.block_tokens, self.code_bytes))

    def read(self, blocks: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Gather the beginning of a sequence; a copy.

        Args:
            blocks: Block table, [blocks].
            tokens: How many.

        Returns:
            Keys, values and codes, each [tokens, kv heads, ...].
        """
        used = blocks[: -(-tokens // self.block_tokens)].to(torch.int64)
        rows, codes = (
            part[used].transpose(1, 2).flatten(0, 1)[:tokens]
            for part in (self.rows(), self.codes())
        )
        return rows[:, :, 0], rows[:, :, 1], codes
