# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Snapshots of graphs: what survives a restart, and what is refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vllm_vectorq import index_snapshot
from vllm_vectorq.index import PartitionIndex
from vllm_vectorq.index_graph import Graph

pytest.importorskip("faiss", reason="snapshots are of faiss graphs")

DIMENSIONS = 16
FINGERPRINT = "model a"
LARGE, SMALL = b"\x01" * 32, b"\x02" * 32
ALL = 1_000_000

_RAW = np.random.default_rng(4).standard_normal((400, DIMENSIONS))
VECTORS: NDArray[np.float32] = (
    _RAW / np.linalg.norm(_RAW, axis=1, keepdims=True)
).astype(np.float32)


def index_of(ids: range, class_id: int = 0) -> PartitionIndex:
    index = PartitionIndex(DIMENSIONS, flat_limit=200)
    for entry_id in ids:
        index.add(entry_id, class_id, VECTORS[entry_id])
    return index


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A snapshot with one graph over entries 0 to 299, of which 0 to 9 are gone."""
    large, small = index_of(range(300)), index_of(range(3))
    large.maintain()
    large.remove(range(10))
    directory = tmp_path / "snapshot"
    indexes = {LARGE: large, SMALL: small}
    assert index_snapshot.save(directory, indexes, FINGERPRINT) == 1
    return directory


def loaded(directory: Path) -> index_snapshot.Snapshot:
    return index_snapshot.load(directory, FINGERPRINT, DIMENSIONS)


def test_a_restart_uses_the_graph_and_believes_the_store(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = loaded(saved)
    assert snapshot.why_none == ""
    assert list(snapshot.graphs) == [LARGE]
    # The store lost 10 to 19 since, got 300 to 309, and has other classes.
    index = index_of(range(20, 310), class_id=7)
    index.add(25, 8, VECTORS[399])
    index.adopt(snapshot.graphs[LARGE])
    monkeypatch.setattr(Graph, "build", None)
    index.maintain()
    assert index.graph_rows() is not None
    found = index.search(VECTORS[399], ALL)
    assert set(found.entry_ids.tolist()) == set(range(20, 310))
    assert (found.entry_ids[0], found.class_ids[0]) == (25, 8)
    assert set(found.class_ids[1:].tolist()) == {7}
    for entry_id in (20, 299, 309):
        assert index.search(VECTORS[entry_id], 1).entry_ids.tolist() == [entry_id]


def test_an_index_that_has_a_graph_keeps_it(saved: Path) -> None:
    index = index_of(range(300))
    index.maintain()
    before = index.graph_rows()
    index.adopt(loaded(saved).graphs[LARGE])
    after = index.graph_rows()
    assert before is not None
    assert after is not None
    assert after.graph is before.graph


def test_an_adopted_graph_can_be_extended_compacted_and_saved_again(
    saved: Path, tmp_path: Path
) -> None:
    index = index_of(range(10, 400))
    index.adopt(loaded(saved).graphs[LARGE])
    index.maintain()
    index.remove(range(10, 140))
    index.maintain()
    index_snapshot.save(saved, {LARGE: index}, FINGERPRINT)
    rows = loaded(saved).graphs[LARGE]
    assert sorted(rows.entry_ids.tolist()) == list(range(140, 400))
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]


def edit_manifest(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / index_snapshot.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def put_objects(directory: Path) -> None:
    """Ids that only unpickling could read, with the right hash."""
    path = directory / f"{LARGE.hex()}.ids.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_manifest(
        directory, lambda m: m["partitions"][LARGE.hex()].update(ids_sha256=digest)
    )


def put_other_index(directory: Path) -> None:
    import faiss

    path = directory / f"{LARGE.hex()}.hnsw"
    faiss.write_index(faiss.IndexFlatIP(DIMENSIONS), str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_manifest(
        directory, lambda m: m["partitions"][LARGE.hex()].update(graph_sha256=digest)
    )


def drop_last_id(directory: Path) -> None:
    path = directory / f"{LARGE.hex()}.ids.npy"
    np.save(path, np.load(path)[:-1])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_manifest(
        directory, lambda m: m["partitions"][LARGE.hex()].update(ids_sha256=digest)
    )


def rename_partition(manifest: dict[str, Any]) -> None:
    facts = manifest["partitions"].pop(LARGE.hex())
    manifest["partitions"]["../" + LARGE.hex()] = facts


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "graph": (lambda d: flip_last_byte(d / f"{LARGE.hex()}.hnsw"), "sha256"),
    "ids": (lambda d: flip_last_byte(d / f"{LARGE.hex()}.ids.npy"), "sha256"),
    "no graph": (lambda d: (d / f"{LARGE.hex()}.hnsw").unlink(), "there is no"),
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "there is no"),
    "no json": (lambda d: (d / "manifest.json").write_text("{"), "JSONDecodeError"),
    "a list": (lambda d: (d / "manifest.json").write_text("[]"), "not an object"),
    "format": (lambda d: edit_manifest(d, lambda m: m.update(format=2)), "format is 2"),
    "no partitions": (
        lambda d: edit_manifest(d, lambda m: m.update(partitions=[])),
        "no partitions",
    ),
    "escape": (lambda d: edit_manifest(d, rename_partition), "which is no partition"),
    "objects": (put_objects, "ValueError"),
    "other index": (put_other_index, "ValueError"),
    "too few ids": (drop_last_id, "shape"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_snapshot_is_none_and_says_why(saved: Path, damage: str) -> None:
    spoil, says = DAMAGES[damage]
    spoil(saved)
    snapshot = loaded(saved)
    assert snapshot.graphs == {}
    assert says in snapshot.why_none


@pytest.mark.parametrize(
    ("fingerprint", "dimensions", "says"),
    [("model b", DIMENSIONS, "embedding model"), (FINGERPRINT, 8, "dimensions")],
)
def test_a_snapshot_of_another_embedding_model_is_none(
    saved: Path, fingerprint: str, dimensions: int, says: str
) -> None:
    snapshot = index_snapshot.load(saved, fingerprint, dimensions)
    assert snapshot.graphs == {}
    assert says in snapshot.why_none


def test_a_snapshot_that_was_never_made_is_none(tmp_path: Path) -> None:
    snapshot = loaded(tmp_path / "snapshot")
    assert snapshot.graphs == {}
    assert "there is no" in snapshot.why_none


def test_saving_again_replaces_all_and_clears_what_a_crash_left(
    saved: Path, tmp_path: Path
) -> None:
    (tmp_path / ".snapshot-crashed").mkdir()
    index_snapshot.save(saved, {SMALL: index_of(range(3))}, "model b")
    snapshot = index_snapshot.load(saved, "model b", DIMENSIONS)
    assert (snapshot.graphs, snapshot.why_none) == ({}, "")
    assert [path.name for path in saved.iterdir()] == [index_snapshot.MANIFEST]
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]


def test_a_save_that_fails_leaves_the_old_snapshot_and_nothing_else(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Graph, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    index = index_of(range(300))
    index.maintain()
    monkeypatch.setattr(Graph, "write", full)
    with pytest.raises(OSError, match="no space"):
        index_snapshot.save(saved, {LARGE: index}, FINGERPRINT)
    assert list(loaded(saved).graphs) == [LARGE]
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]
