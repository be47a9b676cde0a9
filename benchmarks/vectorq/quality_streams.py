# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Labelled questions in an order of arrival, with their vectors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.vectorq import datasets
from benchmarks.vectorq.datasets import Ids, LabelledSet, Vectors
from vllm_vectorq.embedding_model import EmbeddingModel

BANKING = "banking77"
TRAPS = "traps"
DRIFT = "drift"
# The order in which intents come and go is drawn once.
_DRIFT_SEED = 100


@dataclass(frozen=True, slots=True)
class Source:
    """Where a set comes from.

    Attributes:
        name: Short name.
        path: ``data_full.json`` of CLINC150, or a folder with
            ``{train,valid,test}/seq.in`` and ``label``; None for a set that is known
            by its name.
    """

    name: str
    path: Path | None = None

    @classmethod
    def parse(cls, given: str) -> Source:
        """Read ``NAME=PATH``.

        Raises:
            ValueError: It has another form, or nothing is there.
        """
        name, equals, path = given.partition("=")
        if not (name and equals and Path(path).exists()):
            raise ValueError(
                f"{given!r} names no set; give NAME=PATH, the path of a file or folder "
                "that exists"
            )
        return cls(name, Path(path))

    def load(self) -> LabelledSet:
        """Read the questions.

        Raises:
            FileNotFoundError: They are not there.
        """
        if self.path is None:
            return datasets.banking77() if self.name == BANKING else trap_texts()
        if self.path.is_dir():
            return datasets.labelled_lines(self.name, self.path)
        return replace(datasets.clinc150(self.path), name=self.name)


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests in order of arrival.

    Attributes:
        texts: What is asked.
        vectors: Unit vectors, float32 [n, d].
        classes: Answer class of each, int64 [n].
    """

    texts: tuple[str, ...]
    vectors: Vectors
    classes: Ids

    def in_order(self, places: Ids) -> Stream:
        """The requests at these places."""
        return Stream(
            tuple(self.texts[place] for place in places.tolist()),
            self.vectors[places],
            self.classes[places],
        )


@cache
def model_of(directory: str) -> EmbeddingModel:
    """The embedding model of this process."""
    return EmbeddingModel(directory)


@cache
def labelled(source: Source) -> LabelledSet:
    """The questions of a set, read once per process."""
    return source.load()


@cache
def embedded(source: Source, directory: str) -> Stream:
    """The questions of a set with their vectors, in the order of its files."""
    data, model = labelled(source), model_of(directory)
    vectors = datasets.embedded(data, model.embed, model.fingerprint)
    return Stream(data.texts, vectors, data.classes)


def stream(source: Source, directory: str, order: str, requests: int | None) -> Stream:
    """A set in one order.

    Args:
        source: The set.
        directory: Of the embedding model.
        order: ``drift`` or the seed of a shuffle.
        requests: Length; None: all.
    """
    data = labelled(source)
    if order == DRIFT:
        places = datasets.drifting(data, _DRIFT_SEED)
    else:
        places = datasets.shuffled(data, int(order))
    return embedded(source, directory).in_order(places[:requests])


def seed_of(order: str) -> int:
    """Seed of the policy's exploration."""
    return _DRIFT_SEED if order == DRIFT else int(order)


def trap_texts() -> LabelledSet:
    """Both questions of every trap pair, pair by pair.

    Texts that are equal or have the same answer are of one class.

    Raises:
        ModuleNotFoundError: The package with the pairs is not installed.
    """
    pairs = datasets.trap_pairs()
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while parent.setdefault(text, text) != text:
            text = parent[text]
        return text

    for one, other, same, _ in pairs:
        if same:
            parent[root(one)] = root(other)
    texts = [text for one, other, _, _ in pairs for text in (one, other)]
    ids: dict[str, int] = {}
    classes = [ids.setdefault(root(text), len(ids)) for text in texts]
    return LabelledSet(TRAPS, tuple(texts), np.array(classes, dtype=np.int64))
