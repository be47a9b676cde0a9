# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Graphs and fits in the background, and graphs that outlive a process."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vectorq.cache_cases import DIMENSIONS, Core, answer, core, request
from vllm_vectorq import tuning, working_set
from vllm_vectorq.index import PartitionIndex
from vllm_vectorq.policy_static import StaticPolicy
from vllm_vectorq.record import Change
from vllm_vectorq.tuning import Tuning

LOGGER = logging.getLogger("test.vectorq.tuning")
WaitUntil = Callable[[Callable[[], bool]], None]
TEXTS = [f"word{n} thing{n} about{n % 7}" for n in range(40)]


@pytest.fixture
def small_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a graph made for a few dozen entries."""
    pytest.importorskip("faiss", reason="needs faiss: pip install faiss-cpu")

    def index(dimensions: int) -> PartitionIndex:
        return PartitionIndex(dimensions, flat_limit=10)

    monkeypatch.setattr(working_set, "PartitionIndex", index)


def tuning_of(c: Core, snapshot: Path | None, fingerprint: str = "model") -> Tuning:
    return Tuning(c.working_set, snapshot, fingerprint, c.faults, LOGGER)


def fill(c: Core) -> list[Change]:
    for text in TEXTS:
        c.cache.complete(c.miss(request(text)), answer(f"About {text}."))
    c.settle()
    return list(c.submitted)


def index_of(c: Core) -> PartitionIndex:
    (state,) = c.working_set.partitions()
    assert state.index is not None
    return state.index


def finds_all(c: Core) -> bool:
    hits = [c.get(request(f"{text} {text}")) for text in TEXTS]
    return [hit.answer.text if hit else None for hit in hits] == [
        f"About {text}." for text in TEXTS
    ]


@pytest.mark.usefixtures("small_graphs")
def test_graph_is_made_saved_and_adopted_by_the_next_process(tmp_path: Path) -> None:
    snapshot = tmp_path / "cache.graphs"
    with core(guards=False) as c:
        changes = fill(c)
        keeper = tuning_of(c, snapshot)
        keeper.once()
        assert index_of(c).graph_rows() is not None
        assert finds_all(c)
        assert keeper.save() == 1
    with core(guards=False) as c:
        c.working_set.apply(changes)
        assert index_of(c).graph_rows() is None
        assert tuning_of(c, snapshot).restore(DIMENSIONS) == 1
        assert index_of(c).graph_rows() is not None
        assert len(index_of(c)) == len(TEXTS)
        assert finds_all(c)


@pytest.mark.usefixtures("small_graphs")
def test_closing_saves_the_graphs(tmp_path: Path) -> None:
    snapshot = tmp_path / "cache.graphs"
    with core() as c:
        fill(c)
        keeper = tuning_of(c, snapshot)
        keeper.start()
        keeper.once()
        keeper.close()
        keeper.close()
        assert (snapshot / "manifest.json").exists()
        assert not any(t.name == "vectorq-tuning" for t in threading.enumerate())


@pytest.mark.usefixtures("small_graphs")
@pytest.mark.parametrize(
    ("fingerprint", "dimensions"), [("other model", DIMENSIONS), ("model", 8)]
)
def test_graphs_of_another_model_are_refused_with_a_reason(
    tmp_path: Path,
    fingerprint: str,
    dimensions: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    snapshot = tmp_path / "cache.graphs"
    with core() as c:
        fill(c)
        keeper = tuning_of(c, snapshot)
        keeper.once()
        keeper.save()
        assert tuning_of(c, snapshot, fingerprint).restore(dimensions) == 0
        assert "indices are made anew" in caplog.text


@pytest.mark.usefixtures("small_graphs")
def test_graph_of_a_partition_that_is_gone_is_left_out(tmp_path: Path) -> None:
    snapshot = tmp_path / "cache.graphs"
    with core() as c:
        fill(c)
        keeper = tuning_of(c, snapshot)
        keeper.once()
        keeper.save()
    with core() as c:
        assert tuning_of(c, snapshot).restore(DIMENSIONS) == 0


@pytest.mark.usefixtures("small_graphs")
def test_graph_that_cannot_be_saved_is_a_fault(tmp_path: Path) -> None:
    with core() as c:
        fill(c)
        keeper = tuning_of(c, tmp_path / "missing" / "cache.graphs")
        keeper.once()
        assert keeper.save() == 0
        assert c.faults.counts() == {"index snapshot": 1}


def test_without_graphs_nothing_is_saved(tmp_path: Path) -> None:
    with core() as c:
        fill(c)
        for snapshot in (None, tmp_path / "cache.graphs"):
            keeper = tuning_of(c, snapshot)
            keeper.once()
            assert keeper.save() == keeper.restore(DIMENSIONS) == 0
        assert list(tmp_path.iterdir()) == []


def test_every_policy_is_tuned() -> None:
    tuned: list[int] = []

    class Tuned(StaticPolicy):
        def tune(self) -> None:
            tuned.append(id(self))

    with core(new_policy=lambda: Tuned(0.7)) as c:
        for tenant in ("a", "b", "c"):
            c.teach(request("question one", tenant=tenant), "yes")
        tuned.clear()
        tuning_of(c, None).once()
        assert len(set(tuned)) == len(tuned) == 3


def test_thread_tunes_and_drops_empty_partitions(
    wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "INTERVAL_S", 0.01)
    monkeypatch.setattr(tuning, "EMPTY_INTERVAL_S", 0.02)
    with core() as c:
        c.teach(request("question one"), "yes")
        c.cache.invalidate()
        keeper = tuning_of(c, None)
        keeper.start()
        wait_until(lambda: not c.working_set.partitions())
        keeper.close()


def test_broken_policy_does_not_keep_others_from_being_tuned(
    wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "INTERVAL_S", 0.01)
    policies: list[StaticPolicy] = []
    tuned = threading.Event()

    class Broken(StaticPolicy):
        def tune(self) -> None:
            if self is policies[0]:
                raise ZeroDivisionError("fit")
            tuned.set()

    def new_policy() -> StaticPolicy:
        policies.append(Broken(0.7))
        return policies[-1]

    with core(new_policy=new_policy) as c:
        for tenant in ("a", "b"):
            c.cache.complete(
                c.miss(request("x", tenant=tenant, why_exact="quick")), answer("yes")
            )
        tuned.clear()
        keeper = tuning_of(c, None)
        keeper.start()
        wait_until(lambda: c.faults.counts().get("tuning", 0) >= 3)
        keeper.close()
        assert tuned.is_set()
