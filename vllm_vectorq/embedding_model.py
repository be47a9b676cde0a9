# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The sentence-transformers model that turns texts into unit vectors."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .embedding_files import directory_of, fingerprint_of
from .record import Vector

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerBase

# Texts with more characters per token than this do not fit whatever their tokens are,
# so that counting never takes long. English has about 4.
_MAX_CHARACTERS_PER_TOKEN = 16

# On a CPU larger batches are not faster per text, and padding makes them slower.
_TEXTS_PER_PASS = 8

_LIMITING = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model in memory.

    Attributes:
        tokenizer: A copy to count with; the model's own keeps how it truncates as
            state.
        unknown_id: Token that stands for all symbols without one; None: no such.
    """

    transformer: SentenceTransformer
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    dimensions: int
    unknown_id: int | None


class EmbeddingModel:
    """Turns texts into unit vectors; any thread may call it, but no event loop.

    All methods may first read the model from disk, which takes seconds.

    A model reads only so many tokens and drops the rest, and reads all symbols that
    it has no token for as one. Texts that differ in nothing else would have a cosine
    of 1, like a repetition, whatever the threshold: :meth:`fits` tells which these
    are, and :meth:`embed` never truncates.
    """

    def __init__(
        self, model: str, *, device: str = "cpu", threads: int = 1, prompt: str = ""
    ) -> None:
        """Name a model; nothing is read yet.

        Args:
            model: Directory, or name on the Hugging Face hub; for a directory the
                network is never used.
            device: Where it runs, as PyTorch names it.
            threads: CPU threads that a call uses, its own included.
            prompt: Put before every text; some models need one, such as ``query: ``.
        """
        self._model = model
        self._device = device
        self._threads = threads
        self._prompt = prompt
        self._lock = threading.RLock()
        self._counting = threading.Lock()
        self._loaded: _Loaded | None = None
        self._fingerprint = ""
        self._limited = threading.local()

    @property
    def fingerprint(self) -> str:
        """Hash over everything that decides about vectors: files and prompt.

        Models whose fingerprints differ must not share an index or a store.
        """
        with self._lock:
            if not self._fingerprint:
                directory = directory_of(self._model)
                self._fingerprint = fingerprint_of(directory, self._prompt)
            return self._fingerprint

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._load().dimensions

    @property
    def max_tokens(self) -> int:
        """Longest text that is read whole, prompt and special tokens included."""
        return self._load().max_tokens

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, prompt and special tokens included."""
        return len(self._tokens(text))

    def fits(self, text: str) -> bool:
        """Whether the model reads all of a text and knows all of its symbols."""
        loaded = self._load()
        # JSON can carry halves of characters, which no tokenizer takes.
        if len(text) > _MAX_CHARACTERS_PER_TOKEN * loaded.max_tokens or any(
            "\ud800" <= character <= "\udfff" for character in text
        ):
            return False
        tokens = self._tokens(text)
        return len(tokens) <= loaded.max_tokens and loaded.unknown_id not in tokens

    def embed(self, texts: list[str]) -> Vector:
        """Turn texts into unit vectors, float32 [len(texts), dimensions].

        Raises:
            ValueError: a text is longer than the model reads, or the model cannot
                be found.
            ImportError: sentence-transformers is not installed.
        """
        loaded = self._load()
        for text in texts:
            if (tokens := self.count_tokens(text)) > loaded.max_tokens:
                raise ValueError(
                    f"vectorq: asked to embed a text of {tokens} tokens, but "
                    f"{self._model} reads {loaded.max_tokens}; ask whether it fits."
                )
        return self._encode(loaded.transformer, texts)

    def _encode(self, transformer: SentenceTransformer, texts: list[str]) -> Vector:
        if not texts:
            return np.zeros((0, self.dimensions), dtype=np.float32)
        if not getattr(self._limited, "done", False):
            limit_threads(self._threads)
            self._limited.done = True
        rows = transformer.encode(
            [self._prompt + text for text in texts],
            prompt="",
            batch_size=_TEXTS_PER_PASS,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.ascontiguousarray(rows, dtype=np.float32)

    def _tokens(self, text: str) -> list[int]:
        tokenizer = self._load().tokenizer
        with self._counting:
            tokens: list[int] = tokenizer.encode(self._prompt + text, verbose=False)
        return tokens

    def _load(self) -> _Loaded:
        if self._loaded is None:
            with self._lock:
                if self._loaded is None:
                    # On a thread that ends, because reading limits its thread.
                    with ThreadPoolExecutor(1) as reader:
                        self._loaded = reader.submit(self._read).result()
        return self._loaded

    def _read(self) -> _Loaded:
        directory = directory_of(self._model)
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError(
                "vectorq: semantic matches need sentence-transformers; install it, or "
                f"allow exact matches only ({error})."
            ) from error
        transformer = SentenceTransformer(
            str(directory),
            device=self._device,
            local_files_only=True,
            # The other format can run code when it is read.
            model_kwargs={"use_safetensors": True},
        )
        tokenizer = copy.deepcopy(transformer.tokenizer)
        tokenizer.model_max_length = int(1e30)
        # Also fixes how the tokenizer truncates, so that calls can share it.
        warm_up = self._encode(transformer, ["Warm up."])
        return _Loaded(
            transformer=transformer,
            tokenizer=tokenizer,
            max_tokens=int(transformer.max_seq_length or 0),
            dimensions=warm_up.shape[1],
            unknown_id=_unknown_id(tokenizer),
        )


def _unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    unknown: int | None = tokenizer.unk_token_id
    # Some tokenizers name the token that ends every text.
    return None if unknown in tokenizer.encode("Warm up.") else unknown


def limit_threads(threads: int) -> None:
    """Have PyTorch use so many CPU threads for what this thread asks of it."""
    import torch

    with _LIMITING:
        # Asking also has this thread take over the current setting once and for all.
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        # That set this thread and, besides, what threads start from that use PyTorch
        # for the first time. Another thread puts the latter back, which does not
        # reach this one.
        restoring = threading.Thread(target=torch.set_num_threads, args=(before,))
        restoring.start()
        restoring.join()
