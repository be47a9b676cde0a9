# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The best policy for a model, a machine and a workload.

Source: MoE-Lightning (2411.11217), section 4.2. The paper gives shares to a solver and
tries a few sizes of micro-batches. Here the shares follow from the batch, and sizes are
tried on a fine grid, then one by one around the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .estimate import Estimate, estimate
from .machine import Machine
from .memory_use import missing_bytes
from .model_shape import ModelShape
from .policy import Policy, Workload
from .policy_shares import pass_tokens, placed

MAX_BATCH = 4096
# Of policies this close to the best, one whose cache stays where it is, as the schedule
# is simpler; of those one with the smallest batch, which answers sooner.
_AS_GOOD = 0.995
_GRID_STEP = 1.2
_STARTS = 6  # points around which all neighbours are tried


@dataclass(frozen=True, slots=True)
class _Question:
    """What is searched for, and what is fixed."""

    shape: ModelShape
    machine: Machine
    workload: Workload
    max_batch: int
    batch: int | None
    micro_batch: int | None
    experts_on_device: bool


class _Place(NamedTuple):
    """Where attention is, and what of cache and experts comes to the device first."""

    attention_on_device: bool
    cache_first: bool


# Place, micro-batch, micro-batches, and halvings of the prefill pass.
_Point = tuple[_Place, int, int, int]
_Found = dict[_Point, tuple[Policy, Estimate] | None]
_MOST_HALVINGS = 32
_PLACES = (_Place(True, False), _Place(True, True), _Place(False, False))


def best_policy(
    shape: ModelShape,
    machine: Machine,
    workload: Workload,
    max_batch: int = MAX_BATCH,
    *,
    batch: int | None = None,
    micro_batch: int | None = None,
    attention_on_device: bool | None = None,
    experts_on_device: bool = True,
) -> tuple[Policy, Estimate]:
    """Return the policy with the highest throughput that fits, and what it promises.

    Args:
        shape: Of the model.
        machine: That is to run it.
        workload: Requests.
        max_batch: Most requests in a decode step.
        batch: That many requests; None: searched for.
        micro_batch: That many requests of a micro-batch; None: searched for.
        attention_on_device: Where decode attention is computed; None: searched for.
        experts_on_device: Where experts are computed.

    Raises:
        ValueError: A size is out of range, or nothing fits into memory.
    """
    most = max_batch if batch is None else batch
    if not 1 <= (1 if micro_batch is None else micro_batch) <= most:
        raise ValueError(
            f"moe_offload: asked for a policy with a batch of at most {most} requests "
            f"in micro-batches of {micro_batch or 1}. Give at least 1 of either, and "
            "the larger number for the batch."
        )
    question = _Question(
        shape, machine, workload, most, batch, micro_batch, experts_on_device
    )
    places = [
        place
        for place in _PLACES
        if attention_on_device in (None, place.attention_on_device)
    ]
    found: _Found = {}
    for place in places:
        for point in _grid(question, place):
            _try_passes(question, point, found)
        _refine(question, place, found)
    fitting = [each for each in found.values() if each is not None]
    if not fitting:
        raise _nothing_fits(question, places)
    return _simplest(fitting)


def _simplest(fitting: list[tuple[Policy, Estimate]]) -> tuple[Policy, Estimate]:
    """Of those about as fast as the fastest, the one that is simplest to run."""
    enough = _AS_GOOD * max(each.throughput_tokens_per_s for _, each in fitting)

    def rank(each: tuple[Policy, Estimate]) -> tuple[bool, int, float, float]:
        policy, speed = each[0], each[1].throughput_tokens_per_s
        streams = policy.attention_on_device and policy.cache_on_device_share < 1.0
        return streams, policy.batch, -policy.device_share, -speed

    as_good = (each for each in fitting if each[1].throughput_tokens_per_s >= enough)
    return min(as_good, key=rank)


def _grid(question: _Question, place: _Place) -> Iterator[_Point]:
    """Sizes that grow by a fifth, small ones all."""
    sizes = list(_growing(question.max_batch))
    if question.batch is not None:
        for many in sizes:
            size = question.micro_batch or -(-question.batch // many)
            yield place, size, -(-question.batch // size), 0
        return
    for micro_batch in [question.micro_batch] if question.micro_batch else sizes:
        for many in sizes:
            if micro_batch * many <= question.max_batch:
                yield place, micro_batch, many, 0


def _growing(most: int) -> Iterator[int]:
    size = 1
    while size < most:
        yield size
        size = max(size + 1, int(size * _GRID_STEP))
    yield most


def _refine(question: _Question, place: _Place, found: _Found) -> None:
    """Walk uphill from the best points, with ever smaller steps."""

    def height(point: _Point) -> float:
        result = _try(question, point, found)
        return result[1].throughput_tokens_per_s if result else 0.0

    own = [point for point in found if point[0] == place]
    for start in sorted(own, key=height, reverse=True)[:_STARTS]:
        best, step = start, _GRID_STEP - 1.0
        while True:
            higher = max(_neighbours(question, best, step), key=height, default=best)
            if height(higher) > height(best):
                best = higher
            elif step * max(best[1:3]) > 1.0:
                step /= 2
            else:
                break


def _neighbours(question: _Question, point: _Point, step: float) -> Iterator[_Point]:
    place, micro_batch, many, halvings = point
    size_step, many_step = (max(1, round(step * each)) for each in (micro_batch, many))
    for by_size, by_many, by_half in _DIRECTIONS:
        size = micro_batch + by_size * size_step
        number = many + by_many * many_step
        if number < 1:
            continue
        if question.batch:
            size = question.micro_batch or -(-question.batch // number)
            number = -(-question.batch // size)
        size = question.micro_batch or size
        inside = size >= 1 and 0 <= halvings + by_half <= _MOST_HALVINGS
        if inside and (question.batch or size * number <= question.max_batch):
            yield place, size, number, halvings + by_half


_DIRECTIONS = tuple(
    (size, many, half)
    for size in (-1, 0, 1)
    for many in (-1, 0, 1)
    for half in (-1, 0, 1)
    if (size, many, half) != (0, 0, 0) and not (half and (size or many))
)


def _try_passes(question: _Question, point: _Point, found: _Found) -> None:
    """Try a point with the prefill passes among which the best may be.

    These are the longest, and shorter ones as long as they leave room for more experts.
    """
    place, micro_batch, many, _ = point
    shortest = _try(question, (place, micro_batch, many, _MOST_HALVINGS), found)
    if shortest is None:
        return
    most = shortest[0].device_share
    for halvings in range(_MOST_HALVINGS):
        result = _try(question, (place, micro_batch, many, halvings), found)
        if result is not None and result[0].device_share >= most:
            return


def _try(
    question: _Question, point: _Point, found: _Found
) -> tuple[Policy, Estimate] | None:
    """The policy at a point and what it promises; None if it does not fit."""
    if point not in found:
        shape, machine, workload = question.shape, question.machine, question.workload
        policy = _policy(question, point)
        fits = not missing_bytes(shape, machine, workload, policy)
        found[point] = (
            (policy, estimate(shape, machine, workload, policy)) if fits else None
        )
    return found[point]


def _policy(question: _Question, point: _Point) -> Policy:
    place, micro_batch, many, halvings = point
    shape, machine, workload = question.shape, question.machine, question.workload
    batch = question.batch or micro_batch * many
    tokens = pass_tokens(shape, machine, workload, batch, halvings)
    computed = place.attention_on_device, question.experts_on_device
    bare = Policy(batch, micro_batch, *computed, 0, 1, 0, 0, tokens)
    return placed(shape, machine, workload, bare, place.cache_first)


def _nothing_fits(question: _Question, places: list[_Place]) -> ValueError:
    """What the smallest batch lacks, where it lacks least."""
    shape, machine, workload = question.shape, question.machine, question.workload
    size = question.micro_batch or 1
    many = 1 if question.batch is None else -(-question.batch // size)
    smallest = [
        _policy(question, (place, size, many, _MOST_HALVINGS)) for place in places
    ]
    lacks = min(
        (missing_bytes(shape, machine, workload, each) for each in smallest),
        key=lambda each: sum(each.values()),
    )
    named = " and ".join(
        f"{lack / 2**30:.2f} GiB ({math.ceil(lack)} bytes) of {name}"
        for name, lack in lacks.items()
    )
    model = f"a model of {shape.total_bytes / 2**30:.1f} GiB"
    return ValueError(
        f"moe_offload: asked for a policy for {model}, but a batch of "
        f"{smallest[0].batch} lacks {named}. Give as much, keep experts on a disk, or "
        "take fewer requests at a time or a smaller model."
    )
