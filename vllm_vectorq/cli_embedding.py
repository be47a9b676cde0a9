# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The embedding model of a command, and whether it made the vectors of a store."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from itertools import islice

import numpy as np

from .cli_error import CliError
from .embedding_model import EmbeddingModel
from .record import EntryRecord, Vector
from .store import Store

# A few texts tell another model apart; rounding is far below this.
_CHECKED = 8
_SAME_COSINE = 0.999


@cache
def embedding_model(name: str) -> EmbeddingModel:
    """Read a model from disk.

    Args:
        name: Directory, or name on the Hugging Face hub.

    Raises:
        CliError: It cannot be read.
    """
    print(f"reading the embedding model {name}", file=sys.stderr, flush=True)
    model = EmbeddingModel(name, threads=os.cpu_count() or 1)
    try:
        _ = model.dimensions
    except Exception as error:
        reason = str(error).removeprefix("vectorq: ")
        raise CliError(f"--embedding-model {name} cannot be read: {reason}") from error
    return model


def identity_of(store: Store, name: str) -> tuple[str, int]:
    """Return fingerprint and length of the vectors in a store.

    A store does not say who made them, so a few are made again and compared; those
    without their texts only by their length.

    Args:
        store: What holds them.
        name: The model that is said to have made them.

    Returns:
        An empty fingerprint and 0 when the store holds no vectors.

    Raises:
        CliError: Another model made them.
    """
    sample = list(islice(_vectors_of(store), _CHECKED))
    if not sample:
        return "", 0
    model = embedding_model(name)
    dimensions = sample[0][1].size
    if dimensions != model.dimensions or not all(
        text is None or not model.fits(text) or _is_same(model, text, vector)
        for text, vector in sample
    ):
        raise CliError(
            f"the vectors in the store were not made by {name}; give the server's "
            "model with --embedding-model."
        )
    return model.fingerprint, dimensions


def _vectors_of(store: Store) -> Iterator[tuple[str | None, Vector]]:
    for record in store.load():
        if isinstance(record, EntryRecord) and record.vector is not None:
            yield record.text, record.vector


def _is_same(model: EmbeddingModel, text: str, vector: Vector) -> bool:
    return float(np.dot(model.embed([text])[0], vector)) > _SAME_COSINE
