# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Where all experts of a model lie: in host memory, or on a disk.

Both hold pages in the form that the kernel reads, so that nothing but bytes is moved
when the model runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from .aligned_memory import aligned_memory
from .expert_format import ALIGNMENT, ExpertFormat, Part


class Page(NamedTuple):
    """Name of a page.

    Attributes:
        layer: Counted over the layers with experts, from 0.
        expert: Of the layer.
        part: Of the expert.
    """

    layer: int
    expert: int
    part: Part


class PageStore(ABC):
    """All pages of a model.

    Args:
        layers: With experts.
        experts: Of each layer.
        form: Of the pages.

    Attributes:
        layers: With experts.
        experts: Of each layer.
        form: Of the pages.
    """

    def __init__(self, layers: int, experts: int, form: ExpertFormat) -> None:
        self.layers = layers
        self.experts = experts
        self.form = form
        self._written = torch.zeros(layers, experts, len(Part), dtype=torch.bool)

    @property
    def total_bytes(self) -> int:
        """Room that all pages take."""
        return self.layers * self.experts * self.form.expert_stored_bytes

    def write(self, page: Page, content: Tensor) -> None:
        """Put a page in; a page that is there already is replaced.

        Args:
            page: Its name.
            content: Of the shape and dtype of the format, on any device.

        Raises:
            ValueError: There is no such page, or its content has another form.
        """
        self._check(page)
        shape, dtype = self.form.shape(page.part), self.form.dtype
        if tuple(content.shape) != shape or content.dtype != dtype:
            raise ValueError(
                f"moe_offload: {page} was given as {content.dtype} "
                f"{tuple(content.shape)}; this store holds {dtype} {shape}."
            )
        self._put(page, content)
        self._written[page] = True

    def missing(self) -> list[Page]:
        """Return the pages that nobody has written yet, in order."""
        found = (~self._written).nonzero().tolist()
        return [Page(layer, expert, Part(part)) for layer, expert, part in found]

    @abstractmethod
    def read(self, page: Page, into: Tensor) -> None:
        """Copy a page.

        Args:
            page: Its name.
            into: Of the page's shape and dtype, contiguous.

        Raises:
            OSError: It could not be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of memory and files."""

    @abstractmethod
    def _put(self, page: Page, content: Tensor) -> None: ...

    def offset_of(self, page: Page) -> int:
        """Return where a page begins, in bytes, a multiple of the alignment."""
        before = (page.layer * self.experts + page.expert) * (
            self.form.expert_stored_bytes
        )
        if page.part is Part.DOWN:
            before += self.form.stored_bytes(Part.GATE_UP)
        return before

    def _check(self, page: Page) -> None:
        if not (0 <= page.layer < self.layers and 0 <= page.expert < self.experts):
            raise ValueError(
                f"moe_offload: {page} was asked for; there are {self.layers} layers "
                f"with {self.experts} experts each."
            )


class MemoryStore(PageStore):
    """Pages in host memory.

    Args:
        layers: With experts.
        experts: Of each layer.
        form: Of the pages.
        pinned: Whether a GPU copies from it. Not run on hardware.
    """

    def __init__(
        self, layers: int, experts: int, form: ExpertFormat, pinned: bool = False
    ) -> None:
        super().__init__(layers, experts, form)
        size = max(self.total_bytes, ALIGNMENT)
        if pinned:
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        else:
            self._memory = aligned_memory(size)

    def page(self, page: Page) -> Tensor:
        """Return a page itself, not a copy."""
        self._check(page)
        start = self.offset_of(page)
        content = self._memory[start : start + self.form.page_bytes(page.part)]
        return content.view(self.form.dtype).view(self.form.shape(page.part))

    def read(self, page: Page, into: Tensor) -> None:
        """Copy a page; to a GPU without waiting for it if the memory is pinned."""
        into.copy_(self.page(page), non_blocking=True)

    def close(self) -> None:
        """Let go of the memory."""
        self._memory = torch.empty(0, dtype=torch.uint8)

    def _put(self, page: Page, content: Tensor) -> None:
        self.page(page).copy_(content)
