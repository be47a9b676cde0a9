# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The memory that experts are computed from, which never grows.

A slot holds both pages of an expert. The slots of each part are one tensor, as the
kernel takes a matrix for each expert of a layer; numbers of experts become numbers of
slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .aligned_memory import aligned_memory
from .expert_format import ALIGNMENT, ExpertFormat, Part


class ArenaFullError(MemoryError):
    """More slots were asked for than fit; says what is needed."""


class Arena:
    """Slots for experts, of a capacity that was given.

    Args:
        capacity_bytes: Of the memory.
        form: Of the pages.
        slots: How many experts are held at once.
        device: Where; of a GPU not run on hardware.

    Attributes:
        slots: How many experts are held at once.
        form: Of the pages.

    Raises:
        ArenaFullError: So many do not fit.
    """

    def __init__(
        self,
        capacity_bytes: int,
        form: ExpertFormat,
        slots: int,
        device: torch.device | None = None,
    ) -> None:
        if slots * form.expert_bytes > capacity_bytes:
            raise ArenaFullError(
                f"moe_offload: {slots} experts of {form.expert_bytes / 2**20:.1f} MiB "
                f"were to be held at once, which are "
                f"{slots * form.expert_bytes / 2**30:.2f} GiB; "
                f"{capacity_bytes / 2**30:.2f} GiB were given."
            )
        self.slots = slots
        self.form = form
        self._parts = {part: self._made(part, device) for part in Part}

    def _made(self, part: Part, device: torch.device | None) -> Tensor:
        shape = (self.slots, *self.form.shape(part))
        if device is None or device.type == "cpu":
            size = max(self.slots * self.form.page_bytes(part), ALIGNMENT)
            memory = aligned_memory(size)[: self.slots * self.form.page_bytes(part)]
            return memory.view(self.form.dtype).view(shape)
        return torch.zeros(shape, dtype=self.form.dtype, device=device)

    def weights(self, part: Part) -> Tensor:
        """Return a page of all slots, [slots, *page]."""
        return self._parts[part]

    def slot(self, number: int, part: Part) -> Tensor:
        """Return a page of one slot."""
        return self._parts[part][number]
