# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Records as rows of a table, the same for every store.

A row holds the fields of a record in their order. Text is kept as bytes (UTF-8, lone
surrogates as three bytes each), because a model may emit NUL and unpaired surrogates
and no text column of a database keeps both; so every string comes back exactly.
Numbers are little-endian. Encoding checks every field: a row that was made can be
stored anywhere.
"""

from __future__ import annotations

import json
import math
import operator
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, get_args

import numpy as np

from .record import AnswerRecord, Record, Vector

Row = tuple[Any, ...]
Code = Callable[[Any], Any]

KEY_BYTES = 32
_COLUMNS: dict[type, tuple[str, ...]] = {
    record_type: tuple(field.name for field in fields(record_type))
    for record_type in get_args(Record)
}
FIELD_ERRORS = (TypeError, ValueError, OverflowError, AttributeError)


def columns(record_type: type[Record]) -> tuple[str, ...]:
    """Names of the fields of a record, which are the columns of its table."""
    return _COLUMNS[record_type]


def to_row(record: Record) -> Row:
    """The record's values as bytes, int, float, bool, float32 array or None.

    Raises:
        ValueError: A field holds what no store can keep.
    """
    row = []
    codes = _TO_ROW_OF.get(type(record), {})
    for name in columns(type(record)):
        try:
            row.append((codes.get(name) or _TO_ROW[name])(getattr(record, name)))
        except FIELD_ERRORS as error:
            raise ValueError(f"{type(record).__name__}.{name}: {error}") from error
    return tuple(row)


def from_row(record_type: type[Record], row: Sequence[Any]) -> Record:
    """Undo :func:`to_row`; the array may be packed.

    Raises:
        ValueError: A value is malformed.
    """
    values = {
        name: _FROM_ROW[name](value) if name in _FROM_ROW else value
        for name, value in zip(columns(record_type), row, strict=True)
    }
    return record_type(**values)


def checksum(row: Sequence[Any]) -> int:
    """CRC-32 over a row without arrays; changes when a value or its place does."""
    crc = 0
    for value in row:
        if isinstance(value, bytes):
            crc = zlib.crc32(value, zlib.crc32(b"%d:" % len(value), crc))
        else:
            plain = int(value) if isinstance(value, bool) else value
            crc = zlib.crc32(b"%a;" % (plain,), crc)
    return crc


def pack_vector(vector: Vector) -> bytes:
    """The length as uint32, then the numbers as float32, little-endian."""
    numbers = np.asarray(vector, dtype="<f4")
    if numbers.ndim != 1:
        raise ValueError(f"must have one axis, not {numbers.ndim}")
    return struct.pack("<I", numbers.size) + numbers.tobytes()


def unpack_vector(data: bytes) -> Vector:
    """Undo :func:`pack_vector`; float32 [length].

    Raises:
        ValueError: The length does not fit the data.
    """
    if len(data) < 4 or len(data) != 4 + 4 * struct.unpack_from("<I", data)[0]:
        raise ValueError(f"a vector of {len(data)} bytes does not fit its length")
    return np.frombuffer(data, dtype="<f4", offset=4).astype(np.float32)


def pack_tokens(token_ids: Sequence[int]) -> bytes:
    """The ids as int32, little-endian.

    Raises:
        ValueError: An id does not fit 32 bits.
    """
    ids = np.array([integer(token_id) for token_id in token_ids], dtype=np.int64)
    packed = ids.astype("<i4")
    if not np.array_equal(packed, ids):
        raise ValueError("a token id does not fit 32 bits")
    return packed.tobytes()


def unpack_tokens(data: bytes) -> tuple[int, ...]:
    """Undo :func:`pack_tokens`."""
    return tuple(np.frombuffer(data, dtype="<i4").tolist())


def text_bytes(text: str) -> bytes:
    """Text in UTF-8; lone surrogates take three bytes each."""
    return str.encode(text, "utf-8", "surrogatepass")


def bytes_text(data: bytes) -> str:
    """Undo :func:`text_bytes`."""
    return bytes.decode(data, "utf-8", "surrogatepass")


def json_bytes(value: object) -> bytes:
    """JSON in the encoding of :func:`text_bytes`, on one line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text_bytes(text)


def json_value(data: bytes) -> Any:  # noqa: ANN401
    """Undo :func:`json_bytes`."""
    return json.loads(bytes_text(data))


def integer(value: object) -> int:
    """A whole number of 64 bits, numpy's or Python's.

    Raises:
        ValueError: It does not fit.
        TypeError: It is no whole number.
    """
    number = operator.index(value)  # type: ignore[arg-type]
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"{number} does not fit 64 bits")
    return number


def facts_bytes(value: dict[str, str]) -> bytes:
    """The facts of a partition as JSON.

    Raises:
        ValueError: A name or value is no string.
    """
    facts = dict(value)
    if not all(isinstance(part, str) for pair in facts.items() for part in pair):
        raise ValueError("names and values must be strings")
    return json_bytes(facts)


def stop_reason_bytes(value: int | str | None) -> bytes:
    """A stop reason as JSON."""
    return json_bytes(value if value is None or type(value) is str else integer(value))


def truth(value: object) -> bool:
    """A truth value, numpy's or Python's.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{value!r} is neither true nor false")
    return bool(value)


def optional(code: Code) -> Code:
    """The same function for values that may be None."""
    return lambda value: None if value is None else code(value)


def _number(value: Any) -> float:  # noqa: ANN401
    number = float(value) + 0.0  # no -0.0, which SQLite does not keep
    if isinstance(value, str) or not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _key(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != KEY_BYTES:
        raise ValueError(f"must be {KEY_BYTES} bytes")
    return value


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("must be bytes")
    return value


def _vector(value: Vector) -> Vector:
    vector = unpack_vector(pack_vector(value))
    if not vector.size or not np.isfinite(vector).all():
        raise ValueError("must be one or more finite numbers")
    return vector


_TO_ROW: dict[str, Code] = {
    "answer_id": integer,
    "class_id": integer,
    "created_s": _number,
    "digest": _key,
    "entry_id": integer,
    "exact_key": _key,
    "expires_s": _number,
    "facts": facts_bytes,
    "features": pack_vector,
    "generation_s": _number,
    "label": truth,
    "observation_id": integer,
    "partition": _key,
    "principal": optional(_bytes),
    "propensity": _number,
    "source": text_bytes,
    "stop_reason": stop_reason_bytes,
    "text": optional(text_bytes),
    "token_ids": pack_tokens,
    "vector": optional(_vector),
}
_TO_ROW_OF: dict[type, dict[str, Code]] = {AnswerRecord: {"text": text_bytes}}
_FROM_ROW: dict[str, Code] = {
    "facts": json_value,
    "features": unpack_vector,
    "label": bool,
    "source": bytes_text,
    "stop_reason": json_value,
    "text": optional(bytes_text),
    "token_ids": unpack_tokens,
    "vector": lambda value: unpack_vector(value) if type(value) is bytes else value,
}
