# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Large pages of memory for the KV cache, whose tokens are read here and there."""

from __future__ import annotations

import ctypes
import mmap

from torch import Tensor


def ask_for_huge_pages(tensor: Tensor) -> bool:
    """Have Linux back a tensor's memory with pages of 2 MiB where it can.

    With pages of 4 KiB the CPU looks up the address of nearly every token. What was
    written before stays as it is until the kernel gets to it.

    Args:
        tensor: On the CPU.

    Returns:
        Whether the system takes the advice; nothing is lost where it does not.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return False
    page = mmap.PAGESIZE
    storage = tensor.untyped_storage()
    start = -(-storage.data_ptr() // page) * page
    end = (storage.data_ptr() + storage.nbytes()) // page * page
    if end <= start:
        return False
    madvise = ctypes.CDLL(None).madvise
    size = ctypes.c_size_t(end - start)
    return bool(madvise(ctypes.c_void_p(start), size, advice) == 0)
