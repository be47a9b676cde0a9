# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Changes as lines of JSON: the log that processes read and the files they exchange."""

from __future__ import annotations

import base64
import struct
from typing import Any

from .record import (
    AnswerRecord,
    Change,
    EntryRecord,
    ObservationRecord,
    PartitionRecord,
    Record,
    Removal,
)
from .store_codec import (
    FIELD_ERRORS,
    Code,
    bytes_text,
    columns,
    facts_bytes,
    from_row,
    integer,
    json_bytes,
    json_value,
    optional,
    pack_tokens,
    pack_vector,
    stop_reason_bytes,
    text_bytes,
    to_row,
    truth,
    unpack_tokens,
)

RECORD_TYPES: dict[str, type[Record]] = {
    "partition": PartitionRecord,
    "answer": AnswerRecord,
    "entry": EntryRecord,
    "observation": ObservationRecord,
}
_TYPE_NAMES = {record: name for name, record in RECORD_TYPES.items()}


def encode_line(change: Change) -> bytes:
    """One line of JSON without the line end.

    Keys are hexadecimal, vectors base64 of little-endian float32. Lone surrogates
    stand in the line as three bytes each; all else is UTF-8.

    Raises:
        ValueError: A field holds what no store can keep.
    """
    if isinstance(change, Removal):
        try:
            ids = [integer(entry_id) for entry_id in change.entry_ids]
        except FIELD_ERRORS as error:
            raise ValueError(f"Removal.entry_ids: {error}") from error
        return json_bytes({"type": "removal", "entry_ids": ids})
    line: dict[str, Any] = {"type": _TYPE_NAMES[type(change)]}
    for name, value in zip(columns(type(change)), to_row(change), strict=True):
        line[name] = _TO_JSON[name](value) if name in _TO_JSON else value
    return json_bytes(line)


def decode_line(line: bytes) -> Change:
    """Undo :func:`encode_line`, checking everything.

    Raises:
        ValueError: The line is no change; the message says where.
    """
    try:
        data = json_value(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        raise ValueError("not an object with a type")
    kind = data.pop("type")
    if kind == "removal":
        _check_names(kind, data, ("entry_ids",))
        return Removal(_decode_ids(data["entry_ids"]))
    if kind not in RECORD_TYPES:
        raise ValueError(f"unknown type {kind!r}")
    record_type = RECORD_TYPES[kind]
    names = columns(record_type)
    _check_names(kind, data, names)
    row = []
    for name in names:
        value = data[name]
        try:
            row.append(_FROM_JSON[name](value) if name in _FROM_JSON else value)
        except FIELD_ERRORS as error:
            raise ValueError(f"{kind}.{name}: {error}") from error
    # Through a row once more: plain numbers are checked and made what they should be.
    return from_row(record_type, to_row(from_row(record_type, row)))


def _check_names(kind: str, data: dict[str, Any], names: tuple[str, ...]) -> None:
    odd = set(data) ^ set(names)
    if odd:
        raise ValueError(f"{kind}: missing or unknown: {', '.join(sorted(odd))}")


def _decode_ids(value: object) -> tuple[int, ...]:
    try:
        return tuple(integer(entry_id) for entry_id in value)  # type: ignore[attr-defined]
    except FIELD_ERRORS as error:
        raise ValueError(f"removal.entry_ids: {error}") from error


def _decode_vector(value: str) -> bytes:
    numbers = base64.b64decode(value, validate=True)
    if len(numbers) % 4:
        raise ValueError(f"{len(numbers)} bytes are no float32 numbers")
    return struct.pack("<I", len(numbers) // 4) + numbers


def _encode_vector(packed: bytes) -> str:
    return base64.b64encode(packed[4:]).decode("ascii")


_HEX: tuple[Code, Code] = (optional(bytes.hex), optional(bytes.fromhex))
_JSON: dict[str, tuple[Code, Code]] = {
    "digest": _HEX,
    "exact_key": _HEX,
    "facts": (json_value, facts_bytes),
    "features": (_encode_vector, _decode_vector),
    "label": (bool, truth),
    "partition": _HEX,
    "principal": _HEX,
    "source": (bytes_text, text_bytes),
    "stop_reason": (json_value, stop_reason_bytes),
    "text": (optional(bytes_text), optional(text_bytes)),
    "token_ids": (lambda value: list(unpack_tokens(value)), pack_tokens),
    "vector": (
        optional(lambda value: _encode_vector(pack_vector(value))),
        optional(_decode_vector),
    ),
}
_TO_JSON = {name: pair[0] for name, pair in _JSON.items()}
_FROM_JSON = {name: pair[1] for name, pair in _JSON.items()}
