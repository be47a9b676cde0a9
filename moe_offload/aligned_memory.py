# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Memory that a disk or a GPU can write to without another copy."""

from __future__ import annotations

import mmap
from typing import Any

import torch
from torch import Tensor


def aligned_memory(size_bytes: int) -> Tensor:
    """Return zeroed host memory that begins at a page boundary, uint8 [size_bytes].

    It is in large pages where the system has them: experts are read from end to end.

    Args:
        size_bytes: At least 1.
    """
    region = mmap.mmap(-1, size_bytes)
    # Not on every system; without it all works, slower.
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        region.madvise(advice)
    # The tensor keeps the region alive.
    return torch.frombuffer(region, dtype=torch.uint8)


def view_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor in host memory, writable.

    Raises:
        ValueError: The tensor is not contiguous, or not in host memory.
    """
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(
            f"moe_offload: the bytes of a tensor on {tensor.device} with strides "
            f"{tuple(tensor.stride())} were asked for; it must be contiguous and in "
            "host memory."
        )
    rows: Any = tensor.detach().view(-1).view(torch.uint8).numpy()
    return memoryview(rows).cast("B")
