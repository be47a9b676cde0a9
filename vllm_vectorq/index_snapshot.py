# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Graphs of large partitions on disk, so that a restart does not make them again.

A snapshot is a convenience: the store is the truth. It is written whole beside the old
one and renamed, and it is used whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .index import PartitionIndex
from .index_graph import Graph, GraphRows

FORMAT = 1
MANIFEST = "manifest.json"

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a snapshot held.

    Attributes:
        graphs: By digest of the partition; for :meth:`PartitionIndex.adopt`.
        why_none: Why there are none; empty when the snapshot was fine.
    """

    graphs: Mapping[bytes, GraphRows]
    why_none: str


def save(
    directory: Path, indexes: Mapping[bytes, PartitionIndex], fingerprint: str
) -> int:
    """Replace the snapshot in a directory; one caller at a time.

    Searches and writes go on meanwhile. What is written is safe on disk before it
    takes the old one's place; a crash in between leaves no snapshot.

    Args:
        directory: Of the snapshot only; its parent must exist.
        indexes: By digest of the partition, 32 bytes.
        fingerprint: Of the embedding model.

    Returns:
        How many graphs it has; small partitions need none.

    Raises:
        OSError: the directory cannot be written.
        RuntimeError: faiss cannot write there.
    """
    for abandoned in directory.parent.glob(f".{directory.name}-*"):
        shutil.rmtree(abandoned)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        fresh = work / "new"
        fresh.mkdir()
        partitions = {
            digest.hex(): _write(fresh, digest.hex(), rows)
            for digest, index in indexes.items()
            if (rows := index.graph_rows()) is not None
        }
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "partitions": partitions,
        }
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in (*fresh.iterdir(), fresh):
            _sync(path)
        if directory.exists():
            directory.rename(work / "old")
        fresh.rename(directory)
        _sync(directory.parent)
    finally:
        shutil.rmtree(work)
    return len(partitions)


def load(directory: Path, fingerprint: str, dimensions: int) -> Snapshot:
    """Read a snapshot; anything wrong with it makes it none, and says why.

    Args:
        directory: As given to :func:`save`.
        fingerprint: Of the embedding model in use.
        dimensions: Of its vectors.
    """
    try:
        return Snapshot(_read(directory, fingerprint, dimensions), "")
    except FileNotFoundError as error:
        why = f"there is no {error.filename}"
    except _Unusable as error:
        why = str(error)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        why = f"{type(error).__name__}: {error}"
    return Snapshot({}, f"snapshot {directory}: {why}")


class _Unusable(Exception):
    """Says what is wrong with a snapshot."""


def _write(directory: Path, name: str, rows: GraphRows) -> dict[str, Any]:
    """Write a graph; returns its part of the manifest."""
    graph_path, ids_path = _paths(directory, name)
    rows.graph.write(graph_path)
    np.save(ids_path, rows.entry_ids, allow_pickle=False)
    return {
        "dimensions": rows.graph.vectors.shape[1],
        "rows": len(rows.entry_ids),
        "graph_sha256": _sha256(graph_path),
        "ids_sha256": _sha256(ids_path),
    }


def _read(directory: Path, fingerprint: str, dimensions: int) -> dict[bytes, GraphRows]:
    manifest = json.loads((directory / MANIFEST).read_text())
    if not isinstance(manifest, dict):
        raise _Unusable("the manifest is not an object")
    _expect("format", manifest.get("format"), FORMAT)
    _expect("embedding model", manifest.get("fingerprint"), fingerprint)
    partitions = manifest.get("partitions")
    if not isinstance(partitions, dict):
        raise _Unusable("the manifest lists no partitions")
    graphs = {}
    for name, facts in partitions.items():
        # Names become paths, so nothing but a digest may pass.
        if not _DIGEST.fullmatch(name) or not isinstance(facts, dict):
            raise _Unusable(f"the manifest lists {name!r}, which is no partition")
        graphs[bytes.fromhex(name)] = _read_graph(directory, name, facts, dimensions)
    return graphs


def _read_graph(
    directory: Path, name: str, facts: Mapping[str, Any], dimensions: int
) -> GraphRows:
    graph_path, ids_path = _paths(directory, name)
    _expect(f"dimensions of {name}", facts.get("dimensions"), dimensions)
    # Before faiss reads it: faiss trusts what it reads.
    for path, key in ((graph_path, "graph_sha256"), (ids_path, "ids_sha256")):
        _expect(f"sha256 of {path.name}", _sha256(path), facts.get(key))
    graph = Graph.read(graph_path)
    entry_ids = np.load(ids_path, allow_pickle=False)
    _expect(f"type of {ids_path.name}", str(entry_ids.dtype), "int64")
    _expect(f"shape of {ids_path.name}", entry_ids.shape, (facts.get("rows"),))
    _expect(
        f"shape of {graph_path.name}",
        graph.vectors.shape,
        (facts.get("rows"), dimensions),
    )
    return GraphRows(graph, entry_ids)


def _paths(directory: Path, name: str) -> tuple[Path, Path]:
    return directory / f"{name}.hnsw", directory / f"{name}.ids.npy"


def _expect(what: str, got: object, needed: object) -> None:
    if got != needed:
        raise _Unusable(f"{what} is {got!r}, needed is {needed!r}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
