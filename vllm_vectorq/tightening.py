# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What one request may ask of the cache: always less than the operator allows.

Clients send ``vllm_xargs`` whose names start with ``vectorq_``. None of them can widen
what is shared or loosen a budget, so they need no permission.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .request import Mode

PREFIX = "vectorq_"
MODE = "vectorq_mode"
DELTA = "vectorq_delta"
TTL = "vectorq_ttl"
NO_STORE = "vectorq_no_store"

_NAMES = (MODE, DELTA, TTL, NO_STORE)

_MODES: tuple[Mode, ...] = ("off", "exact", "semantic")
_TRUE_WORDS = frozenset({"1", "true", "yes"})
_FALSE_WORDS = frozenset({"0", "false", "no"})


class MalformedControlError(ValueError):
    """A ``vectorq_*`` field that cannot be understood; the request is left alone.

    Attributes:
        name: Name of the field.
    """

    def __init__(self, name: str, value: object, remedy: str) -> None:
        super().__init__(f"vllm_xargs.{name}={value!r} cannot be used: {remedy}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Tightening:
    """What a request asked for.

    Attributes:
        mode: Widest stage it accepts; None: the operator's.
        delta: Error budget in (0, 1); None: the operator's.
        ttl_s: Oldest answer it accepts and lifetime of its own, in seconds; None:
            the operator's.
        store: Whether its answer may be kept.
    """

    mode: Mode | None = None
    delta: float | None = None
    ttl_s: float | None = None
    store: bool = True


UNCHANGED = Tightening()


def parse_controls(xargs: Mapping[str, object]) -> Tightening:
    """Read the ``vectorq_*`` fields of a request.

    Args:
        xargs: The request's ``vllm_xargs`` (``SamplingParams.extra_args``).

    Raises:
        MalformedControlError: A field is unknown or has a value that means nothing.
            Whoever asks for something that is not understood gets no cached answer.
    """
    given = {name: value for name, value in xargs.items() if name.startswith(PREFIX)}
    if not given:
        return UNCHANGED
    for name in given:
        if name not in _NAMES:
            known = ", ".join(_NAMES)
            raise MalformedControlError(name, given[name], f"the fields are {known}")
    return Tightening(
        mode=_mode(given.get(MODE)),
        delta=_number(DELTA, given.get(DELTA), below=1.0),
        ttl_s=_number(TTL, given.get(TTL), below=math.inf),
        store=not _flag(NO_STORE, given.get(NO_STORE)),
    )


def tightest_mode(allowed: Mode, asked: Mode | None) -> Mode:
    """Return the narrower of two modes."""
    if asked is None:
        return allowed
    return min(allowed, asked, key=_MODES.index)


def tightest(allowed: float, asked: float | None) -> float | None:
    """Return what was asked but at most what is allowed; None when nothing was."""
    return None if asked is None else min(allowed, asked)


def without_controls(xargs: Mapping[str, object]) -> dict[str, object]:
    """Return the fields that are not meant for the cache."""
    return {name: value for name, value in xargs.items() if not name.startswith(PREFIX)}


def _mode(value: object) -> Mode | None:
    if value is None:
        return None
    for mode in _MODES:
        if value == mode:
            return mode
    raise MalformedControlError(MODE, value, f"choose one of {', '.join(_MODES)}")


def _number(name: str, value: object, below: float) -> float | None:
    """Read a number in (0, below), also from a string as headers carry it."""
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not 0.0 < number < below:
        limit = "a positive number" if below == math.inf else f"between 0 and {below:g}"
        raise MalformedControlError(name, value, f"give {limit}")
    return number


def _flag(name: str, value: object) -> bool:
    if value is None:
        return False
    word = str(value).strip().lower() if isinstance(value, (bool, int, str)) else ""
    if word in _TRUE_WORDS:
        return True
    if word in _FALSE_WORDS:
        return False
    raise MalformedControlError(name, value, "give 1 or 0")
