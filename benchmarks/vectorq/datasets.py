# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Labelled question streams for measuring the quality of cache policies.

Two questions have the same answer when they have the same intent. That is a proxy: a
support desk answers by intent, a person may want more.
"""

import csv
import hashlib
import importlib.resources
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.model_cache import cache_dir

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class LabelledSet:
    """Questions with the class of their answer.

    Attributes:
        name: Short name.
        texts: The questions.
        classes: Answer class of each, int64 [n].
    """

    name: str
    texts: tuple[str, ...]
    classes: Ids


def data_dir() -> Path:
    """Folder with the public data: ``$SUITE_DATA_DIR``, else beside the project."""
    root = Path(__file__).resolve().parents[2]
    return Path(os.environ.get("SUITE_DATA_DIR", root.parent / "shared" / "data"))


def banking77() -> LabelledSet:
    """13,083 customer questions with 77 intents (PolyAI, CC BY 4.0).

    Raises:
        FileNotFoundError: The data is not there; the message says where it belongs.
    """
    folder = data_dir() / "banking77"
    rows: list[tuple[str, str]] = []
    for name in ("train.csv", "test.csv"):
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"banking77 is not in {folder}: put its train.csv and test.csv there "
                "or set SUITE_DATA_DIR to the folder that holds banking77/"
            )
        with path.open(newline="", encoding="utf-8") as file:
            rows += [(row["text"], row["category"]) for row in csv.DictReader(file)]
    return _labelled("banking77", rows)


def clinc150(path: Path) -> LabelledSet:
    """CLINC150 (CC BY 3.0): 150 intents, and 1,200 questions out of scope.

    A question out of scope has an answer of its own, so nothing may be served for it.

    Args:
        path: Its ``data_full.json``.
    """
    data: dict[str, list[tuple[str, str]]] = json.loads(path.read_text("utf-8"))
    rows: list[tuple[str, str]] = []
    for split, pairs in sorted(data.items()):
        outside = split.startswith("oos")
        rows += [
            (text, f"{split} {i}" if outside else label)
            for i, (text, label) in enumerate(pairs)
        ]
    return _labelled("clinc150", rows)


def labelled_lines(name: str, folder: Path) -> LabelledSet:
    """A set kept as ``{train,valid,test}/seq.in`` and ``label``, line by line."""
    rows: list[tuple[str, str]] = []
    for split in ("train", "valid", "test"):
        texts = (folder / split / "seq.in").read_text("utf-8").splitlines()
        labels = (folder / split / "label").read_text("utf-8").splitlines()
        rows += list(zip(texts, labels, strict=True))
    return _labelled(name, rows)


def trap_pairs() -> list[tuple[str, str, bool, str]]:
    """Question pairs of ``fow-cache`` (CC BY 4.0): a, b, same answer, category.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    text = (
        importlib.resources.files("fow_cache")
        .joinpath("data/pairs.jsonl")
        .read_text("utf-8")
    )
    rows = [json.loads(line) for line in text.splitlines() if line]
    return [(r["a"], r["b"], r["same_answer"], r["category"]) for r in rows]


def shuffled(data: LabelledSet, seed: int) -> Ids:
    """A random order of the questions."""
    return np.random.default_rng(seed).permutation(len(data.texts))


def drifting(data: LabelledSet, seed: int) -> Ids:
    """An order in which intents appear one after another and then fade.

    Each intent starts at its own time within the first 70 % of the stream; most of its
    questions come soon after.
    """
    random = np.random.default_rng(seed)
    classes = random.permutation(int(data.classes.max()) + 1)
    start = 0.7 * classes[data.classes] / len(classes)
    time = start + (1.0 - start) * random.beta(1.0, 2.0, size=len(data.texts))
    return np.argsort(time, kind="stable")


def embedded(
    data: LabelledSet, embed: Callable[[list[str]], Vectors], fingerprint: str
) -> Vectors:
    """Unit vectors of all questions, float32 [n, d], computed once and kept.

    Args:
        data: The questions.
        embed: The embedding model.
        fingerprint: Names the model in the cache.
    """
    digest = hashlib.sha256("\0".join(data.texts).encode()).hexdigest()[:16]
    path = cache_dir() / "embeddings" / f"{data.name}-{digest}-{fingerprint[:16]}.npy"
    if path.is_file():
        kept: Vectors = np.load(path, allow_pickle=False)
        return kept
    parts: list[Vectors] = []
    for begin in range(0, len(data.texts), 256):
        parts.append(embed(list(data.texts[begin : begin + 256])))
        print(f"embedding {data.name}: {begin:,} of {len(data.texts):,}", end="\r")
    vectors = np.concatenate(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, vectors)
    return vectors


def _labelled(name: str, rows: Sequence[tuple[str, str]]) -> LabelledSet:
    ids: dict[str, int] = {}
    classes = [ids.setdefault(label, len(ids)) for _, label in rows]
    return LabelledSet(
        name, tuple(text for text, _ in rows), np.array(classes, dtype=np.int64)
    )
