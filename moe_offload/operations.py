# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a decode step consists of, and a schedule of it that is proven safe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

CACHE_BUFFERS = 2


class Lane(Enum):
    """A resource that runs one operation at a time, in a fixed order."""

    DEVICE = "device"  # compute on the device
    HOST = "host"  # attention on the CPU
    UP = "up"  # link, host to device
    DOWN = "down"  # link, device to host
    STAGE = "stage"  # pageable memory or disk to pinned memory


class Kind(Enum):
    """What an operation does, and the lane that does it; D1 to D4 as in the paper."""

    lane: Lane

    LOAD_HIDDEN = "load-hidden", Lane.UP  # D2: what CPU attention computed
    LOAD_PAGES = "load-pages", Lane.UP  # D3: expert weights
    LOAD_CACHE = "load-cache", Lane.UP  # D4: for attention on the device
    OFFLOAD_QKV = "offload-qkv", Lane.DOWN  # D1
    STORE_CACHE = "store-cache", Lane.DOWN  # new keys, values of such attention
    STAGE_PAGES = "stage-pages", Lane.STAGE
    PRE_ATTENTION = "pre-attention", Lane.DEVICE  # norm and q, k, v
    POST_ATTENTION = "post-attention", Lane.DEVICE  # projection, router, experts
    DEVICE_ATTENTION = "device-attention", Lane.DEVICE
    HOST_ATTENTION = "host-attention", Lane.HOST

    def __new__(cls, name: str, lane: Lane) -> Kind:
        """Make the name the value, so that a kind can be found by it."""
        kind = object.__new__(cls)
        kind._value_ = name
        kind.lane = lane
        return kind


@dataclass(frozen=True, slots=True)
class Operation:
    """One piece of work.

    Attributes:
        number: Place in the launch order, from 0.
        kind: What is done.
        lane: Who does it.
        layer: Of the model. For pages, the layer whose weights they are.
        micro_batch: Whose rows; for pages, the micro-batch they travel beside.
        pages: Page numbers within the layer; empty unless pages move.
        needs: Numbers of operations that must have ended.
        step: Decode step, from 0. Pages carried to the next step bear its number.
    """

    number: int
    kind: Kind
    lane: Lane
    layer: int
    micro_batch: int
    pages: tuple[int, ...]
    needs: tuple[int, ...]
    step: int = 0

    def __str__(self) -> str:
        part = f"micro-batch {self.micro_batch}"
        if self.pages:
            part = f"pages {self.pages[0]}-{self.pages[-1]}"
        return f"{self.kind.value} of step {self.step} layer {self.layer} {part}"


class ScheduleError(ValueError):
    """A schedule that would deadlock or read the wrong bytes."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """Operations in launch order; each lane runs its own in that order.

    Construction proves that operations wait for what they read and for the readers of
    what they overwrite. Needs and lanes follow the launch order: nothing deadlocks.

    Attributes:
        name: Of the kind of schedule.
        operations: In launch order.
        layers: Of the model.
        micro_batches: Of the batch.
        streamed: Page numbers that are not resident, the same in every layer.
        buffers: Device buffers that each hold one layer's streamed pages.
        steps: Decode steps.
        carried: The first layer's pages are on the device when the schedule begins,
            and those of the following step are when it ends.
        staging_slots: Pinned buffers for groups of pages; 0: pages are pinned already.
        first_buffer: Buffer of the first layer.
        one_memory: Device and host are one; nothing but pages moves.

    Raises:
        ScheduleError: The schedule is not safe or not complete.
    """

    name: str
    operations: tuple[Operation, ...]
    layers: int
    micro_batches: int
    streamed: tuple[int, ...]
    buffers: int = 2
    steps: int = 1
    carried: bool = True
    staging_slots: int = 0
    first_buffer: int = 0
    one_memory: bool = False

    def __post_init__(self) -> None:
        for number, each in enumerate(self.operations):
            if each.number != number or each.lane is not each.kind.lane:
                raise _error(self, f"{each} is out of its place or lane")
            if any(not 0 <= need < number for need in each.needs):
                raise _error(self, f"{each} needs what is launched after it")
        found = _found(self)
        for later, earlier in _rules(self, found):
            if earlier not in found:
                raise _error(self, f"{later} has no {earlier[0].value} to wait for")
            if not self._waits(later, found[earlier]):
                raise _error(self, f"{later} does not wait for {found[earlier]}")

    def _waits(self, later: Operation, earlier: Operation) -> bool:
        """Whether one waits for the other, or for a later one of the other's lane."""
        if later.lane is earlier.lane:
            return later.number > earlier.number
        there = (n for n in later.needs if self.operations[n].lane is earlier.lane)
        return max(there, default=-1) >= earlier.number

    def lanes(self) -> Mapping[Lane, tuple[Operation, ...]]:
        """Operations of each lane that has any, in the order in which it runs them."""
        all_ = self.operations
        found = {lane: tuple(o for o in all_ if o.lane is lane) for lane in Lane}
        return {lane: own for lane, own in found.items() if own}

    def place(self, operation: Operation) -> int:
        """Layers before an operation's, counted over all steps."""
        return operation.step * self.layers + operation.layer

    def buffer(self, operation: Operation) -> int:
        """Device buffer that holds the pages of an operation's layer."""
        return (self.first_buffer + self.place(operation)) % self.buffers

    def cache_buffer(self, operation: Operation) -> int:
        """Device buffer for the keys and values of an operation's micro-batch."""
        rank = self.place(operation) * self.micro_batches + operation.micro_batch
        return rank % CACHE_BUFFERS

    def staging_slot(self, operation: Operation) -> int:
        """Pinned buffer of a group of pages that is staged or loaded."""
        return self._groups[operation.number] % self.staging_slots

    @cached_property
    def _groups(self) -> Mapping[int, int]:
        ranks: dict[int, int] = {}
        for kind in (Kind.STAGE_PAGES, Kind.LOAD_PAGES):
            moved = (each.number for each in self.operations if each.kind is kind)
            ranks.update((number, rank) for rank, number in enumerate(moved))
        return ranks

    @property
    def next_first_buffer(self) -> int:
        """``first_buffer`` for the following run: carried pages lie there."""
        return (self.first_buffer + self.steps * self.layers) % self.buffers


# Kind, place, and the micro-batch or, of pages, the first page.
_Key = tuple[Kind, int, int]
_READS = {
    Kind.OFFLOAD_QKV: (Kind.PRE_ATTENTION,),
    Kind.LOAD_HIDDEN: (Kind.HOST_ATTENTION,),
    Kind.DEVICE_ATTENTION: (Kind.PRE_ATTENTION, Kind.LOAD_CACHE),
    Kind.STORE_CACHE: (Kind.PRE_ATTENTION,),
}


def _error(schedule: Schedule, wrong: str) -> ScheduleError:
    return ScheduleError(
        f"moe_offload: asked for the schedule {schedule.name!r} with "
        f"{schedule.layers} layers and {schedule.micro_batches} micro-batches, but "
        f"{wrong}. It would deadlock or read wrong bytes; correct its generator."
    )


def _found(schedule: Schedule) -> dict[_Key, Operation]:
    """Operations by what they are, none missing or doubled."""
    found: dict[_Key, Operation] = {}
    moved: dict[int, tuple[int, ...]] = {}
    for each in schedule.operations:
        place = schedule.place(each)
        part = each.pages[0] if each.pages else each.micro_batch
        if found.setdefault((each.kind, place, part), each) is not each:
            raise _error(schedule, f"{each} comes twice")
        if each.kind is Kind.LOAD_PAGES:
            moved[place] = moved.get(place, ()) + each.pages
    places = schedule.steps * schedule.layers
    for place in range(places + schedule.carried):
        there = schedule.carried and place == 0
        if moved.get(place, ()) != (() if there else schedule.streamed):
            raise _error(schedule, f"layer {place} gets pages {moved.get(place, ())}")
        for part in range(schedule.micro_batches if place < places else 0):
            if (Kind.POST_ATTENTION, place, part) not in found:
                raise _error(schedule, f"micro-batch {part} skips layer {place}")
    return found


def _rules(
    schedule: Schedule, found: dict[_Key, Operation]
) -> Iterator[tuple[Operation, _Key]]:
    """What reads or overwrites something, and what it therefore has to wait for."""
    parts = range(schedule.micro_batches)
    loads: list[_Key] = []
    for (kind, place, part), each in found.items():
        yield from ((each, (read, place, part)) for read in _READS.get(kind, ()))
        if kind is Kind.HOST_ATTENTION:
            moved = Kind.PRE_ATTENTION if schedule.one_memory else Kind.OFFLOAD_QKV
            yield each, (moved, place, part)
        elif kind is Kind.PRE_ATTENTION and place:
            yield each, (Kind.POST_ATTENTION, place - 1, part)
            if (Kind.STORE_CACHE, place - 1, part) in found:  # of the keys it replaces
                yield each, (Kind.STORE_CACHE, place - 1, part)
        elif kind is Kind.POST_ATTENTION:
            local = (Kind.DEVICE_ATTENTION, place, part)
            came = Kind.HOST_ATTENTION if schedule.one_memory else Kind.LOAD_HIDDEN
            yield each, local if local in found else (came, place, part)
        elif kind is Kind.LOAD_CACHE:
            rank = place * len(parts) + part - CACHE_BUFFERS
            if rank >= 0:
                yield each, (Kind.DEVICE_ATTENTION, *divmod(rank, len(parts)))
            if each.step:
                yield each, (Kind.STORE_CACHE, place - schedule.layers, part)
        elif kind is Kind.LOAD_PAGES:
            before = place - schedule.buffers
            for row in parts if before >= 0 else ():
                yield each, (Kind.POST_ATTENTION, before, row)
            for row in parts if place < schedule.steps * schedule.layers else ():
                yield found[Kind.POST_ATTENTION, place, row], (kind, place, part)
            if schedule.staging_slots:
                yield each, (Kind.STAGE_PAGES, place, part)
            loads.append((kind, place, part))
        elif kind is Kind.STAGE_PAGES and schedule.staging_slots:
            rank = schedule._groups[each.number] - schedule.staging_slots
            if rank >= 0:
                yield each, [*loads[rank:], (Kind.LOAD_PAGES, place, part)][0]
