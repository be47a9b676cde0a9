# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The pool in front of an embedding model: whose texts it embeds, and when."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest

from tests.vectorq.embedding_cases import (
    WAIT_S,
    Clock,
    MakePool,
    TrigramEmbedder,
    Vectors,
    hold,
    refusal,
)
from vllm_vectorq.embedding_request import (
    DeadlinePassed,
    PoolClosed,
    PoolFull,
    PoolLimits,
)


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
