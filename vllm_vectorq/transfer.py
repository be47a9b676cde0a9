# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A cache as a file: to move it to another store, to keep it, to look at it.

One JSON object a line, in UTF-8 (lone surrogates as three bytes each). The first line
is a header with the format's version, the embedding model and the length of its
vectors; then partitions, answers, entries and observations; the last line holds their
number and the SHA-256 of everything before it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from .record import (
    AnswerRecord,
    EntryRecord,
    PartitionRecord,
    Record,
    Removal,
)
from .store import Store
from .store_codec import json_bytes, json_value
from .store_lines import decode_line, encode_line

FORMAT = "vllm-vectorq"
VERSION = 1
MAX_LINE_BYTES = 64 << 20
_PROGRESS_RECORDS = 1_000

Progress = Callable[[int], None]


class TransferError(ValueError):
    """A file that cannot be imported; the message names the line."""


def export_jsonl(
    store: Store,
    file: BinaryIO,
    *,
    embedding: str,
    dimensions: int,
    progress: Progress | None = None,
) -> int:
    """Write everything live in a store to a file.

    Args:
        store: What to read.
        file: Where to write, opened for bytes.
        embedding: Fingerprint of the model that made the vectors.
        dimensions: Length of the vectors; 0 without any.
        progress: Called with the number of records now and then and at the end.

    Returns:
        Number of records.
    """
    digest = hashlib.sha256()

    def put(line: bytes) -> None:
        file.write(line + b"\n")
        digest.update(line + b"\n")

    header = {
        "format": FORMAT,
        "version": VERSION,
        "embedding": embedding,
        "dimensions": dimensions,
        "exported_s": time.time(),
    }
    put(json_bytes(header))
    count = 0
    for count, record in enumerate(store.load(), 1):
        put(encode_line(record))
        if progress is not None and count % _PROGRESS_RECORDS == 0:
            progress(count)
    end = {"type": "end", "count": count, "sha256": digest.hexdigest()}
    file.write(json_bytes(end) + b"\n")
    if progress is not None:
        progress(count)
    return count


def import_jsonl(
    store: Store,
    file: BinaryIO,
    *,
    embedding: str,
    dimensions: int,
    progress: Progress | None = None,
) -> int:
    """Write a file of :func:`export_jsonl` to a store, all of it or nothing.

    The whole file is checked before one transaction writes it. What the store holds
    already stays; of two entries with one key the younger stays.

    Args:
        store: Where to write. A process that serves from it does not notice by
            itself what it imported.
        file: Opened for bytes at the header, and seekable: it is read twice.
        embedding: Fingerprint of the model that makes this cache's vectors.
        dimensions: Their length; 0 without any.
        progress: Called with the number of records written, now and then and at the
            end.

    Returns:
        Number of records.

    Raises:
        TransferError: The file is damaged, or made with another embedding model.
        StoreError: The store cannot take it; nothing was written.
    """
    if not file.seekable():
        raise TransferError(
            "vectorq: the file to import is read twice, so it cannot be a pipe. Save "
            "it first and give its name."
        )
    start = file.tell()
    reader = _Reader(file)
    reader.check_header(embedding, dimensions)
    count = sum(1 for _ in reader.records())
    file.seek(start)
    second = _Reader(file)
    second.check_header(embedding, dimensions)
    store.write(_reporting(second.records(), progress))
    if progress is not None:
        progress(count)
    return count


def _reporting(
    records: Iterator[Record], progress: Progress | None
) -> Iterator[Record]:
    for count, record in enumerate(records, 1):
        yield record
        if progress is not None and count % _PROGRESS_RECORDS == 0:
            progress(count)


@dataclass(slots=True)
class _Reader:
    """Reads and checks one line after the other."""

    file: BinaryIO
    line_number: int = 0
    dimensions: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    partitions: set[bytes] = field(default_factory=set)
    answers: set[int] = field(default_factory=set)

    def check_header(self, embedding: str, dimensions: int) -> None:
        """Read the first line; refuse what was made for another cache."""
        line = self._next_line()
        header = self._json(line)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise self._error("is not the header of an exported cache")
        if header.get("version") != VERSION:
            raise self._error(
                f"says format version {header.get('version')!r}, this version of the "
                f"plugin reads {VERSION}. Export with the version that imports"
            )
        if (header.get("embedding"), header.get("dimensions")) != (
            embedding,
            dimensions,
        ):
            raise self._error(
                f"says that the vectors are of {header.get('embedding')!r} with "
                f"{header.get('dimensions')!r} dimensions, but this cache uses "
                f"{embedding!r} with {dimensions}. Vectors of different models cannot "
                "be compared: use the model of the file"
            )
        self.dimensions = dimensions
        self.digest.update(line)

    def records(self) -> Iterator[Record]:
        """All records; raises at the first line that is wrong."""
        count = 0
        while True:
            line = self._next_line()
            if line.startswith(b'{"type":"end"'):
                self._check_end(line, count)
                return
            try:
                record = decode_line(line)
            except ValueError as error:
                raise self._error(f"cannot be read: {error}") from error
            if isinstance(record, Removal):
                raise self._error("is a removal, which no export holds")
            self._check_order(record)
            self.digest.update(line)
            count += 1
            yield record

    def _check_order(self, record: Record) -> None:
        match record:
            case PartitionRecord():
                self.partitions.add(record.digest)
            case AnswerRecord():
                self.answers.add(record.answer_id)
            case EntryRecord():
                if record.partition not in self.partitions:
                    raise self._error("is an entry without its partition before it")
                if record.answer_id not in self.answers:
                    raise self._error("is an entry without its answer before it")
                if record.vector is not None and record.vector.size != self.dimensions:
                    raise self._error(
                        f"has a vector of {record.vector.size} numbers where the "
                        f"header says {self.dimensions}"
                    )

    def _check_end(self, line: bytes, count: int) -> None:
        end = self._json(line)
        if not isinstance(end, dict) or end.get("count") != count:
            raise self._error(f"does not fit the {count} records before it")
        if end.get("sha256") != self.digest.hexdigest():
            raise self._error("has another checksum than the lines before it")
        if self.file.read(1):
            self.line_number += 1
            raise self._error("comes after the end")

    def _next_line(self) -> bytes:
        self.line_number += 1
        line = self.file.readline(MAX_LINE_BYTES + 1)
        if not line:
            raise self._error("is missing: the file was cut off")
        if not line.endswith(b"\n"):
            long = len(line) > MAX_LINE_BYTES
            raise self._error("is too long" if long else "was cut off")
        return line

    def _json(self, line: bytes) -> Any:  # noqa: ANN401
        try:
            return json_value(line)
        except (ValueError, RecursionError) as error:
            raise self._error(f"cannot be read: {error}") from error

    def _error(self, what: str) -> TransferError:
        return TransferError(
            f"vectorq: line {self.line_number} of the file to import {what}; nothing "
            "was imported."
        )
