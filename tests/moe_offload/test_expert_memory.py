# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Experts are computed from the slots that hold them, and memory never grows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_offload.arena import Arena, ArenaFullError
from moe_offload.expert_format import ExpertFormat, Part
from moe_offload.expert_memory import ExpertMemory, StalePageError
from moe_offload.page_store import MemoryStore, Page
from moe_offload.placement import Placement

FORM = ExpertFormat((4, 3), (3, 2), torch.float32)


def memory_of(
    layers: int, experts: int, slots: int, poison: bool = False
) -> ExpertMemory:
    store = MemoryStore(layers, experts, FORM)
    for layer in range(layers):
        for expert in range(experts):
            for part in Part:
                number = float(100 * layer + 10 * expert + part)
                store.write(
                    Page(layer, expert, part), torch.full(FORM.shape(part), number)
                )
    capacity = slots * FORM.expert_bytes
    placement = Placement.within(capacity, layers, experts, FORM)
    arena = Arena(capacity, FORM, placement.slots)
    return ExpertMemory(store, arena, placement, poison)


def check_turn(memory: ExpertMemory, turn: int) -> None:
    """Every expert of a turn's layer is in the slot that is named for it."""
    layer = turn % memory.placement.layers
    for expert, slot in enumerate(memory.slots(turn).tolist()):
        for part in Part:
            number = float(100 * layer + 10 * expert + part)
            assert (memory.arena.slot(slot, part) == number).all()


SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(
        st.just(shape[0]),
        st.just(shape[1]),
        st.integers(min(2, shape[0]) * shape[1], shape[0] * shape[1] + 3),
    )
)


@settings(max_examples=60, deadline=None)
@given(SHAPES)
def test_layers_in_turns_find_their_experts(shape: tuple[int, int, int]) -> None:
    layers, experts, slots = shape
    memory = memory_of(layers, experts, slots, poison=True)
    memory.load(0, memory.streamed_pages)
    for turn in range(3 * layers + 1):
        # The next layer's pages come while this one computes.
        memory.load(turn + 1, memory.streamed_pages)
        check_turn(memory, turn)
        memory.release(turn)
    assert memory.late_pages == 0
    streamed = len(memory.streamed_pages)
    moved = memory.moved_bytes
    assert moved == (3 * layers + 2) * streamed / 2 * FORM.expert_bytes


@settings(max_examples=60, deadline=None)
@given(SHAPES)
def test_placements_use_the_room_and_no_slot_twice(shape: tuple[int, int, int]) -> None:
    layers, experts, slots = shape
    placement = Placement.within(slots * FORM.expert_bytes, layers, experts, FORM)
    assert placement.slots <= slots
    if placement.resident < experts:
        # One more of each layer would not have fitted.
        more = Placement(layers, experts, placement.resident + 1, placement.buffers)
        assert more.slots > slots
    for turn in range(layers):
        buffers = max(placement.buffers, 1)
        here = placement.slots_of(turn, turn % buffers)
        there = placement.slots_of((turn + 1) % layers, (turn + 1) % buffers)
        assert len(set(here.tolist())) == experts
        if layers > 1:
            assert not set(here.tolist()) & set(there.tolist())
        assert int(here.max()) < placement.slots


def test_a_page_of_another_turn_is_never_computed_from() -> None:
    memory = memory_of(layers=3, experts=4, slots=8)
    with pytest.raises(StalePageError, match=r"turn 0 lacks 8 pages, the first is \(0"):
        memory.slots(0)
    memory.load(0, memory.streamed_pages)
    check_turn(memory, 0)
    # Turn 2 has the same buffer.
    memory.load(2, memory.streamed_pages[:1])
    with pytest.raises(StalePageError, match=r"turn 0 lacks 1 pages"):
        memory.slots(0)
    with pytest.raises(StalePageError, match=r"turn 2 lacks 7 pages"):
        memory.slots(2)


def test_missing_pages_are_brought_in_and_counted() -> None:
    memory = memory_of(layers=3, experts=4, slots=9)
    memory.load(1, memory.streamed_pages[2:])
    memory.slots_now(1)
    check_turn(memory, 1)
    assert memory.late_pages == 2
    memory.slots_now(1)
    assert memory.late_pages == 2


def test_resident_experts_never_move() -> None:
    memory = memory_of(layers=2, experts=3, slots=6)
    assert memory.placement.resident == 3
    assert memory.streamed_pages == ()
    for turn in range(5):
        check_turn(memory, turn)
    assert memory.moved_bytes == 0


def test_released_slots_are_poisoned() -> None:
    memory = memory_of(layers=3, experts=2, slots=4, poison=True)
    memory.load(0, memory.streamed_pages)
    slots = memory.slots(0)
    memory.release(0)
    for part in Part:
        assert memory.arena.weights(part)[slots].isnan().all()


def test_more_than_fits_is_refused() -> None:
    with pytest.raises(ArenaFullError, match=r"3 experts .* were to be held at once"):
        Arena(3 * FORM.expert_bytes - 1, FORM, 3)
    with pytest.raises(ValueError, match=r"The least is two layers of them"):
        Placement.within(7 * FORM.expert_bytes, 3, 4, FORM)
