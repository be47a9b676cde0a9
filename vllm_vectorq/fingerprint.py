# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Hashes and canonical forms: equal for equal things and for nothing else.

Every part is hashed with its length in front of it, so no content can pose as the
border between two parts.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum

from .cacheability import is_greedy
from .tightening import without_controls

TO_CONTEXT_END = "to the end of the context"


class UnkeyableError(TypeError):
    """A parameter has no canonical form, so nothing can be said to equal it."""


# Parameters that shape how an answer is handed over, not what it says.
_UNKEYED_FIELDS = frozenset(
    {"output_kind", "stream_interval", "skip_clone", "output_text_buffer_length"}
)
# Fields by which schedulers tell programs and sessions apart; answers do not depend
# on them.
_ROUTING_XARGS = frozenset(
    {
        *("program_id", "parent_program_id", "thread_id", "parent_call_ids"),
        *("program_end", "program_class", "agentic_context", "session_id"),
        *("program_tenant", "program_remaining"),
    }
)


def sampling_fingerprint(
    sampling: Mapping[str, object],
    max_tokens: int | str,
    reasoning: Mapping[str, object] | None = None,
) -> str:
    """Write down everything that decides about the answer to a given prompt.

    Args:
        sampling: Sampling parameters that are not at their default, by name.
        max_tokens: The client's limit, or :data:`TO_CONTEXT_END`: vLLM fills a
            missing limit in from the prompt's length, which says nothing about what
            was asked.
        reasoning: Further arguments that steer reasoning and grammars.

    Raises:
        UnkeyableError: A value has no canonical form.
    """
    kept = {k: v for k, v in sampling.items() if k not in _UNKEYED_FIELDS}
    kept["max_tokens"] = max_tokens
    if is_greedy(kept):
        kept.pop("seed", None)
    xargs = kept.pop("extra_args", None)
    if isinstance(xargs, Mapping):
        mine = without_controls(xargs)
        others = {k: v for k, v in mine.items() if k not in _ROUTING_XARGS}
        if others:
            kept["extra_args"] = others
    if reasoning:
        kept["reasoning arguments"] = reasoning
    return json.dumps(
        {name: canonical(kept[name]) for name in sorted(kept)}, separators=(",", ":")
    )


def canonical(value: object) -> object:
    """Return a JSON value that is equal for equal values only.

    Raises:
        UnkeyableError: The value is of an unknown kind.
    """
    if isinstance(value, Enum):
        return ["enum", value.name]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return ["float", repr(float(value))]
    if isinstance(value, (list, tuple)):
        return ["list", *map(canonical, value)]
    if isinstance(value, (set, frozenset)):
        return ["set", *sorted(map(canonical, value), key=json.dumps)]
    if isinstance(value, Mapping):
        pairs = [[canonical(k), canonical(v)] for k, v in value.items()]
        return ["map", *sorted(pairs, key=json.dumps)]
    if is_dataclass(value) and not isinstance(value, type):
        # Names with an underscore hold what vLLM derives from the others.
        public = [f.name for f in fields(value) if not f.name.startswith("_")]
        return ["object", *([name, canonical(getattr(value, name))] for name in public)]
    raise UnkeyableError(f"a {type(value).__name__} has no canonical form")


def hashed(secret: bytes, purpose: str, value: str) -> str:
    """Return a keyed hash, 32 hexadecimal digits, that cannot be guessed back."""
    message = digest_of(encoded(purpose), encoded(value))
    return hmac.new(secret, message, hashlib.sha256).hexdigest()[:32]


def digest_of(*parts: bytes) -> bytes:
    """Return 32 bytes that differ when any part or their number does."""
    state = hashlib.sha256(len(parts).to_bytes(8, "big"))
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()


def encoded(text: str) -> bytes:
    """Return a text's bytes; lone surrogates neither fail nor become equal."""
    return text.encode("utf-8", "surrogatepass")
