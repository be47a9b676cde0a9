# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the semantic cache's demo asks and what it makes of the replies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo
from benchmarks.program_sched import demo as program_scheduler
from benchmarks.vectorq import demo as semantic_cache
from benchmarks.vectorq.demo_client import Reply, outcome_of
from benchmarks.vectorq.demo_report import Probe, Summary, errors, table, trap
from benchmarks.vectorq.demo_stream import (
    PHRASINGS,
    REFUND,
    REFUND_CHANGED,
    REFUND_REPHRASED,
    request_of,
    stream,
)
from vllm_vectorq.guards import conflict, signature

STATS: dict[str, Any] = {
    "config": {"audit": 0.015},
    "budget": {"per_request": 0.02, "per_hit": 0.05},
    "error": {
        "per_request": 0.0025,
        "per_hit": 0.01,
        "low_per_hit": 0.001,
        "high_per_hit": 0.3,
        "audits": 7,
    },
}


def reply(message: str, outcome: str, answer: str, latency_s: float = 0.5) -> Reply:
    return Reply(message, answer, outcome, None, latency_s)


def neighbour(similarity: float, guard: str | None) -> dict[str, Any]:
    return {"text": REFUND, "similarity": similarity, "guard": guard}


def probe(message: str, served: bool, near: dict[str, Any]) -> Probe:
    explained = {"served": served, "why": "because", "neighbours": [near]}
    return Probe(explained, reply(message, "semantic" if served else "miss", "title"))


@pytest.fixture
def summary() -> Summary:
    replies = [
        reply("a", "miss", "one", 0.4),
        reply("b", "miss", "two", 0.6),
        reply("a", "exact", "one", 0.01),
        reply("c", "semantic", "one", 0.02),
        reply("d", "semantic", "two", 0.04),
    ]
    return Summary(
        replies,
        own={"c": "One.", "d": "three"},
        stats=STATS,
        rephrased=probe(REFUND_REPHRASED, True, neighbour(0.90, None)),
        changed=probe(REFUND_CHANGED, False, neighbour(0.91, "numbers")),
        trap=REFUND,
    )


def test_the_stream_holds_every_phrasing_and_repeats_some() -> None:
    counts = Counter(stream(seed=0, repeats=10))
    phrasings = [text for texts in PHRASINGS.values() for text in texts]
    assert len(phrasings) == len(set(phrasings)) == 96
    assert counts.keys() == {REFUND, *phrasings}
    assert counts.total() == 107


def test_a_message_is_asked_before_it_is_repeated() -> None:
    firsts = dict.fromkeys(stream(seed=1, repeats=30))
    assert list(firsts) == stream(seed=1, repeats=0)


def test_the_order_follows_from_the_seed() -> None:
    assert stream(3) == stream(3) != stream(4)


def test_requests_differ_in_their_last_turn_only() -> None:
    one, other = request_of("one"), request_of("other")
    assert one["messages"].pop() == {"role": "user", "content": "one"}
    assert other["messages"].pop() == {"role": "user", "content": "other"}
    assert one == other
    assert one["temperature"] == 0


def test_the_examples_do_not_give_the_answers_away() -> None:
    [system, *turns] = request_of("message")["messages"][:-1]
    assert system["role"] == "system"
    shown = {turn["content"] for turn in turns if turn["role"] == "user"}
    assert shown.isdisjoint(stream(0))
    titles = {turn["content"] for turn in turns if turn["role"] == "assistant"}
    assert titles.isdisjoint(PHRASINGS)


def test_a_request_past_the_cache_says_so() -> None:
    assert request_of("one", cached=False)["vllm_xargs"] == {"vectorq_mode": "off"}


def test_the_guards_see_the_trap() -> None:
    asked = signature(REFUND)
    assert conflict(asked, signature(REFUND_REPHRASED)) is None
    assert conflict(asked, signature(REFUND_CHANGED)) == "numbers"


@pytest.mark.parametrize(
    ("headers", "outcome"),
    [
        ({"x-vectorq": "hit", "x-vectorq-stage": "semantic"}, "semantic"),
        ({"x-vectorq": "bypass", "x-vectorq-reason": "switched_off"}, "switched_off"),
        ({"x-vectorq": "miss"}, "miss"),
    ],
)
def test_the_outcome_is_read_from_the_headers(
    headers: dict[str, str], outcome: str
) -> None:
    assert outcome_of(headers) == outcome


def test_a_server_without_the_plugin_is_reported() -> None:
    with pytest.raises(RuntimeError, match="make setup"):
        outcome_of({"content-type": "application/json"})


def test_a_line_of_the_log_cuts_long_messages() -> None:
    line = reply("long " * 30, "miss", "title").line(7)
    assert line.startswith("   7 miss        500 ms  long long")
    assert line.endswith("...  title")


def test_the_table_counts_and_takes_medians(summary: Summary) -> None:
    rows = [line.split() for line in table(summary).splitlines()]
    assert rows[1:] == [
        ["exact", "hits", "1", "20", "%", "10", "ms"],
        ["semantic", "hits", "2", "40", "%", "30", "ms"],
        ["misses", "2", "40", "%", "500", "ms"],
        ["all", "5", "100", "%"],
    ]


def test_hits_count_as_right_in_other_spelling_only(summary: Summary) -> None:
    assert [found.message for found in summary.different()] == ["d"]
    shown = errors(summary)
    assert "answers 1 of the 2 semantic hits in the same words" in shown
    assert "\"d\": 'two', the model: 'three'" in shown


def test_the_estimate_stands_beside_the_budget(summary: Summary) -> None:
    rows = [line.split() for line in errors(summary).splitlines()]
    assert ["of", "all", "requests", "0.25", "%", "2", "%"] in rows
    assert ["of", "the", "hits", "1.00", "%", "5", "%"] in rows


def test_without_audits_there_is_no_estimate(summary: Summary) -> None:
    stats = {**STATS, "error": {**STATS["error"], "audits": 0}}
    shown = errors(replace(summary, stats=stats))
    assert ["of", "the", "hits", "-", "5", "%"] in [
        line.split() for line in shown.splitlines()
    ]
    assert "no estimate yet" in shown


def test_the_trap_names_the_guard(summary: Summary) -> None:
    shown = trap(summary)
    assert "similarity 0.900, guard: none\n      explain: would be served" in shown
    assert "similarity 0.910, guard: numbers\n      explain: refused" in shown
    assert "no threshold tells them apart" in shown


def test_a_threshold_would_do_where_the_wrong_message_is_less_similar(
    summary: Summary,
) -> None:
    changed = probe(REFUND_CHANGED, False, neighbour(0.80, "numbers"))
    assert "threshold" not in trap(replace(summary, changed=changed))


def test_requests_that_the_cache_left_alone_are_counted(summary: Summary) -> None:
    replies = [*summary.replies, reply("e", "fault", "one")]
    rows = [
        line.split() for line in table(replace(summary, replies=replies)).splitlines()
    ]
    assert ["left", "alone", "1", "17", "%"] in rows


def test_serving_the_changed_message_fails_the_demo(
    summary: Summary, capsys: pytest.CaptureFixture[str]
) -> None:
    served = probe(REFUND_CHANGED, True, neighbour(0.91, None))
    assert semantic_cache.exit_status(summary) == 0
    assert semantic_cache.exit_status(replace(summary, changed=served)) == 1
    assert "FAILED" in capsys.readouterr().err


def test_a_model_without_hits_is_explained(
    summary: Summary, capsys: pytest.CaptureFixture[str]
) -> None:
    assert semantic_cache.exit_status(replace(summary, replies=[])) == 0
    assert "agree too rarely" in capsys.readouterr().err


def test_the_json_summary_holds_what_is_shown(summary: Summary) -> None:
    found = json.loads(json.dumps(summary.to_json()))
    assert found["semantic_hits"] == {"count": 2, "median_ms": 30.0}
    assert found["hits_median_ms"] == 20.0
    assert found["budget"] == STATS["budget"]
    assert [row["neighbour"]["guard"] for row in found["trap"]] == [None, "numbers"]


@pytest.mark.parametrize(
    ("given", "asked", "rest"),
    [
        (["--vectorq", "--json"], semantic_cache, ["--json"]),
        (["--json"], program_scheduler, ["--json"]),
    ],
)
def test_the_option_chooses_the_demo(
    monkeypatch: pytest.MonkeyPatch, given: list[str], asked: object, rest: list[str]
) -> None:
    calls: list[tuple[object, list[str]]] = []

    def noting(module: object) -> Callable[[list[str]], int]:
        return lambda arguments: calls.append((module, arguments)) or 0

    for module in (semantic_cache, program_scheduler):
        monkeypatch.setattr(module, "main", noting(module))
    assert demo.main(given) == 0
    assert calls == [(asked, rest)]


def test_a_budget_that_cannot_be_used_is_refused_before_a_server_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["--model", "m", "--embedding-model", "e", "--delta", "7"]
    assert semantic_cache.main([*asked, "--out", str(tmp_path)]) == 1
    assert "demo: vectorq.delta=7.0 cannot be used" in capsys.readouterr().err
