# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""All experts of the model that this process serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .arena import Arena
from .disk_store import DiskStore
from .expert_format import ExpertFormat
from .expert_memory import ExpertMemory
from .page_store import MemoryStore, PageStore
from .placement import Placement


class ModelExperts:
    """Store, arena and turns of a model.

    Args:
        layers: With experts.
        experts: Of each layer.
        capacity_bytes: Of the arena.
        file: Where experts lie on a disk; ``None`` for host memory.
        key: Says which weights these are.
        read_threads: Reads of the disk at once.
    """

    def __init__(
        self,
        layers: int,
        experts: int,
        capacity_bytes: int,
        file: Path | None,
        key: dict[str, Any],
        read_threads: int = 2,
    ) -> None:
        self.layers = layers
        self.experts = experts
        self.capacity_bytes = capacity_bytes
        self._file = file
        self._key = key
        self._read_threads = read_threads
        self._store: PageStore | None = None
        self._memory: ExpertMemory | None = None
        # Of the first layer in this step.
        self._first_turn = 0

    def store(self, form: ExpertFormat, kernel: str) -> PageStore:
        """Return the store; makes it at the first call, when the format is known.

        Args:
            form: Of the pages.
            kernel: Name of what reads them, which may have an order of its own.
        """
        if self._store is None:
            if self._file is None:
                self._store = MemoryStore(self.layers, self.experts, form)
            else:
                about = {
                    **self._key,
                    "kernel": kernel,
                    "gate_up": form.gate_up,
                    "down": form.down,
                    "dtype": str(form.dtype),
                }
                self._store = DiskStore(
                    *(self._file, about, self.layers, self.experts, form),
                    self._read_threads,
                )
        return self._store

    def all_there(self) -> bool:
        """Return whether an earlier start has stored all experts already."""
        return isinstance(self._store, DiskStore) and self._store.reused

    def memory(self) -> ExpertMemory:
        """Return the experts in the arena; fills it at the first call."""
        if self._memory is None:
            store = self._store
            if store is None or store.missing():
                raise ValueError(
                    "moe_offload: the checkpoint lacks weights of experts; is it whole?"
                )
            if isinstance(store, DiskStore):
                store.finish()
            placement = Placement.within(
                self.capacity_bytes, self.layers, self.experts, store.form
            )
            arena = Arena(self.capacity_bytes, store.form, placement.slots)
            self._memory = ExpertMemory(store, arena, placement)
        return self._memory

    def of_layer(self, layer: int) -> tuple[ExpertMemory, Tensor]:
        """Return the arena and the slots of a layer's experts, which are there.

        Args:
            layer: That computes now.
        """
        memory = self.memory()
        return memory, memory.slots_now(self._first_turn + layer)

    def load(self, layers_ahead: int, pages: Sequence[int]) -> None:
        """Bring pages in.

        Args:
            layers_ahead: Layers since the first one of this step.
            pages: Numbers among the pages of a layer that come and go.
        """
        memory = self.memory()
        every = memory.streamed_pages
        memory.load(self._first_turn + layers_ahead, [every[page] for page in pages])

    def begin_step(self) -> None:
        """Bring in what the first layer lacks.

        Nothing, but in the first step and after one that failed: a step brings in the
        first layer of the next one.
        """
        self.memory().slots_now(self._first_turn)

    @property
    def first_buffer(self) -> int:
        """The buffer of the first layer in this step."""
        return self.memory().placement.buffer(self._first_turn)

    def close(self) -> None:
        """Let go of the store; the file stays."""
        if self._store is not None:
            self._store.close()

    def end_step(self) -> None:
        """Say that all layers have computed."""
        self._first_turn += self.layers


_current: ModelExperts | None = None


def start(experts: ModelExperts | None) -> None:
    """Make a model's experts those of this process."""
    global _current
    _current = experts


def current() -> ModelExperts:
    """Return the experts of this process's model."""
    if _current is None:
        raise RuntimeError("moe_offload: a layer was built before its model's experts.")
    return _current
