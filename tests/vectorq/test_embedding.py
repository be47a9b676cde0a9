# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The pool in front of an embedding model, and a real model."""

import asyncio
import hashlib
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vllm_vectorq.circuit_breaker import CircuitBreaker
from vllm_vectorq.embedding import EmbeddingPool
from vllm_vectorq.embedding_model import EmbeddingModel
from vllm_vectorq.embedding_request import (
    DeadlinePassed,
    EmbeddingRefused,
    PoolClosed,
    PoolFull,
    PoolLimits,
    PoolResting,
    TextUnsuitable,
)

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


@pytest.fixture
def embedder() -> TrigramEmbedder:
    return TrigramEmbedder()


MakePool = Callable[..., EmbeddingPool]


@pytest.fixture
def make_pool(embedder: TrigramEmbedder) -> Iterator[MakePool]:
    pools: list[EmbeddingPool] = []

    def make(**options: object) -> EmbeddingPool:
        pool = EmbeddingPool(embedder, **options)  # type: ignore[arg-type]
        pools.append(pool)
        return pool

    yield make
    embedder.open.set()
    for pool in pools:
        pool.close()


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


def test_a_text_gets_the_vector_of_its_embedder(make_pool: MakePool) -> None:
    vector = make_pool().submit("hello").result(WAIT_S)
    assert np.array_equal(vector, TrigramEmbedder.vector("hello"))
    assert vector.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1.0


def test_an_idle_pool_embeds_one_text_at_once_and_a_busy_one_batches(
    make_pool: MakePool, embedder: TrigramEmbedder
) -> None:
    counted: list[int] = []
    pool = make_pool(
        limits=PoolLimits(max_batch=3), on_batch=lambda n, _: counted.append(n)
    )
    hold(pool, embedder)
    texts = ["ccc", "a", "bb", "dddd", "eeeee"]
    futures = [pool.submit(text) for text in texts]
    assert pool.queued == 5
    embedder.open.set()
    for text, future in zip(texts, futures, strict=True):
        assert np.array_equal(future.result(WAIT_S), TrigramEmbedder.vector(text))
    assert embedder.batches == [["a", "bb", "ccc"], ["dddd", "eeeee"]]
    pool.close()
    assert counted == [1, 3, 2]


def test_equal_texts_share_one_computation_and_cancel_alone(
    make_pool: MakePool, embedder: TrigramEmbedder
) -> None:
    pool = make_pool()
    held = hold(pool, embedder)
    joined = pool.submit("holds the thread up")
    first, second, third = (pool.submit("same") for _ in range(3))
    assert pool.queued == 1
    assert second.cancel()
    embedder.open.set()
    assert first.result(WAIT_S) is third.result(WAIT_S)
    assert joined.result(WAIT_S) is held.result(WAIT_S)
    assert embedder.batches == [["same"]]


def test_what_everybody_cancelled_is_not_embedded(
    make_pool: MakePool, embedder: TrigramEmbedder
) -> None:
    pool = make_pool()
    hold(pool, embedder)
    futures = [pool.submit("unwanted"), pool.submit("unwanted"), pool.submit("wanted")]
    assert futures[0].cancel()
    assert futures[1].cancel()
    embedder.open.set()
    futures[2].result(WAIT_S)
    assert embedder.batches == [["wanted"]]
    assert pool.submit("unwanted").result(WAIT_S) is not None


def test_what_is_past_its_deadline_is_not_embedded(
    make_pool: MakePool, embedder: TrigramEmbedder
) -> None:
    clock = Clock()
    pool = make_pool(clock=clock)
    hold(pool, embedder)
    late = pool.submit("late", deadline_s=1.0)
    late_too = pool.submit("shared", deadline_s=1.0)
    shared = pool.submit("shared", deadline_s=5.0)
    patient = pool.submit("patient")
    clock.now_s += 2.0
    embedder.open.set()
    assert refusal(late) is refusal(late_too) is DeadlinePassed
    assert np.array_equal(shared.result(WAIT_S), TrigramEmbedder.vector("shared"))
    patient.result(WAIT_S)
    assert embedder.batches == [["shared", "patient"]]


def test_a_full_queue_refuses_new_texts_at_once_but_not_known_ones(
    make_pool: MakePool, embedder: TrigramEmbedder
) -> None:
    pool = make_pool(limits=PoolLimits(max_queue=2))
    hold(pool, embedder)
    queued = [pool.submit("a"), pool.submit("b")]
    full = pool.submit("c")
    assert full.done()
    assert refusal(full) is PoolFull
    queued.append(pool.submit("a"))
    embedder.open.set()
    assert not wait(queued, WAIT_S).not_done
    assert refusal(pool.submit("c")) is type(None)


def test_the_most_recent_vectors_are_kept(
    make_pool: MakePool, embedder: TrigramEmbedder
) -> None:
    pool = make_pool(limits=PoolLimits(max_recent=2))
    for text in ("a", "b", "a", "c", "a", "b"):
        pool.submit(text).result(WAIT_S)
    assert embedder.batches == [["a"], ["b"], ["c"], ["b"]]


def test_a_text_that_the_model_cannot_represent_fails_alone(
    make_pool: MakePool, embedder: TrigramEmbedder
) -> None:
    pool = make_pool(accepts=str.isascii, limits=PoolLimits(max_failures=1))
    hold(pool, embedder)
    odd, plain = pool.submit("\u00fc"), pool.submit("u")
    embedder.open.set()
    assert refusal(odd) is TextUnsuitable
    plain.result(WAIT_S)
    assert embedder.batches == [["u"]]
    assert refusal(pool.submit("\u00f6")) is TextUnsuitable
    assert refusal(pool.submit("o")) is type(None)


def test_a_model_that_keeps_failing_rests_and_is_then_tried_with_one_text(
    make_pool: MakePool, embedder: TrigramEmbedder
) -> None:
    clock = Clock()
    limits = PoolLimits(max_failures=2, rest_s=10.0)
    pool = make_pool(clock=clock, limits=limits)
    pool.submit("good").result(WAIT_S)
    embedder.fails = True
    assert refusal(pool.submit("1")) is OSError
    assert refusal(pool.submit("2")) is OSError
    resting = pool.submit("3")
    assert resting.done()
    assert refusal(resting) is PoolResting
    assert np.array_equal(pool.submit("good").result(0), TrigramEmbedder.vector("good"))

    clock.now_s += 10.0
    trial = hold(pool, embedder)
    assert refusal(pool.submit("5")) is PoolResting
    embedder.open.set()
    assert refusal(trial) is OSError
    assert refusal(pool.submit("6")) is PoolResting

    clock.now_s += 10.0
    embedder.fails = False
    pool.submit("7").result(WAIT_S)
    pool.submit("8").result(WAIT_S)
    assert embedder.batches[-2:] == [["7"], ["8"]]


def test_what_waits_when_the_model_gives_up_is_refused(
    make_pool: MakePool, embedder: TrigramEmbedder
) -> None:
    pool = make_pool(limits=PoolLimits(max_failures=1))
    held = hold(pool, embedder)
    waiting = pool.submit("waiting")
    embedder.fails = True
    embedder.open.set()
    assert refusal(held) is OSError
    assert refusal(waiting) is PoolResting
    assert embedder.batches == []


@pytest.mark.parametrize(
    "returned",
    [
        np.zeros((2, 4), np.float32),
        np.zeros(4, np.float32),
        np.full((1, 4), np.nan, np.float32),
        None,
    ],
)
def test_nonsense_from_the_model_is_an_error_and_not_a_vector(
    make_pool: MakePool,
    embedder: TrigramEmbedder,
    monkeypatch: pytest.MonkeyPatch,
    returned: object,
) -> None:
    pool = make_pool()
    monkeypatch.setattr(embedder, "embed", lambda texts: returned)
    assert refusal(pool.submit("a")) in (ValueError, TypeError)


def test_the_thread_survives_everything(
    make_pool: MakePool,
    embedder: TrigramEmbedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken_count(texts: int, seconds: float) -> None:
        raise KeyError("counter")

    def leave(texts: list[str]) -> Vectors:
        raise SystemExit(1)

    def callback(future: "Future[Vectors]") -> None:
        raise RuntimeError("in a callback")

    pool = make_pool(on_batch=broken_count)
    with monkeypatch.context() as patch:
        patch.setattr(embedder, "embed", leave)
        assert refusal(pool.submit("a")) is SystemExit
    future = pool.submit("b")
    future.add_done_callback(callback)
    future.result(WAIT_S)
    assert pool.submit("c").result(WAIT_S) is not None


def test_a_closed_pool_refuses_but_ends_what_it_began(
    make_pool: MakePool, embedder: TrigramEmbedder
) -> None:
    pool = make_pool()
    begun = hold(pool, embedder)
    waiting = pool.submit("waiting")
    closer = threading.Thread(target=pool.close)
    closer.start()
    assert refusal(waiting) is PoolClosed
    assert refusal(pool.submit("new")) is PoolClosed
    embedder.open.set()
    closer.join(WAIT_S)
    assert begun.result(0) is not None
    pool.close()


def test_a_pool_without_texts_has_no_thread(make_pool: MakePool) -> None:
    before = threading.active_count()
    pool = make_pool()
    assert threading.active_count() == before
    pool.close()


def test_many_threads_get_their_own_vectors(make_pool: MakePool) -> None:
    pool = make_pool(limits=PoolLimits(max_recent=8))
    texts = [f"text {i % 40}" for i in range(800)]

    def ask(text: str) -> bool:
        vector = pool.submit(text).result(WAIT_S)
        return np.array_equal(vector, TrigramEmbedder.vector(text))

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(ask, texts))


# ---- on an event loop


def test_awaiting_gives_the_vector(make_pool: MakePool) -> None:
    pool = make_pool()

    async def both() -> list[Vectors]:
        return await asyncio.gather(pool.embed("a", WAIT_S), pool.embed("b", WAIT_S))

    for text, vector in zip("ab", asyncio.run(both()), strict=True):
        assert np.array_equal(vector, TrigramEmbedder.vector(text))


def test_awaiting_ends_at_the_deadline_and_leaves_nothing_behind(
    make_pool: MakePool, embedder: TrigramEmbedder
) -> None:
    pool = make_pool()
    hold(pool, embedder)
    with pytest.raises(DeadlinePassed):
        asyncio.run(pool.embed("late", 0.02))
    embedder.open.set()
    pool.submit("next").result(WAIT_S)
    assert embedder.batches == [["next"]]


def test_a_cancelled_task_withdraws_its_text(
    make_pool: MakePool, embedder: TrigramEmbedder
) -> None:
    pool = make_pool()
    hold(pool, embedder)

    async def give_up() -> None:
        task = asyncio.create_task(pool.embed("withdrawn", WAIT_S))
        while pool.queued == 0:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    embedder.open.set()
    pool.submit("next").result(WAIT_S)
    assert embedder.batches == [["next"]]


def test_awaiting_passes_refusals_on(make_pool: MakePool) -> None:
    pool = make_pool(accepts=lambda _text: False)
    with pytest.raises(EmbeddingRefused):
        asyncio.run(pool.embed("a", WAIT_S))


def test_a_breaker_closes_again_after_one_success() -> None:
    clock = Clock()
    breaker = CircuitBreaker(max_failures=2, rest_s=5.0, clock=clock)
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.admits()
    breaker.failed()
    assert breaker.open
    assert not breaker.admits()
    clock.now_s += 5.0
    assert [breaker.admits(), breaker.admits()] == [True, False]
    breaker.succeeded()
    assert [breaker.admits(), breaker.admits()] == [True, True]


# ---- a real model


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
