# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Experts in the arena: which are there, and bringing others in.

A model's layers are computed in turns, over and over. A turn is one layer in one step,
counted from the start of the server; consecutive turns have different buffers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .arena import Arena
from .expert_format import Part
from .page_store import Page, PageStore
from .placement import Placement

_EMPTY = -1


class StalePageError(RuntimeError):
    """A layer was to compute from pages of another: the schedule is wrong."""


class ExpertMemory:
    """The arena of a model, filled from its store.

    Args:
        store: Where all experts are.
        arena: With the slots of the placement.
        placement: Which slot each expert has.
        poison: Whether slots are filled with NaN when their layer has been computed, so
            that a read that comes too late is seen in the results. For tests.

    Attributes:
        store: Where all experts are.
        arena: What the kernel reads.
        placement: Which slot each expert has.
        streamed_pages: Expert and part of the pages of a layer that come and go, in
            order.
        moved_bytes: Brought in since the start.
        late_pages: Pages that a layer waited for because nobody had asked for them.
    """

    def __init__(
        self,
        store: PageStore,
        arena: Arena,
        placement: Placement,
        poison: bool = False,
    ) -> None:
        self.store = store
        self.arena = arena
        self.placement = placement
        self.moved_bytes = 0
        self.late_pages = 0
        self.streamed_pages = tuple(
            (expert, part) for expert in placement.streamed for part in Part
        )
        self._poison = poison
        # The turn whose page is in a slot.
        self._turns = np.full((arena.slots, len(Part)), _EMPTY, np.int64)
        buffers = max(placement.buffers, 1)
        self._slots = [
            [placement.slots_of(layer, buffer) for buffer in range(buffers)]
            for layer in range(placement.layers)
        ]
        for layer in range(placement.layers):
            for expert in range(placement.resident):
                for part in Part:
                    slot = placement.slot(layer, expert, 0)
                    store.read(Page(layer, expert, part), arena.slot(slot, part))

    def load(self, turn: int, pages: Sequence[tuple[int, Part]]) -> None:
        """Bring pages in for a turn; returns when they are there.

        Args:
            turn: Whose they are.
            pages: Expert and part of each.

        Raises:
            OSError: One could not be read.
        """
        layer, buffer = self._place(turn)
        for expert, part in pages:
            slot = self.placement.slot(layer, expert, buffer)
            # Nobody may believe in it while it is being overwritten.
            self._turns[slot, part] = _EMPTY
            self.store.read(Page(layer, expert, part), self.arena.slot(slot, part))
            self._turns[slot, part] = turn
            self.moved_bytes += self.store.form.page_bytes(part)

    def missing(self, turn: int) -> list[tuple[int, Part]]:
        """Return which pages of a turn are not there, in order."""
        first = self.placement.resident
        absent = self._turns[self._streamed(turn)] != turn
        return [(first + row, Part(part)) for row, part in np.argwhere(absent).tolist()]

    def slots(self, turn: int) -> Tensor:
        """Return the slots of a layer's experts, int64 [experts].

        Args:
            turn: Of the layer.

        Raises:
            StalePageError: Not all of them are there.
        """
        missing = self.missing(turn)
        if missing:
            raise StalePageError(
                f"moe_offload: turn {turn} lacks {len(missing)} pages, the first is "
                f"{missing[0]}."
            )
        layer, buffer = self._place(turn)
        return self._slots[layer][buffer]

    def slots_now(self, turn: int) -> Tensor:
        """Return them, and bring in what is missing first.

        For layers that are computed outside of a schedule, such as when vLLM measures
        how much memory a step takes.
        """
        missing = self.missing(turn)
        if missing:
            self.late_pages += len(missing)
            self.load(turn, missing)
        return self.slots(turn)

    def release(self, turn: int) -> None:
        """Say that a turn is over: others may use its buffer."""
        self._turns[self._streamed(turn)] = _EMPTY
        if self._poison:
            for part in Part:
                self.arena.weights(part)[self._streamed(turn)] = float("nan")

    def _streamed(self, turn: int) -> np.ndarray:
        """Slots of a layer's experts that come and go."""
        layer, buffer = self._place(turn)
        slots: np.ndarray = self._slots[layer][buffer].numpy()
        return slots[self.placement.resident :]

    def _place(self, turn: int) -> tuple[int, int]:
        layer = turn % self.placement.layers
        return layer, self.placement.buffer(turn)
