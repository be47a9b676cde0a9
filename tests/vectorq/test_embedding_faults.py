# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The pool in front of an embedding model that fails or refuses."""

import asyncio
from concurrent.futures import Future

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
from vllm_vectorq.circuit_breaker import CircuitBreaker
from vllm_vectorq.embedding_request import (
    EmbeddingRefused,
    PoolLimits,
    PoolResting,
    TextUnsuitable,
)


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
