# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Threads that run schedules: a small model comes out bit for bit, failures end runs.

Every buffer is filled with NaN when its last reader is done, so that whatever is read
too late or overwritten too early reaches the output.
"""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from moe_offload.executor import Executor, OperationError, StalledError, Timeline
from moe_offload.operations import Kind, Lane, Operation, Schedule
from moe_offload.schedule import cgopipe
from moe_offload.schedule_rivals import NAMES, schedule
from moe_offload.simulation import simulate

K = Kind
HIDDEN, INNER, EXPERTS, CHOSEN, ROWS, LONGEST = 16, 8, 4, 2, 2, 8
PAGES = 2 * EXPERTS  # of each expert: up and gate, down
NAN = float("nan")


def idle(_: Operation) -> None:
    pass


class TinyModel:
    """Weights of a mixture of experts, and its layer in three parts."""

    def __init__(self, layers: int, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random) / shape[-2] ** 0.5

        self.layers = layers
        self.qkv = draw(layers, HIDDEN, 3 * HIDDEN)
        self.out = draw(layers, HIDDEN, HIDDEN)
        self.router = draw(layers, HIDDEN, EXPERTS)
        shapes = [(HIDDEN, 2 * INNER), (INNER, HIDDEN)] * EXPERTS
        self.pages = [[draw(*shape) for shape in shapes] for _ in range(layers)]

    def pre(self, layer: int, hidden: Tensor) -> Tensor:
        return functional.rms_norm(hidden, (HIDDEN,)) @ self.qkv[layer]

    def attend(self, qkv: Tensor, cache: Tensor, length: int) -> Tensor:
        """Append to a cache [rows, tokens, 2 x hidden], then attend to it."""
        query, new = qkv.split((HIDDEN, 2 * HIDDEN), dim=1)
        cache[:, length] = new
        keys, values = cache[:, : length + 1].chunk(2, dim=2)
        scores = torch.einsum("rh,rth->rt", query, keys) / HIDDEN**0.5
        return torch.einsum("rt,rth->rh", scores.softmax(dim=1), values)

    def post(
        self,
        layer: int,
        hidden: Tensor,
        attended: Tensor,
        page: Callable[[int], Tensor],
    ) -> Tensor:
        """Compute all experts, with weight 0 where not chosen: NaN comes out of any."""
        hidden = hidden + attended @ self.out[layer]
        normed = functional.rms_norm(hidden, (HIDDEN,))
        chances = (normed @ self.router[layer]).softmax(dim=1)
        best = chances.topk(CHOSEN, dim=1)
        weights = torch.zeros_like(chances).scatter(1, best.indices, best.values)
        for expert in range(EXPERTS):
            up, gate = (normed @ page(2 * expert)).chunk(2, dim=1)
            out = (up * functional.silu(gate)) @ page(2 * expert + 1)
            hidden = hidden + weights[:, expert : expert + 1] * out
        return hidden


def prompt(layers: int, parts: int) -> tuple[list[Tensor], Tensor]:
    """Hidden states of the micro-batches, caches with one token in them."""
    random = torch.Generator().manual_seed(1)
    hidden = list(torch.randn(parts, ROWS, HIDDEN, generator=random))
    cache = torch.full((layers, parts, ROWS, LONGEST, 2 * HIDDEN), NAN)
    cache[:, :, :, 0] = torch.randn(cache[:, :, :, 0].shape, generator=random)
    return hidden, cache


def plain_loop(model: TinyModel, parts: int, steps: int) -> list[Tensor]:
    hidden, cache = prompt(model.layers, parts)
    for length in range(1, steps + 1):
        for layer in range(model.layers):
            for part in range(parts):
                qkv = model.pre(layer, hidden[part])
                attended = model.attend(qkv, cache[layer, part], length)
                read = model.pages[layer].__getitem__
                hidden[part] = model.post(layer, hidden[part], attended, read)
    return hidden


class Machine:
    """Memories of a host and a device, and what operations do to them."""

    def __init__(self, model: TinyModel, made: Schedule) -> None:
        self.model, self.made = model, made
        parts = made.micro_batches
        self.hidden, self.cache = prompt(model.layers, parts)
        self.qkv = torch.full((2, parts, ROWS, 3 * HIDDEN), NAN)  # device, host
        self.attended = torch.full((2, parts, ROWS, HIDDEN), NAN)
        self.slots = [self.blank_pages() for _ in range(made.buffers)]
        self.staged = [self.blank_pages() for _ in range(made.staging_slots)]
        self.window = torch.full((2, ROWS, LONGEST, 2 * HIDDEN), NAN)
        self.resident = set(range(PAGES)) - set(made.streamed)
        self.before_steps = 0
        self.before: Callable[[Operation], object] = idle
        self.after: Callable[[Operation], object] = idle
        if made.carried:
            for page in made.streamed:
                self.slots[made.first_buffer][page].copy_(model.pages[0][page])

    def blank_pages(self) -> list[Tensor]:
        return [torch.full_like(page, NAN) for page in self.model.pages[0]]

    def work(self) -> dict[Kind, Callable[[Operation], None]]:
        does = {kind: getattr(self, kind.name.lower()) for kind in Kind}

        def run(each: Operation) -> None:
            self.before(each)
            does[each.kind](each)
            self.after(each)

        return dict.fromkeys(Kind, run)

    def length(self, each: Operation) -> int:
        return 1 + self.before_steps + each.step

    def pre_attention(self, each: Operation) -> None:
        part = each.micro_batch
        self.qkv[0, part] = self.model.pre(each.layer, self.hidden[part])

    def offload_qkv(self, each: Operation) -> None:
        self.qkv[1, each.micro_batch] = self.qkv[0, each.micro_batch]
        self.qkv[0, each.micro_batch] = NAN

    def host_attention(self, each: Operation) -> None:
        part = each.micro_batch
        self.attended[1, part] = self.model.attend(
            self.qkv[1, part], self.cache[each.layer, part], self.length(each)
        )
        self.qkv[1, part] = NAN

    def load_hidden(self, each: Operation) -> None:
        self.attended[0, each.micro_batch] = self.attended[1, each.micro_batch]
        self.attended[1, each.micro_batch] = NAN

    def stage_pages(self, each: Operation) -> None:
        for page in each.pages:
            target = self.staged[self.made.staging_slot(each)][page]
            target.copy_(self.model.pages[each.layer][page])

    def load_pages(self, each: Operation) -> None:
        assert not self.resident.intersection(each.pages)
        source = self.model.pages[each.layer]
        if self.staged:
            source = self.staged[self.made.staging_slot(each)]
        for page in each.pages:
            self.slots[self.made.buffer(each)][page].copy_(source[page])
        for page in each.pages if self.staged else ():
            source[page].fill_(NAN)

    def post_attention(self, each: Operation) -> None:
        part, layer = each.micro_batch, each.layer
        slots, home = self.slots[self.made.buffer(each)], self.model.pages[layer]

        def page(number: int) -> Tensor:
            return home[number] if number in self.resident else slots[number]

        attended = self.attended[0, part]
        self.hidden[part] = self.model.post(layer, self.hidden[part], attended, page)
        self.attended[0, part] = NAN
        if part == self.made.micro_batches - 1:
            for slot in slots:
                slot.fill_(NAN)

    def load_cache(self, each: Operation) -> None:
        window = self.window[self.made.cache_buffer(each)]
        window.copy_(self.cache[each.layer, each.micro_batch])

    def device_attention(self, each: Operation) -> None:
        part, window = each.micro_batch, self.window[self.made.cache_buffer(each)]
        length = self.length(each)
        self.attended[0, part] = self.model.attend(self.qkv[0, part], window, length)
        window.fill_(NAN)

    def store_cache(self, each: Operation) -> None:
        part = each.micro_batch
        new = self.qkv[0, part, :, HIDDEN:]
        self.cache[each.layer, part, :, self.length(each)] = new


def random_delays(seed: int, longest_s: float) -> Callable[[Operation], None]:
    random = Random(seed)
    delays = [random.choice((0.0, random.random() * longest_s)) for _ in range(997)]
    return lambda each: time.sleep(delays[each.number % len(delays)])


def check_order(timeline: Timeline) -> None:
    for each in timeline.schedule.operations:
        start_s = timeline.start_s[each.number]
        assert all(timeline.end_s[need] <= start_s for need in each.needs)
    for own in timeline.schedule.lanes().values():
        for before, after in pairwise(own):
            assert timeline.end_s[before.number] <= timeline.start_s[after.number]


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor(context=torch.inference_mode) as made:
        yield made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", [1, 2, 3, 7, 16])
def test_outputs_are_those_of_a_plain_loop(
    executor: Executor, name: str, parts: int
) -> None:
    model = TinyModel(layers=3)
    expected = plain_loop(model, parts, steps=2)
    for seed in range(max(2, 12 // parts)):
        options = {"staging_slots": seed % 3, "lookahead": 2 + seed % 2}
        resident = (0, 3, PAGES)[seed % 3]
        made = schedule(name, 3, parts, PAGES, resident, seed % 2 == 0, **options)
        machine = Machine(model, made)
        machine.before = random_delays(seed, 3e-4 if parts < 7 else 1e-4)
        check_order(executor.run(made, machine.work(), 20.0))
        # Three layers and two buffers: the next step begins with the other one.
        machine.made = replace(made, first_buffer=made.next_first_buffer)
        machine.before_steps = 1
        check_order(executor.run(machine.made, machine.work(), 20.0))
        assert all(map(torch.equal, machine.hidden, expected))


@pytest.mark.parametrize("name", NAMES)
def test_steps_that_follow_each_other_in_one_schedule(
    executor: Executor, name: str
) -> None:
    model = TinyModel(layers=1)
    for parts in (1, 3):
        made = schedule(name, 1, parts, PAGES, buffers=3, steps=3)
        machine = Machine(model, made)
        machine.before = random_delays(parts, 3e-4)
        executor.run(made, machine.work(), 20.0)
        assert all(map(torch.equal, machine.hidden, plain_loop(model, parts, 3)))


class Unchecked(Schedule):
    """A schedule that need not be safe."""

    def __post_init__(self) -> None:
        pass


def without(made: Schedule, waits: Kind, awaited: Kind) -> Schedule:
    """Leave out what one kind of operation needs of another."""
    operations = []
    for each in made.operations:
        needs = tuple(n for n in each.needs if made.operations[n].kind is not awaited)
        operations.append(replace(each, needs=needs) if each.kind is waits else each)
    assert operations != list(made.operations)
    fields = {name: getattr(made, name) for name in made.__dataclass_fields__}
    return Unchecked(**fields | {"operations": tuple(operations)})


WRONG = [
    ("cgopipe", K.OFFLOAD_QKV, K.PRE_ATTENTION),
    ("cgopipe", K.HOST_ATTENTION, K.OFFLOAD_QKV),
    ("cgopipe", K.LOAD_HIDDEN, K.HOST_ATTENTION),
    ("cgopipe", K.POST_ATTENTION, K.LOAD_HIDDEN),
    ("s2", K.LOAD_PAGES, K.POST_ATTENTION),
    ("cgopipe", K.LOAD_PAGES, K.STAGE_PAGES),
    ("cgopipe", K.STAGE_PAGES, K.LOAD_PAGES),
    ("s4", K.DEVICE_ATTENTION, K.LOAD_CACHE),
    ("s4", K.LOAD_CACHE, K.DEVICE_ATTENTION),
    ("s4", K.LOAD_CACHE, K.STORE_CACHE),
    ("s4", K.STORE_CACHE, K.PRE_ATTENTION),
    ("s4", K.PRE_ATTENTION, K.STORE_CACHE),
]


def hold(machine: Machine, held: Operation, until: Operation) -> None:
    """Keep an operation from beginning before another one has ended."""
    ended = threading.Event()
    machine.before = lambda each: ended.wait(5.0) if each.number == held.number else 0
    machine.after = lambda each: ended.set() if each.number == until.number else 0


@pytest.mark.parametrize(("name", "waits", "awaited"), WRONG)
def test_each_missing_need_is_seen_in_the_output(
    executor: Executor, name: str, waits: Kind, awaited: Kind
) -> None:
    """The tests above can fail: what is no longer waited for comes too late here."""
    layers = 1 if waits is K.LOAD_CACHE and awaited is K.STORE_CACHE else 3
    model = TinyModel(layers)
    made = schedule(name, layers, 2, PAGES, steps=2, staging_slots=2)
    held, until = next(
        (made.operations[need], each)
        for each in made.operations
        for need in each.needs
        if each.kind is waits and made.operations[need].kind is awaited
    )
    machine = Machine(model, without(made, waits, awaited))
    hold(machine, held, until)
    timeline = executor.run(machine.made, machine.work(), 20.0)
    assert timeline.end_s[until.number] < timeline.end_s[held.number]
    assert not all(map(torch.equal, machine.hidden, plain_loop(model, 2, 2)))


def test_pages_that_come_too_late_are_seen_in_the_output(executor: Executor) -> None:
    """A layer's pages, moved behind all else on their lane and not waited for."""
    model = TinyModel(layers=2)
    made = cgopipe(2, 2, PAGES)
    late = {
        each.number
        for each in made.operations
        if each.kind is K.LOAD_PAGES and each.layer
    }
    order = sorted(made.operations, key=lambda each: each.number in late)
    places = {each.number: place for place, each in enumerate(order)}
    needs = [[places[n] for n in each.needs if n not in late] for each in order]
    operations = tuple(
        replace(each, number=place, needs=tuple(needs[place]))
        for place, each in enumerate(order)
    )
    machine = Machine(model, Unchecked("wrong", operations, 2, 2, made.streamed))
    experts = [each for each in operations if each.kind is K.POST_ATTENTION]
    hold(machine, held=operations[-len(late)], until=experts[-1])
    executor.run(machine.made, machine.work(), 20.0)
    assert all(each.isnan().any() for each in machine.hidden)


NOTHING: dict[Kind, Callable[[Operation], object]] = dict.fromkeys(Kind, idle)
SMALL = cgopipe(3, 3, 6, staging_slots=2)


@pytest.mark.parametrize("kind", [K.PRE_ATTENTION, K.HOST_ATTENTION, K.STAGE_PAGES])
@pytest.mark.parametrize("error", [KeyError("lost"), SystemExit(3)])
def test_an_exception_ends_the_run_and_names_the_operation(
    executor: Executor, kind: Kind, error: BaseException
) -> None:
    begun: list[Operation] = []

    def fail(each: Operation) -> None:
        if each.layer == 1:
            raise error

    work = dict.fromkeys(Kind, begun.append) | {kind: fail}
    with pytest.raises(
        OperationError, match=f"{kind.value} of step 0 layer 1"
    ) as found:
        executor.run(SMALL, work, 20.0)
    assert found.value.__cause__ is error
    # What needs the operation has not begun, and nothing begins any more.
    assert not [each for each in begun if each.layer == 2 and each.kind is kind]
    count = len(begun)
    check_order(executor.run(SMALL, NOTHING, 20.0))
    assert len(begun) == count


def test_operations_that_run_when_another_fails_are_waited_for(
    executor: Executor,
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def slow(_: Operation) -> None:
        begun.set()
        time.sleep(0.05)
        ended.set()

    def fail(_: Operation) -> None:
        begun.wait(20.0)
        raise OSError("gone")

    work = NOTHING | {K.STAGE_PAGES: slow, K.PRE_ATTENTION: fail}
    with pytest.raises(OperationError, match="gone"):
        executor.run(SMALL, work, 20.0)
    assert ended.is_set()


def threads_of_lanes(executor: Executor) -> dict[Lane, threading.Thread]:
    threads: dict[Lane, threading.Thread] = {}

    def note(each: Operation) -> None:
        threads[each.lane] = threading.current_thread()

    check_order(executor.run(SMALL, dict.fromkeys(Kind, note), 20.0))
    return threads


def test_a_stall_names_what_is_in_progress_and_what_waits(executor: Executor) -> None:
    go_on = threading.Event()
    late: list[Operation] = []
    before = threads_of_lanes(executor)

    def stuck(each: Operation) -> None:
        if each.layer == 1:
            go_on.wait(20.0)
            late.append(each)

    with pytest.raises(StalledError) as found:
        executor.run(SMALL, NOTHING | {K.HOST_ATTENTION: stuck}, 0.3)
    for part in (
        "nothing ended for 0.3 s",
        "lane host is in host-attention of step 0 layer 1 micro-batch 0",
        "lane up waits for host-attention of step 0 layer 1 micro-batch 0",
        "before load-hidden of step 0 layer 1 micro-batch 0",
    ):
        assert part in str(found.value)
    # The lane has a new thread; the old one, when it wakes, does no more of its run.
    after = threads_of_lanes(executor)
    assert [lane for lane in Lane if after[lane] is not before[lane]] == [Lane.HOST]
    threads = named_threads()
    go_on.set()
    wait_until(lambda: len(named_threads()) == len(threads) - 1)
    assert len(late) == 1
    check_order(executor.run(SMALL, NOTHING, 20.0))


def test_an_exception_beside_a_stall_is_what_is_raised(executor: Executor) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def stuck(_: Operation) -> None:
        begun.set()
        go_on.wait(20.0)

    def fail(_: Operation) -> None:
        begun.wait(20.0)
        raise OSError("gone")

    work = NOTHING | {K.STAGE_PAGES: stuck, K.PRE_ATTENTION: fail}
    with pytest.raises(OperationError, match="gone"):
        executor.run(SMALL, work, 0.3)
    go_on.set()
    check_order(executor.run(SMALL, NOTHING, 20.0))


def test_slow_operations_are_no_stall(executor: Executor) -> None:
    work = NOTHING | {K.HOST_ATTENTION: lambda _: time.sleep(0.05)}
    timeline = executor.run(SMALL, work, 0.4)  # in all, it takes longer
    assert timeline.makespan_s > 0.4


def named_threads() -> list[str]:
    names = [each.name for each in threading.enumerate()]
    return sorted(name for name in names if name.startswith("moe_offload-"))


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not become true")


def test_threads_are_kept_and_ended() -> None:
    before = named_threads()
    with Executor() as made:
        threads = {lane: set() for lane in Lane}

        def note(each: Operation) -> None:
            threads[each.lane].add(threading.current_thread())

        for _ in range(3):
            made.run(SMALL, dict.fromkeys(Kind, note), 20.0)
        assert all(len(found) == 1 for found in threads.values())
        everyone = [found.pop() for found in threads.values()]
        assert all(each.daemon for each in everyone)
        assert "moe_offload-host" in [each.name for each in everyone]
        made.close()
    wait_until(lambda: named_threads() == before)
    with pytest.raises(ValueError, match="have no thread"):
        made.run(SMALL, NOTHING, 20.0)


def test_the_context_is_entered_once_a_run_in_each_thread() -> None:
    entered: list[tuple[str, str]] = []

    @contextmanager
    def note() -> Iterator[None]:
        name = threading.current_thread().name
        entered.append(("in", name))
        with torch.inference_mode():
            yield
        entered.append(("out", name))

    modes: set[bool] = set()
    work = dict.fromkeys(Kind, lambda _: modes.add(torch.is_inference_mode_enabled()))
    with Executor(context=note) as made:
        made.run(SMALL, work, 20.0)
        made.run(SMALL, work, 20.0)
    assert modes == {True}
    names = [f"moe_offload-{lane.value}" for lane in SMALL.lanes()]
    assert sorted(entered) == sorted(
        (way, name) for way in ("in", "out") for name in 2 * names
    )


def test_a_context_that_fails_ends_the_run() -> None:
    def refuse() -> AbstractContextManager[None]:
        raise OSError("no context")

    with (
        Executor(context=refuse) as made,
        pytest.raises(OperationError, match="context"),
    ):
        made.run(SMALL, NOTHING, 20.0)


def test_pace_is_the_least_that_an_operation_takes(executor: Executor) -> None:
    made = cgopipe(2, 2, 2)

    def seconds(each: Operation) -> float:
        return 0.01 if each.kind is K.LOAD_PAGES else 0.001

    timeline = executor.run(made, NOTHING, 20.0, seconds)
    for each in made.operations:
        took_s = timeline.end_s[each.number] - timeline.start_s[each.number]
        assert took_s >= seconds(each)
    check_order(timeline)
    assert timeline.makespan_s >= simulate(made, seconds).makespan_s


def test_only_lanes_of_the_schedule_need_a_thread() -> None:
    plain = cgopipe(1, 2, 4)
    with Executor([Lane.DEVICE, Lane.HOST, Lane.UP, Lane.DOWN]) as made:
        made.run(plain, NOTHING, 20.0)
        with pytest.raises(ValueError, match=r"lanes \['stage'\] have no thread"):
            made.run(SMALL, NOTHING, 20.0)


def test_what_cannot_run_is_refused(executor: Executor) -> None:
    less = {kind: do for kind, do in NOTHING.items() if kind is not K.HOST_ATTENTION}
    with pytest.raises(ValueError, match=r"no work for.*host-attention"):
        executor.run(SMALL, less, 20.0)
    for timeout_s in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="timeout_s is"):
            executor.run(SMALL, NOTHING, timeout_s)


def test_one_run_at_a_time(executor: Executor) -> None:
    work = NOTHING | {K.HOST_ATTENTION: lambda _: executor.run(SMALL, NOTHING, 20.0)}
    with pytest.raises(OperationError) as found:
        executor.run(SMALL, work, 20.0)
    assert "it is in a run" in str(found.value.__cause__)
    check_order(executor.run(SMALL, NOTHING, 20.0))


def test_nothing_of_a_run_is_kept(executor: Executor) -> None:
    class Work:
        def __call__(self, _: Operation) -> None:
            pass

    work = Work()
    made = cgopipe(1, 1, 1)
    executor.run(made, dict.fromkeys(Kind, work), 20.0)
    alive = [weakref.ref(work), weakref.ref(made)]
    del work, made
    wait_until(lambda: gc.collect() >= 0 and not any(each() for each in alive))
