# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""``vllm-vectorq export`` and ``import``: a store as a file."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .cli_embedding import embedding_model, identity_of
from .cli_error import CliError
from .cli_progress import Progress
from .cli_store import POSTGRES_SCHEMA, reading, store_url
from .config import VectorQConfig
from .store import Store, open_store, without_password
from .transfer import MAX_LINE_BYTES, export_jsonl, import_jsonl

_EXPORT_EXAMPLE = """\
examples:
  vllm-vectorq export sqlite:///var/cache/vectorq.db cache.jsonl
  vllm-vectorq export postgresql://user@host/database - | gzip > cache.jsonl.gz
"""
_IMPORT_EXAMPLE = """\
example:
  vllm-vectorq import sqlite:///var/cache/new.db cache.jsonl

Callers are stored hashed with the secret of their store. Answers that belong to an
API key or a tenant are found again only by a server that has the same secret: set
--additional-config.vectorq.secret on both. Stop a server that uses a SQLite file
before you import into it.
"""


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the two commands."""
    for name, run, direction, example in (
        ("export", run_export, "write a store to a file", _EXPORT_EXAMPLE),
        ("import", run_import, "read a file into a store", _IMPORT_EXAMPLE),
    ):
        parser = commands.add_parser(
            name,
            help=direction,
            description=f"{direction.capitalize()}: everything that is live, as one "
            "JSON object a line.",
            epilog=example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("store", help="URL or SQLite file")
        parser.add_argument(
            "file", help="the file" + ("; - for standard output" * (name == "export"))
        )
        parser.add_argument(
            "--embedding-model",
            default=VectorQConfig().embedding_model,
            metavar="MODEL",
            help="model of the server that uses the store (default: %(default)s)",
        )
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.set_defaults(run=run)


def run_export(options: argparse.Namespace) -> int:
    """Write a store to a file; return the exit status."""
    to_stdout = options.file == "-"
    progress = Progress("exported records")
    with reading(store_url(options.store)) as (store, _):
        embedding, dimensions = identity_of(store, options.embedding_model)
        with _standard_output() if to_stdout else _new_file(options.file) as file:
            count = export_jsonl(
                store,
                file,
                embedding=embedding,
                dimensions=dimensions,
                progress=progress,
            )
    progress.end()
    target = "standard output" if to_stdout else options.file
    result = {"records": count, "dimensions": dimensions, "file": target}
    said = f"Exported {count} records to {target}."
    # Standard output holds the records.
    stream = sys.stderr if to_stdout else sys.stdout
    print(json.dumps(result) if options.json else said, file=stream)
    return 0


def run_import(options: argparse.Namespace) -> int:
    """Read a file into a store; return the exit status."""
    if options.file == "-":
        raise CliError("import reads its file twice; save it first, and name it.")
    url = store_url(options.store)
    with open(options.file, "rb") as file:
        expected = _expected(file, options.embedding_model)
        store = open_store(url, schema=POSTGRES_SCHEMA)
        try:
            identity_of(store, options.embedding_model)
            count = _import(store, file, *expected)
        finally:
            store.close()
    shown = without_password(url)
    result = {"records": count, "store": shown, "shared": store.shared}
    seen = "within a second" if store.shared else "when it starts"
    said = f"Imported {count} records into {shown}. A server sees them {seen}."
    print(json.dumps(result) if options.json else said)
    return 0


def _import(store: Store, file: BinaryIO, embedding: str, dimensions: int) -> int:
    progress = Progress("imported records")
    count = import_jsonl(
        store, file, embedding=embedding, dimensions=dimensions, progress=progress
    )
    progress.end()
    return count


def _expected(file: BinaryIO, model_name: str) -> tuple[str, int]:
    """Return fingerprint and length that the file's vectors must have."""
    try:
        header: Any = json.loads(file.readline(MAX_LINE_BYTES))
    except (ValueError, RecursionError):
        header = None  # the import says what is wrong with it
    file.seek(0)
    if isinstance(header, dict) and header.get("dimensions") == 0:
        return str(header.get("embedding")), 0  # no vectors: any model will do
    model = embedding_model(model_name)
    return model.fingerprint, model.dimensions


@contextmanager
def _standard_output() -> Iterator[BinaryIO]:
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


@contextmanager
def _new_file(name: str) -> Iterator[BinaryIO]:
    """A file that gets its name, and replaces another one, once it is complete."""
    part = Path(f"{name}.part")
    # It holds prompts and answers.
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            yield file
        part.replace(name)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
