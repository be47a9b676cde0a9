# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A quick embedder that obeys, for the tests of the pool in front of it."""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from vllm_vectorq.embedding import EmbeddingPool

Vectors = NDArray[np.float32]
WAIT_S = 30.0


class TrigramEmbedder:
    """Hashes trigrams into 64 places; can be held up and made to fail."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.fails = False
        self.open = threading.Event()
        self.open.set()
        self.busy = threading.Event()

    def embed(self, texts: list[str]) -> Vectors:
        self.batches.append(list(texts))
        self.busy.set()
        assert self.open.wait(WAIT_S)
        if self.fails:
            raise OSError("the model is gone")
        return np.stack([self.vector(text) for text in texts])

    @staticmethod
    def vector(text: str) -> Vectors:
        counts = np.zeros(64, dtype=np.float32)
        padded = f"  {text} "
        for i in range(len(padded) - 2):
            digest = hashlib.blake2b(padded[i : i + 3].encode(), digest_size=2)
            counts[int.from_bytes(digest.digest()) % 64] += 1
        return counts / np.float32(np.linalg.norm(counts))


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


MakePool = Callable[..., EmbeddingPool]


def hold(pool: EmbeddingPool, embedder: TrigramEmbedder) -> "Future[Vectors]":
    """Keep the pool's thread busy with one text until the embedder is opened."""
    embedder.open.clear()
    embedder.busy.clear()
    future = pool.submit("holds the thread up")
    assert embedder.busy.wait(WAIT_S)
    embedder.batches.clear()
    return future


def refusal(future: "Future[Vectors]") -> type[BaseException]:
    return type(future.exception(WAIT_S))
