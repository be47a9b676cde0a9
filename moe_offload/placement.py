# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which slot of the arena each expert is computed from.

Some experts of every layer stay for good. The others of a layer share a buffer with
those of every second layer: while a layer computes from one buffer, the pages of the
next one arrive in the other. As many stay of each layer, so that as many pages arrive
while any of them computes.

Source: MoE-Lightning (2411.11217), section 4.1 and appendix A.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .expert_format import ExpertFormat


@dataclass(frozen=True, slots=True)
class Placement:
    """Slots of a model.

    Attributes:
        layers: With experts.
        experts: Of each layer.
        resident: Experts of each layer that stay: those with the lowest numbers.
        buffers: Layers whose other experts have room at once.
    """

    layers: int
    experts: int
    resident: int
    buffers: int = 2

    @classmethod
    def within(
        cls, capacity_bytes: int, layers: int, experts: int, form: ExpertFormat
    ) -> Placement:
        """Return the placement with the most resident experts that fits.

        Args:
            capacity_bytes: Of the arena.
            layers: With experts.
            experts: Of each layer.
            form: Of the pages.

        Raises:
            ValueError: Not even two layers fit.
        """
        slots = capacity_bytes // form.expert_bytes
        if layers * experts <= slots:
            return cls(layers, experts, experts, 0)
        buffers = min(2, layers)
        # layers * resident + buffers * (experts - resident) <= slots
        spare = slots - buffers * experts
        if spare < 0:
            need = buffers * experts * form.expert_bytes
            raise ValueError(
                f"moe_offload: {capacity_bytes / 2**30:.2f} GiB were given for "
                f"experts. The least is two layers of them, {need / 2**30:.2f} GiB: "
                "one computes while the next arrives. Raise "
                "moe_offload.device_memory_gib."
            )
        resident = spare // (layers - buffers) if layers > buffers else experts
        return cls(layers, experts, min(resident, experts), buffers)

    @property
    def streamed(self) -> tuple[int, ...]:
        """Experts of each layer that come and go."""
        return tuple(range(self.resident, self.experts))

    @property
    def slots(self) -> int:
        """Of the arena."""
        return self.layers * self.resident + self.buffers * len(self.streamed)

    def buffer(self, turn: int) -> int:
        """Return the buffer of a layer's turn; consecutive turns have different ones.

        Args:
            turn: Of the layer, counted over all steps.
        """
        return turn % max(self.buffers, 1)

    def slot(self, layer: int, expert: int, buffer: int) -> int:
        """Return where an expert is computed from.

        Args:
            layer: Its layer.
            expert: Its number there.
            buffer: Which of the buffers the layer has this time. With an odd number of
                layers it is another one in the next step.
        """
        if expert < self.resident:
            return layer * self.resident + expert
        first = self.layers * self.resident
        return first + buffer * len(self.streamed) + expert - self.resident

    def slots_of(self, layer: int, buffer: int) -> Tensor:
        """Return the slots of all experts of a layer, int64 [experts]."""
        found = [self.slot(layer, expert, buffer) for expert in range(self.experts)]
        return torch.tensor(found, dtype=torch.int64)
