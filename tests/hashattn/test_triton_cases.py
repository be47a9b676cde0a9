# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Caches of the layout of vLLM's Triton backend, for tests of the Triton kernels."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from vllm_hashattn.scorer_linear import LinearHash

SPARE_BLOCKS = 2
# A block that does not exist: to read or write it ends the process.
_NO_BLOCK = 1 << 24


@dataclass(frozen=True)
class RowCase:
    """Sequences in a paged cache of rows.

    Attributes:
        data: [blocks, kv heads, block_tokens, 2 * head_dim and the code].
        blocks: int32 [sequences, blocks].
        tokens: int32 [sequences].
        keys: Of each sequence, [tokens, kv heads, head_dim].
        values: Likewise.
    """

    data: Tensor
    blocks: Tensor
    tokens: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    def place(self, sequence: int) -> tuple[Tensor, Tensor]:
        """Blocks and offsets in them of a sequence's tokens, int64 [tokens]."""
        size = self.data.shape[2]
        token = torch.arange(len(self.keys[sequence]))
        return self.blocks[sequence].to(torch.int64)[token // size], token % size

    def slots(self, sequence: int) -> Tensor:
        """As vLLM counts them, int64 [tokens]."""
        block, offset = self.place(sequence)
        return block * self.data.shape[2] + offset

    def codes(self, sequence: int) -> Tensor:
        """Codes in the cache, uint8 [tokens, kv heads, bytes]."""
        block, offset = self.place(sequence)
        behind = 2 * self.keys[0].shape[2]
        return self.data[block, :, offset, behind:].contiguous().view(torch.uint8)

    def put_codes(self, sequence: int, codes: Tensor) -> None:
        """Write codes, uint8 [tokens, kv heads, bytes]."""
        block, offset = self.place(sequence)
        behind = 2 * self.keys[0].shape[2]
        self.data[block, :, offset, behind:] = codes.view(self.data.dtype)


def row_case(
    lengths: list[int],
    kv_heads: int,
    dim: int,
    dtype: torch.dtype = torch.float32,
    code_bytes: int = 16,
    block_tokens: int = 16,
    *,
    token_major: bool = False,
    seed: int = 0,
) -> RowCase:
    """Write keys and values into blocks in random order.

    Args:
        lengths: Of the sequences, in tokens.
        kv_heads: KV heads.
        dim: Of a key and of a value.
        dtype: Of keys and values.
        code_bytes: Room behind them.
        block_tokens: Tokens of a block.
        token_major: Whether a block's tokens, not its heads, lie farther apart.
        seed: Of the contents.
    """
    random = torch.Generator().manual_seed(seed)
    per_sequence = [-(-length // block_tokens) for length in lengths]
    number = sum(per_sequence) + SPARE_BLOCKS
    row_bytes = 2 * dim * dtype.itemsize + code_bytes
    # What is not written must not matter: it is not even a number.
    if token_major:
        shape = (number, block_tokens, kv_heads, row_bytes)
        data = torch.full(shape, 0xFF, dtype=torch.uint8).view(dtype).transpose(1, 2)
    else:
        shape = (number, kv_heads, block_tokens, row_bytes)
        data = torch.full(shape, 0xFF, dtype=torch.uint8).view(dtype)
    # Block 0 stays unused, as in vLLM: what reads it by mistake finds no numbers.
    order = 1 + torch.randperm(number - 1, generator=random).to(torch.int32)
    width = max(per_sequence, default=0) + 1
    blocks = torch.full((len(lengths), width), _NO_BLOCK, dtype=torch.int32)
    case = RowCase(data, blocks, torch.tensor(lengths, dtype=torch.int32), [], [])
    used = 0
    for i, (length, count) in enumerate(zip(lengths, per_sequence, strict=True)):
        blocks[i, :count] = order[used : used + count]
        used += count
        size = (length, kv_heads, dim)
        case.keys.append(torch.randn(size, generator=random).to(dtype))
        case.values.append(torch.randn(size, generator=random).to(dtype))
        block, offset = case.place(i)
        data[block, :, offset, :dim] = case.keys[i]
        data[block, :, offset, dim : 2 * dim] = case.values[i]
    return case


def random_maps(
    heads: int, kv_heads: int, dim: int, bits: int, seed: int = 0
) -> LinearHash:
    random = torch.Generator().manual_seed(seed)
    shapes = (kv_heads, dim, bits), (kv_heads, bits), (heads, dim, bits), (heads, bits)
    return LinearHash(*(torch.randn(shape, generator=random) for shape in shapes))


def whole_maps(heads: int, kv_heads: int, dim: int, bits: int) -> LinearHash:
    """Maps of whole numbers, so that sums of whole numbers are exact in any order."""
    maps = random_maps(heads, kv_heads, dim, bits)
    parts = maps.key_map, maps.key_bias, maps.query_map, maps.query_bias
    return LinearHash(*((2 * part).round() for part in parts))


@pytest.mark.parametrize("token_major", [False, True])
def test_a_case_holds_what_it_says(token_major: bool) -> None:
    case = row_case([5, 0, 40], 2, 64, torch.float16, token_major=token_major)
    codes = torch.randint(0, 256, (40, 2, 16)).to(torch.uint8)
    case.put_codes(2, codes)
    assert torch.equal(case.codes(2), codes)
    block, offset = case.place(2)
    rows = case.data[block, :, offset]
    assert torch.equal(rows[..., :64], case.keys[2])
    assert torch.equal(rows[..., 64:128], case.values[2])
    assert (case.codes(0) == 0xFF).all()
    apart = case.data.stride()
    assert (apart[2] > apart[1]) == token_major
