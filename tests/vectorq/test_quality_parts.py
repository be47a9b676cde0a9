# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.vectorq.quality_outcome import ERROR_BINS, pooled_calibration
from benchmarks.vectorq.quality_policies import ABLATIONS, policy_named
from benchmarks.vectorq.quality_report import spread
from benchmarks.vectorq.quality_runs import Run, RunLog
from benchmarks.vectorq.quality_static import frontier, interpolated, sweep
from benchmarks.vectorq.quality_streams import BANKING, Source, Stream
from benchmarks.vectorq.quality_templates import Templates
from vllm_vectorq import policy_suite
from vllm_vectorq import replay as replaying
from vllm_vectorq.judge import EqualityJudge
from vllm_vectorq.policy_static import StaticPolicy
from vllm_vectorq.replay import replay

DIMENSIONS = 32
_TAILS = ("train", "boat", "plane", "bike", "bus", "tram", "car", "foot")


def random_stream(seed: int, n: int = 150, noise: float = 0.5) -> Stream:
    random = np.random.default_rng(seed)
    classes = random.integers(8, size=n)
    vectors = random.standard_normal((8, DIMENSIONS))[classes]
    vectors += noise * random.standard_normal((n, DIMENSIONS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = tuple(f"how do I get there by {_TAILS[i % 7]}" for i in range(n))
    return Stream(texts, vectors.astype(np.float32), classes)


@pytest.mark.parametrize("use_guards", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_sweep_serves_what_a_replay_per_threshold_serves(
    seed: int, use_guards: bool
) -> None:
    stream = random_stream(seed)
    thresholds = np.array([0.1, 0.3, 0.5, 0.7])
    hits, errors = sweep(stream, thresholds, use_guards)
    for threshold, hit, error in zip(thresholds, hits, errors, strict=True):
        outcome = replay(
            StaticPolicy(threshold),
            stream.vectors,
            stream.classes,
            0.02,
            seed,
            texts=stream.texts if use_guards else None,
        )
        assert hit == pytest.approx(outcome.hit_rate)
        assert error == pytest.approx(outcome.error_per_request)
    assert 0.0 < hits[-1] < hits[0]


def test_hindsight_takes_the_best_threshold_that_errs_no_more() -> None:
    hit_rates, errors = [0.9, 0.6, 0.2], [0.10, 0.02, 0.0]
    assert frontier(hit_rates, errors, 0.02) == 0.6
    assert frontier(hit_rates, errors, 0.019) == 0.2
    assert interpolated(hit_rates, errors, 0.01) == pytest.approx(0.4)
    assert interpolated(hit_rates, errors, 0.06) == pytest.approx(0.75)


def test_calibration_counts_of_two_runs_add_up() -> None:
    bins = len(ERROR_BINS) - 1
    one, other = np.zeros((2, bins, 3))
    one[0], other[0], other[-1] = (90, 0.2, 0), (10, 0.02, 1), (5, 1.0, 2)
    low, high = pooled_calibration([one.tolist(), other.tolist()])
    assert (low["hits"], low["predicted"], low["observed"]) == (100, 0.0022, 0.01)
    assert (high["hits"], high["predicted"], high["observed"]) == (5, 0.2, 0.4)


def test_a_spread_names_the_worst_order() -> None:
    found = spread([0.1, 0.4, 0.1])
    assert (found["median"], found["mean"], found["max"]) == (0.1, 0.2, 0.4)


@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_an_ablation_ends_with_its_run(name: str) -> None:
    before = (vars(policy_suite).copy(), vars(replaying).copy())
    stream = random_stream(7, 300)
    with policy_named(f"suite {name}") as policy:
        replay(policy, stream.vectors, stream.classes, 0.02, 0, texts=stream.texts)
    assert (vars(policy_suite), vars(replaying)) == before


def test_without_cold_start_nothing_is_served_before_the_first_fit() -> None:
    stream = random_stream(1, 400, noise=0.1)
    texts = [f"how do I get there by {_TAILS[c]}" for c in stream.classes]
    hits = []
    for name in ("suite", "suite no_cold_start"):
        with policy_named(name) as policy:
            policy._refit_at = len(stream.texts)
            found = replay(policy, stream.vectors, stream.classes, 0.5, 0, texts=texts)
        hits.append(int(found.hit.sum()))
    assert hits[0] > 0 == hits[1]


def test_templates_word_one_answer_in_many_ways_that_a_judge_sees_through() -> None:
    stream = random_stream(0)
    templates = Templates(stream, alike=False)
    judge = EqualityJudge()
    wordings = [templates.answer(3, number) for number in range(40)]
    assert len(set(wordings)) > 20
    for wording in wordings:
        assert judge.judge("", wordings[0], "", wording).equivalent is True
    assert judge.judge("", wordings[0], "", templates.answer(4, 0)).equivalent is None


def test_near_intents_have_answers_alike_if_asked_for() -> None:
    stream = random_stream(0)
    of_three = stream.vectors[stream.classes == 3]
    stream.vectors[stream.classes == 4] = of_three.mean(axis=0)
    shared = []
    for alike in (False, True):
        templates = Templates(stream, alike)
        one, other = (templates.answer(intent, 4).split() for intent in (3, 4))
        shared.append(len(set(one) & set(other)) / len(set(one) | set(other)))
    assert shared[0] < 0.4 < shared[1] < 1.0


def test_runs_with_other_settings_are_thrown_away(tmp_path: Path) -> None:
    run = Run("policies", Source(BANKING), "0", "suite", 0.01)
    path = tmp_path / "runs.jsonl"
    RunLog(path, {"requests": 1}).add(run, {"hit_rate": 0.5})
    assert RunLog(path, {"requests": 1}).find(run) == {"hit_rate": 0.5}
    assert RunLog(path, {"requests": 2}).find(run) is None
