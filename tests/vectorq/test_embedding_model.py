# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A real embedding model, and what identifies it."""

import asyncio
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.vectorq.embedding_cases import WAIT_S, refusal
from vllm_vectorq.embedding import EmbeddingPool
from vllm_vectorq.embedding_model import EmbeddingModel
from vllm_vectorq.embedding_request import TextUnsuitable


@pytest.fixture(scope="session")
def model(embedding_model_path: str) -> EmbeddingModel:
    pytest.importorskip("sentence_transformers")
    return EmbeddingModel(embedding_model_path)


def test_a_paraphrase_is_nearer_than_another_question(model: EmbeddingModel) -> None:
    vectors = model.embed(
        [
            "How do I reset my password?",
            "I forgot my password, how can I change it?",
            "What is the capital of France?",
        ]
    )
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, model.dimensions) == (3, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    cosines = vectors @ vectors[0]
    assert cosines[1] > 0.7
    assert cosines[2] < 0.3


def test_a_vector_does_not_depend_on_its_batch(model: EmbeddingModel) -> None:
    texts = [f"{'a very ' * n}long question number {n}?" for n in range(20)]
    together = model.embed(texts)
    alone = np.concatenate([model.embed([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-5
    assert model.embed([]).shape == (0, 384)


def test_a_text_beyond_the_window_is_refused_and_not_truncated(
    model: EmbeddingModel,
) -> None:
    words = model.max_tokens - 2
    longest, longer = "cat " * words, "cat " * (words + 1)
    assert model.count_tokens(longest) == model.max_tokens
    assert model.fits(longest)
    assert not model.fits(longer)
    assert model.embed([longest]).shape == (1, 384)
    with pytest.raises(ValueError, match=f"{model.max_tokens + 1} tokens"):
        model.embed(["short", longer])
    assert not model.fits("cat" * 1_000_000)


def test_texts_that_the_model_reads_as_equal_do_not_fit(model: EmbeddingModel) -> None:
    smile, frown = "Reply to \U0001f600.", "Reply to \U0001f621."
    assert model.embed([smile]) @ model.embed([frown]).T == pytest.approx(1.0)
    assert not model.fits(smile)
    assert not model.fits("word" * 30)
    assert not model.fits("half a character \ud83d")
    assert model.fits("Plain text, with punctuation; \u00fcber 3.50 \u20ac!")


def test_calls_from_many_threads_do_not_disturb_each_other(
    model: EmbeddingModel,
) -> None:
    texts = [f"{'word ' * (n % 7)}question {n}" for n in range(24)]
    expected = model.embed(texts)

    def embed(n: int) -> float:
        assert model.fits(texts[n])
        return float(np.abs(model.embed([texts[n]])[0] - expected[n]).max())

    with ThreadPoolExecutor(4) as executor:
        assert max(executor.map(embed, [*range(24)] * 3)) < 1e-5


def test_loading_a_model_leaves_the_thread_settings_of_the_caller_alone(
    embedding_model_path: str,
) -> None:
    pytest.importorskip("sentence_transformers")
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    assert EmbeddingModel(embedding_model_path).dimensions == 384
    assert torch.get_num_threads() == before


def test_a_model_limits_only_the_thread_that_calls_it(model: EmbeddingModel) -> None:
    torch = pytest.importorskip("torch")
    seen: dict[str, int] = {}
    looked, embedded = threading.Event(), threading.Event()

    def set_for_all(threads: int) -> None:
        torch.set_num_threads(threads)

    def earlier() -> None:
        seen["earlier"] = torch.get_num_threads()
        looked.set()
        assert embedded.wait(WAIT_S)
        seen["earlier, afterwards"] = torch.get_num_threads()

    def embed() -> None:
        model.embed(["text"])
        seen["own"] = torch.get_num_threads()

    def later() -> None:
        seen["later"] = torch.get_num_threads()

    with ThreadPoolExecutor(1) as executor:
        before = executor.submit(torch.get_num_threads).result()
        if "vllm" in sys.modules:
            # A vLLM engine in this process fixes the threads of all: ask a fresh one.
            again = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
            name = "test_a_model_limits_only_the_thread_that_calls_it"
            subprocess.run([*again, f"{__file__}::{name}"], check=True, timeout=300)
            return
        # Not what this machine has anyway, whatever that is.
        executor.submit(set_for_all, before + 2).result()
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(earlier)
        assert looked.wait(WAIT_S)
        for work in (embed, later, lambda: set_for_all(before)):
            with ThreadPoolExecutor(1) as other:
                other.submit(work).result()
        embedded.set()
        waiting.result()
    assert seen.pop("own") == 1
    assert set(seen.values()) == {before + 2}


def test_a_directory_never_needs_the_network(
    embedding_model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sentence_transformers")

    def refuse(*args: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    fresh = EmbeddingModel(embedding_model_path)
    assert fresh.embed(["text"]).shape == (1, 384)
    assert len(fresh.fingerprint) == 64


def test_a_model_that_is_nowhere_says_what_to_do() -> None:
    pytest.importorskip("huggingface_hub")
    missing = EmbeddingModel("nobody/has-this-model")
    with pytest.raises(ValueError, match="name one that is there"):
        missing.fits("text")


def test_a_pool_embeds_with_the_model(model: EmbeddingModel) -> None:
    pool = EmbeddingPool(model, accepts=model.fits)
    try:
        assert refusal(pool.submit("\U0001f600")) is TextUnsuitable
        vector = asyncio.run(pool.embed("hello", WAIT_S))
        assert np.allclose(vector, model.embed(["hello"])[0], atol=1e-5)
    finally:
        pool.close()


# ---- fingerprints, which need no library


@pytest.fixture
def model_copy(embedding_model_path: str, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(embedding_model_path, copy)
    return copy


def fingerprint(path: Path, prompt: str = "") -> str:
    return EmbeddingModel(str(path), prompt=prompt).fingerprint


def test_a_fingerprint_depends_on_the_content_and_not_on_the_place(
    embedding_model_path: str, model_copy: Path
) -> None:
    (model_copy / "README.md").write_text("Other documentation.")
    (model_copy / "onnx").mkdir()
    (model_copy / "onnx" / "config.json").write_text("{}")
    assert fingerprint(model_copy) == fingerprint(Path(embedding_model_path))
    assert fingerprint(model_copy, "query: ") != fingerprint(model_copy)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "1_Pooling/config.json"]
)
def test_one_byte_makes_another_fingerprint(model_copy: Path, name: str) -> None:
    before = fingerprint(model_copy)
    path = model_copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert fingerprint(model_copy) != before
