# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the schedules contain, in which order, and that wrong ones are refused."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_offload.operations import Kind, Lane, Operation, Schedule, ScheduleError
from moe_offload.schedule import Draft, Sizes, cgopipe
from moe_offload.schedule_rivals import NAMES, schedule

K = Kind


def brief(each: Operation) -> str:
    letters = {
        K.LOAD_HIDDEN: "h",
        K.LOAD_PAGES: "w",
        K.LOAD_CACHE: "c",
        K.OFFLOAD_QKV: "q",
        K.STORE_CACHE: "s",
        K.STAGE_PAGES: "g",
        K.PRE_ATTENTION: "A",
        K.POST_ATTENTION: "P",
        K.DEVICE_ATTENTION: "D",
        K.HOST_ATTENTION: "C",
    }
    what = "".join(map(str, each.pages)) if each.pages else str(each.micro_batch)
    return f"{letters[each.kind]}{each.layer}.{what}"


def lane(made: Schedule, which: Lane) -> str:
    return " ".join(brief(each) for each in made.lanes().get(which, ()))


def with_operations(made: Schedule, operations: list[Operation]) -> Schedule:
    return replace(made, operations=tuple(operations))


def test_cgopipe_is_the_published_order() -> None:
    made = cgopipe(2, 3, 3, carried=False)
    assert (
        lane(made, Lane.DEVICE)
        == "A0.0 A0.1 P0.0 A0.2 P0.1 A1.0 P0.2 A1.1 P1.0 A1.2 P1.1 P1.2"
    )
    assert (
        lane(made, Lane.UP)
        == "w0.0 w0.1 w0.2 h0.0 w1.0 h0.1 w1.1 h0.2 w1.2 h1.0 h1.1 h1.2"
    )
    assert lane(made, Lane.HOST) == "C0.0 C0.1 C0.2 C1.0 C1.1 C1.2"
    assert lane(made, Lane.DOWN) == "q0.0 q0.1 q0.2 q1.0 q1.1 q1.2"
    assert Lane.STAGE not in made.lanes()


def test_carried_pages_are_those_of_the_next_step() -> None:
    made = cgopipe(2, 2, 2)
    assert lane(made, Lane.UP) == "h0.0 w1.0 h0.1 w1.1 h1.0 w0.0 h1.1 w0.1"
    loads = [each for each in made.operations if each.kind is K.LOAD_PAGES]
    assert [each.step for each in loads] == [0, 0, 1, 1]


def test_rivals_move_layers_whole() -> None:
    up = {name: lane(schedule(name, 2, 2, 4), Lane.UP) for name in NAMES}
    assert up["s2"] == up["s3"] == "w1.0123 h0.0 h0.1 w0.0123 h1.0 h1.1"
    assert up["s4"] == "c0.0 w1.0123 c0.1 c1.0 w0.0123 c1.1"
    assert up["no-prefetch"] == "w0.0123 h0.0 h0.1 w1.0123 h1.0 h1.1"


def test_s3_leaves_the_device_idle_while_the_cpu_attends() -> None:
    made = schedule("s3", 1, 2, 0)
    assert lane(made, Lane.DEVICE) == "A0.0 P0.0 A0.1 P0.1"


def test_nothing_of_a_layer_begins_before_it_is_fetched_without_prefetch() -> None:
    made = schedule("no-prefetch", 2, 2, 1)
    load = next(each for each in made.operations if brief(each) == "w1.0")
    assert [brief(made.operations[need]) for need in load.needs] == ["P0.1"]
    for each in made.operations:
        if each.kind is K.PRE_ATTENTION and each.layer == 1:
            assert load.number in each.needs


@pytest.mark.parametrize(
    ("pages", "resident", "parts", "groups"),
    [
        (3, 0, 5, ["0", "1", "", "2", ""]),
        (8, 0, 3, ["012", "345", "67"]),
        (8, 6, 3, ["6", "7", ""]),
        (4, 4, 2, ["", ""]),
        (5, 0, 1, ["01234"]),
    ],
)
def test_pages_are_divided_evenly_in_order(
    pages: int, resident: int, parts: int, groups: list[str]
) -> None:
    sizes = Sizes(1, parts, pages, resident)
    found = ["".join(map(str, sizes.group(part))) for part in range(parts)]
    assert found == groups


sizes_of_schedules = st.fixed_dictionaries(
    {
        "name": st.sampled_from(NAMES),
        "layers": st.integers(1, 7),
        "micro_batches": st.integers(1, 16),
        "pages": st.integers(0, 20),
        "carried": st.booleans(),
        "buffers": st.integers(2, 3),
        "steps": st.integers(1, 3),
        "staging_slots": st.integers(0, 3),
        "first_buffer": st.integers(0, 1),
        "lookahead": st.integers(1, 5),
        "one_memory": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None)
@given(given=sizes_of_schedules, data=st.data())
def test_every_layer_gets_its_pages_and_every_micro_batch_its_layers(
    given: dict, data: st.DataObject
) -> None:
    resident = data.draw(st.integers(0, given["pages"]))
    made = schedule(**given, resident_pages=resident)
    places = given["layers"] * given["steps"]
    moved: Counter[tuple[int, int]] = Counter()
    for each in made.operations:
        if each.kind is K.LOAD_PAGES:
            moved.update((made.place(each), page) for page in each.pages)
    fetched = range(made.carried, places + made.carried)
    streamed = range(resident, given["pages"])
    assert moved == Counter((place, page) for place in fetched for page in streamed)
    for kind in (K.PRE_ATTENTION, K.POST_ATTENTION):
        done = [each for each in made.operations if each.kind is kind]
        at = Counter((made.place(each), each.micro_batch) for each in done)
        assert len(at) == len(done) == places * given["micro_batches"]


def kept_by_lane(made: Schedule, each: Operation, need: int) -> bool:
    """Whether the order of a lane makes an operation wait even without this need."""
    lane_of = made.operations[need].lane
    others = [n for n in each.needs if made.operations[n].lane is lane_of and n > need]
    return lane_of is each.lane or bool(others)


@pytest.mark.parametrize("one_memory", [False, True])
@pytest.mark.parametrize("name", ["cgopipe", "s2", "s3", "s4"])
def test_no_need_can_be_left_out(name: str, one_memory: bool) -> None:
    made = schedule(name, 3, 3, 5, 1, steps=2, staging_slots=2, one_memory=one_memory)
    left_out: Counter[tuple[Kind, Kind]] = Counter()
    for number, each in enumerate(made.operations):
        for need in each.needs:
            if kept_by_lane(made, each, need):
                continue
            fewer = tuple(n for n in each.needs if n != need)
            with pytest.raises(ScheduleError, match="does not wait for"):
                with_operations(made, change(made, number, needs=fewer))
            left_out[each.kind, made.operations[need].kind] += 1
    assert left_out[K.LOAD_PAGES, K.POST_ATTENTION] > 0
    assert left_out[K.STAGE_PAGES, K.LOAD_PAGES] > 0
    assert sum(left_out.values()) > 50


def change(made: Schedule, at: int, **new: object) -> list[Operation]:
    operations = [*made.operations]
    operations[at] = replace(operations[at], **new)
    return operations


def first(made: Schedule, kind: Kind) -> Operation:
    return next(each for each in made.operations if each.kind is kind)


WRONG: dict[str, Callable[[Schedule], list[Operation]]] = {
    "launched after it": lambda made: change(made, 0, needs=(1,)),
    "out of its place": lambda made: list(reversed(made.operations)),
    "or lane": lambda made: change(made, 0, lane=Lane.UP),
    "comes twice": lambda made: [
        *made.operations,
        replace(made.operations[-1], number=len(made.operations)),
    ],
    "skips layer 1": lambda made: made.operations[:-1],
    "gets pages": lambda made: change(
        made, first(made, K.LOAD_PAGES).number, pages=(1,)
    ),
    "no pre-attention to wait": lambda made: change(made, 1, micro_batch=1),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_schedule_is_refused(message: str) -> None:
    made = cgopipe(2, 1, 1)
    with pytest.raises(ScheduleError, match=message):
        with_operations(made, WRONG[message](made))


def test_as_published_one_micro_batch_would_deadlock() -> None:
    draft = Draft("alg. 1", Sizes(2, 1, 0))
    draft.host_attention(0, 0)
    draft.host_attention(1, 0)  # two ahead, though there is only one
    for place in range(2):
        draft.load_hidden(place, 0)
        draft.experts(place, 0)
    with pytest.raises(ScheduleError, match="does not wait for post-attention"):
        draft.done()
    assert lane(cgopipe(2, 1, 0), Lane.DEVICE) == "A0.0 P0.0 A1.0 P1.0"


def test_a_page_waits_for_the_last_reader_of_its_buffer() -> None:
    made = cgopipe(4, 2, 2)
    load = next(each for each in made.operations if brief(each) == "w2.0")
    assert [brief(made.operations[need]) for need in load.needs] == ["P0.1"]
    assert made.buffer(load) == 0
    more = cgopipe(4, 2, 2, buffers=3)
    load = next(each for each in more.operations if brief(each) == "w2.0")
    assert load.needs == ()


def test_odd_layers_change_the_buffer_from_step_to_step() -> None:
    made = cgopipe(3, 2, 2)
    last = [each for each in made.operations if each.kind is K.LOAD_PAGES][-1]
    assert (last.layer, last.step, made.buffer(last)) == (0, 1, 1)
    assert made.next_first_buffer == 1
    following = cgopipe(3, 2, 2, first_buffer=1)
    assert following.buffer(first(following, K.POST_ATTENTION)) == 1
    assert following.next_first_buffer == 0


def test_staging_slots_are_emptied_before_they_are_filled() -> None:
    made = cgopipe(2, 4, 4, staging_slots=2)
    staged = made.lanes()[Lane.STAGE]
    loads = [each for each in made.operations if each.kind is K.LOAD_PAGES]
    assert [made.staging_slot(each) for each in staged] == [0, 1] * 4
    for rank, (stage, load) in enumerate(zip(staged, loads, strict=True)):
        assert made.staging_slot(stage) == made.staging_slot(load)
        assert stage.pages == load.pages and stage.number in load.needs
        before = (loads[rank - 2].number,) if rank >= 2 else ()
        assert stage.needs == before


def test_with_one_memory_pages_have_the_link_for_themselves() -> None:
    made = schedule("cgopipe", 3, 2, 4, one_memory=True)
    assert {each.kind for each in made.lanes()[Lane.UP]} == {K.LOAD_PAGES}
    assert Lane.DOWN not in made.lanes()
    for each in made.lanes()[Lane.UP]:
        # They wait for nobody but the last reader of their buffer.
        waited = {made.operations[need].kind for need in each.needs}
        assert waited <= {K.POST_ATTENTION}


def test_cache_buffers_alternate() -> None:
    made = schedule("s4", 2, 3, 0)
    loads = [each for each in made.operations if each.kind is K.LOAD_CACHE]
    assert [made.cache_buffer(each) for each in loads] == [0, 1] * 3


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'s5'.*cgopipe, s2, s3, s4, no-prefetch"):
        schedule("s5", 1, 1, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": 0}, "layers 0.*at least 1"),
        ({"micro_batches": 0}, "micro_batches 0"),
        ({"pages": -1}, "pages -1"),
        ({"resident_pages": 5}, "resident_pages 5.*at most 4"),
        ({"buffers": 1}, "1 buffer.*at least 2"),
        ({"steps": 0}, "steps 0"),
        ({"staging_slots": -1}, "staging_slots -1"),
        ({"first_buffer": 2}, "first_buffer 2.*at most 1"),
        ({"lookahead": 0}, "lookahead 0"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cgopipe(**{"layers": 2, "micro_batches": 2, "pages": 4} | wrong)


def test_without_prefetch_one_buffer_is_enough() -> None:
    assert schedule("no-prefetch", 3, 2, 4, buffers=1).buffers == 1


def test_an_operation_names_itself() -> None:
    made = cgopipe(2, 2, 4)
    assert str(first(made, K.LOAD_PAGES)) == "load-pages of step 0 layer 1 pages 0-1"
    assert str(made.operations[0]) == "pre-attention of step 0 layer 0 micro-batch 0"
    assert K("load-pages") is K.LOAD_PAGES and K.LOAD_PAGES.lane is Lane.UP
