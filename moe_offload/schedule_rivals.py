# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Schedules to compare CGOPipe with, on equal terms.

They are re-implementations of what is published about other systems, not those
systems. All move the experts of a layer as one piece.

Source: MoE-Lightning (2411.11217), fig. 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .operations import Kind, Schedule
from .schedule import Draft, Sizes, interleave_pages


def _fetch_layers(draft: Draft, place: int) -> None:
    """Fetch the next layer whole, and this one if nobody has."""
    if draft.starts_empty(place):
        draft.load(place, 0, draft.sizes.streamed)
    following = draft.next_place(place)
    if following is not None:
        draft.load(following, 0, draft.sizes.streamed)


def _whole_layers(draft: Draft) -> None:
    """S2: CPU attention overlaps as in CGOPipe, as in FastDecode.

    The next layer's weights go ahead of the first hidden states of this one.
    """
    many, ahead = draft.sizes.micro_batches, draft.sizes.ahead
    for part in range(ahead):
        draft.host_attention(0, part)
    for place in range(draft.places):
        _fetch_layers(draft, place)
        for part in range(many):
            draft.load_hidden(place, part)
            draft.experts(place, part)
            draft.host_attention(*divmod(place * many + part + ahead, many))


def _device_waits_for_host(draft: Draft) -> None:
    """S3: FlexGen with CPU attention; the device waits while the CPU attends."""
    for place in range(draft.places):
        _fetch_layers(draft, place)
        for part in range(draft.sizes.micro_batches):
            draft.host_attention(place, part)
            draft.load_hidden(place, part)
            draft.experts(place, part)


def _device_attention(draft: Draft) -> None:
    """S4: FlexGen; attention on the device, the next micro-batch's cache fetched.

    Hidden states stay on the device.
    """
    many = draft.sizes.micro_batches
    _load_cache(draft, 0, 0)
    for place in range(draft.places):
        _fetch_layers(draft, place)
        for part in range(many):
            before = draft.number(Kind.POST_ATTENTION, place - 1, part)
            stored = draft.number(Kind.STORE_CACHE, place - 1, part)
            pre = draft.add(Kind.PRE_ATTENTION, place, part, before, stored)
            came = draft.number(Kind.LOAD_CACHE, place, part)
            draft.add(Kind.DEVICE_ATTENTION, place, part, pre, came)
            draft.add(Kind.STORE_CACHE, place, part, pre)
            _load_cache(draft, *divmod(place * many + part + 1, many))
            draft.experts(place, part)


def _load_cache(draft: Draft, place: int, part: int) -> None:
    if place >= draft.places:
        return
    many = draft.sizes.micro_batches
    # Two buffers: the one before last has to be read.
    earlier = divmod(place * many + part - 2, many)
    read = draft.number(Kind.DEVICE_ATTENTION, *earlier)
    stored = draft.number(Kind.STORE_CACHE, place - draft.sizes.layers, part)
    draft.add(Kind.LOAD_CACHE, place, part, read, stored)


def _no_prefetch(draft: Draft) -> None:
    """A layer is fetched when its turn comes; then it computes, as S2 does."""
    many, ahead = draft.sizes.micro_batches, draft.sizes.ahead
    for place in range(draft.places):
        begins = draft.number(Kind.POST_ATTENTION, place - 1, many - 1)
        draft.load(place, 0, draft.sizes.streamed, begins)
        for part in range(ahead):
            draft.host_attention(place, part, draft.loaded(place))
        for part in range(many):
            draft.load_hidden(place, part)
            draft.experts(place, part)
            if part + ahead < many:
                draft.host_attention(place, part + ahead, draft.loaded(place))


_GENERATORS: dict[str, Callable[[Draft], None]] = {
    "cgopipe": interleave_pages,
    "s2": _whole_layers,
    "s3": _device_waits_for_host,
    "s4": _device_attention,
    "no-prefetch": _no_prefetch,
}
NAMES = tuple(_GENERATORS)


def schedule(
    name: str,
    layers: int,
    micro_batches: int,
    pages: int,
    resident_pages: int = 0,
    carried: bool = True,
    buffers: int = 2,
    steps: int = 1,
    **more: Any,  # noqa: ANN401
) -> Schedule:
    """Return the schedule of a name, one of :data:`NAMES`.

    The other arguments are those of :class:`moe_offload.schedule.Sizes`.
    ``no-prefetch`` carries nothing, whatever ``carried`` says.

    Raises:
        ValueError: The name is unknown or a number is out of range.
    """
    if name not in _GENERATORS:
        raise ValueError(
            f"moe_offload: asked for the schedule {name!r}, which does not exist. "
            f"Choose one of {', '.join(NAMES)}."
        )
    carried = carried and name != "no-prefetch"
    sizes = Sizes(
        layers, micro_batches, pages, resident_pages, carried, buffers, steps, **more
    )
    draft = Draft(name, sizes)
    _GENERATORS[name](draft)
    return draft.done()
