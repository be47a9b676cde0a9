# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The order of a decode step that keeps device, CPU and link busy at once (CGOPipe).

All micro-batches go through a layer before any goes on, so that its weights cross the
link once. Meanwhile the next layer's weights follow in pages, a few between any two
micro-batches, because a whole layer at once would block what these wait for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .operations import Kind, Operation, Schedule


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a schedule is for.

    Attributes:
        layers: Of the model.
        micro_batches: Of the batch.
        pages: Of expert weights in a layer.
        resident_pages: The first so many of each layer are never moved.
        carried: See :class:`moe_offload.operations.Schedule`.
        buffers: Device buffers, each for the moved pages of one layer. More than two
            let pages come while the layer before last still computes.
        steps: Decode steps, one after the other; more than one is for simulation.
        staging_slots: Pinned buffers that groups of pages pass on their way from
            pageable memory or disk; 0: all pages are pinned.
        first_buffer: Buffer of the first layer.
        lookahead: Micro-batches whose attention is under way while one is in the
            experts; two as published. Three absorb uneven groups of pages.
        one_memory: Device and host are one, such as a CPU whose experts lie on a disk:
            queries and hidden states need not be moved.

    Raises:
        ValueError: A number is out of range.
    """

    layers: int
    micro_batches: int
    pages: int
    resident_pages: int = 0
    carried: bool = True
    buffers: int = 2
    steps: int = 1
    staging_slots: int = 0
    first_buffer: int = 0
    lookahead: int = 2
    one_memory: bool = False

    def __post_init__(self) -> None:
        for name, least, most in (
            ("layers", 1, None),
            ("micro_batches", 1, None),
            ("pages", 0, None),
            ("resident_pages", 0, self.pages),
            ("buffers", 1, None),
            ("steps", 1, None),
            ("staging_slots", 0, None),
            ("first_buffer", 0, self.buffers - 1),
            ("lookahead", 1, None),
        ):
            value = getattr(self, name)
            if not least <= value <= (value if most is None else most):
                above = "" if most is None else f" and at most {most}"
                raise ValueError(
                    f"moe_offload: asked for a schedule with {name} {value!r}, which "
                    f"is out of range. Give at least {least}{above}."
                )

    @property
    def ahead(self) -> int:
        """The lookahead, at most all micro-batches: none may be a layer ahead."""
        return min(self.lookahead, self.micro_batches)

    @property
    def streamed(self) -> tuple[int, ...]:
        """Page numbers that move."""
        return tuple(range(self.resident_pages, self.pages))

    def group(self, micro_batch: int) -> tuple[int, ...]:
        """Pages that travel beside a micro-batch: as even as possible, in order."""
        many, parts = len(self.streamed), self.micro_batches
        first, end = (
            -(-part * many // parts) for part in (micro_batch, micro_batch + 1)
        )
        return self.streamed[first:end]


class Draft:
    """A schedule in the making.

    Layers are counted over all steps here: ``place`` is step x layers + layer.
    """

    def __init__(self, name: str, sizes: Sizes) -> None:
        self.name = name
        self.sizes = sizes
        self.places = sizes.layers * sizes.steps
        self._operations: list[Operation] = []
        self._numbers: dict[tuple[Kind, int, int], int] = {}
        self._loads: list[int] = []
        self._last_load: dict[int, int] = {}

    def add(
        self,
        kind: Kind,
        place: int,
        part: int,
        *needs: int | None,
        pages: tuple[int, ...] = (),
    ) -> int:
        """Launch an operation next; return its number."""
        number = len(self._operations)
        step, layer = divmod(place, self.sizes.layers)
        waits = tuple(sorted({need for need in needs if need is not None}))
        self._operations.append(
            Operation(number, kind, kind.lane, layer, part, pages, waits, step)
        )
        self._numbers[kind, place, part] = number
        return number

    def number(self, kind: Kind, place: int, part: int) -> int | None:
        """Number of an operation, None where there is none."""
        return self._numbers.get((kind, place, part))

    def next_place(self, place: int) -> int | None:
        """Layer to fetch ahead during this one; None where the step ends with it.

        Raises:
            ValueError: There is no buffer for it.
        """
        if self.sizes.buffers < 2:
            raise ValueError(
                f"moe_offload: asked for the schedule {self.name!r} with 1 buffer, but "
                "it fetches a layer while another computes. Give at least 2."
            )
        ends = (place + 1) % self.sizes.layers == 0
        return None if ends and not self.sizes.carried else place + 1

    def starts_empty(self, place: int) -> bool:
        """Whether nobody has prefetched this layer."""
        return place % self.sizes.layers == 0 and not self.sizes.carried

    def load(
        self, place: int, part: int, pages: tuple[int, ...], *needs: int | None
    ) -> None:
        """Move pages of a layer to the device, through staging where there is any."""
        if not pages:
            return
        # They overwrite those of the layer that had the buffer, whose last reader is
        # its last micro-batch.
        last, earlier = self.sizes.micro_batches - 1, place - self.sizes.buffers
        freed = self.number(Kind.POST_ATTENTION, earlier, last)
        staged = None
        if slots := self.sizes.staging_slots:
            # The lookahead of the paper, two groups, is the number of slots here.
            emptied = self._loads[-slots] if len(self._loads) >= slots else None
            staged = self.add(Kind.STAGE_PAGES, place, part, emptied, pages=pages)
        load = self.add(
            Kind.LOAD_PAGES, place, part, freed, staged, *needs, pages=pages
        )
        self._loads.append(load)
        self._last_load[place] = load

    def loaded(self, place: int) -> int | None:
        """The operation after which all pages of a layer are on the device."""
        return self._last_load.get(place)

    def host_attention(self, place: int, part: int, *needs: int | None) -> None:
        """Launch a micro-batch's way to the CPU and its attention there."""
        if place >= self.places:
            return
        before = self.number(Kind.POST_ATTENTION, place - 1, part)
        pre = self.add(Kind.PRE_ATTENTION, place, part, before, *needs)
        if not self.sizes.one_memory:
            pre = self.add(Kind.OFFLOAD_QKV, place, part, pre)
        self.add(Kind.HOST_ATTENTION, place, part, pre)

    def load_hidden(self, place: int, part: int) -> None:
        """Bring back what CPU attention computed, unless it is there."""
        attended = self.number(Kind.HOST_ATTENTION, place, part)
        if not self.sizes.one_memory:
            self.add(Kind.LOAD_HIDDEN, place, part, attended)

    def experts(self, place: int, part: int) -> None:
        """Launch the rest of the layer, which reads all its pages."""
        of_host = Kind.HOST_ATTENTION if self.sizes.one_memory else Kind.LOAD_HIDDEN
        came = self.number(of_host, place, part)
        local = self.number(Kind.DEVICE_ATTENTION, place, part)
        self.add(Kind.POST_ATTENTION, place, part, came, local, self.loaded(place))

    def done(self) -> Schedule:
        """Return the schedule, proven safe.

        Raises:
            ScheduleError: It is not.
        """
        same = ("layers", "micro_batches", "streamed", "buffers", "steps", "carried")
        also = ("staging_slots", "first_buffer", "one_memory")
        sizes = {name: getattr(self.sizes, name) for name in (*same, *also)}
        return Schedule(self.name, tuple(self._operations), **sizes)


def interleave_pages(draft: Draft) -> None:
    """Fill a draft with CGOPipe; see :func:`cgopipe`."""
    sizes = draft.sizes
    many = sizes.micro_batches
    for part in range(sizes.ahead):
        draft.host_attention(0, part)
    for place in range(draft.places):
        if draft.starts_empty(place):
            for part in range(many):
                draft.load(place, part, sizes.group(part))
        following = draft.next_place(place)
        for part in range(many):
            draft.load_hidden(place, part)
            if following is not None:
                draft.load(following, part, sizes.group(part))
            draft.experts(place, part)
            draft.host_attention(*divmod(place * many + part + sizes.ahead, many))


def cgopipe(
    layers: int,
    micro_batches: int,
    pages: int,
    resident_pages: int = 0,
    carried: bool = True,
    buffers: int = 2,
    steps: int = 1,
    **more: Any,  # noqa: ANN401
) -> Schedule:
    """Return the schedule that interleaves pages with hidden states (S1).

    Source: MoE-Lightning (2411.11217), alg. 1. As published it deadlocks with one
    micro-batch, whose attention of the next layer is launched before this layer is
    done; the lookahead is here at most the number of micro-batches. The paper has as
    many pages as micro-batches; here any number is divided among them. The last layer
    fetches the first one's pages for the step that follows, which the paper leaves out.

    The arguments are those of :class:`Sizes`, all of them.

    Raises:
        ValueError: A number is out of range.
    """
    sizes = Sizes(
        layers, micro_batches, pages, resident_pages, carried, buffers, steps, **more
    )
    draft = Draft("cgopipe", sizes)
    interleave_pages(draft)
    return draft.done()
