# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The runs of the quality benchmark: what each is, how it is done, and their log."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import vllm_vectorq
from benchmarks.vectorq import (
    datasets,
    quality_answers,
    quality_outcome,
    quality_policies,
    quality_static,
    quality_streams,
    quality_templates,
)
from benchmarks.vectorq.quality_outcome import measured
from benchmarks.vectorq.quality_policies import STATIC, policy_named
from benchmarks.vectorq.quality_static import sweep
from benchmarks.vectorq.quality_streams import TRAPS, Source, Stream
from vllm_vectorq import guards
from vllm_vectorq.replay import Outcome, replay

ANSWERS_ALIKE = "answers_alike"
ANSWERS = ("answers", ANSWERS_ALIKE)
THRESHOLDS = tuple(round(0.60 + 0.01 * i, 2) for i in range(40))

_MEASURING = (
    *(datasets, quality_answers, quality_outcome, quality_policies, quality_static),
    *(quality_streams, quality_templates),
)

_signature = cache(guards.signature)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """One pass over a stream.

    Attributes:
        part: Part of the report that it belongs to.
        source: The questions.
        order: ``drift`` or the seed of a shuffle.
        policy: As in :func:`~benchmarks.vectorq.quality_policies.policy_named`;
            ``static`` alone: every threshold; ``exact``: repeats only.
        delta: Error budget per request; 0 where there is none.
        guards: Whether the policy sees what the lexical guards say.
        judge_noise: Share of labels that are flipped.
    """

    part: str
    source: Source
    order: str
    policy: str
    delta: float = 0.0
    guards: bool = True
    judge_noise: float = 0.0

    def row(self) -> Row:
        """What identifies it, as JSON values."""
        return {**asdict(self), "source": self.source.name}


def perform(run: Run, model_directory: str, requests: int | None) -> Row:
    """Do a run; returns what identifies it and what it measured."""
    started_s = time.perf_counter()
    if run.part == TRAPS:
        found = _traps(run, model_directory)
    else:
        stream = quality_streams.stream(
            run.source, model_directory, run.order, requests
        )
        found = _measure(run, stream, model_directory)
    seconds = round(time.perf_counter() - started_s, 1)
    return {**run.row(), **found, "seconds": seconds}


def _measure(run: Run, stream: Stream, model_directory: str) -> Row:
    seed = quality_streams.seed_of(run.order)
    if run.part in ANSWERS:
        model = quality_streams.model_of(model_directory)
        alike = run.part == ANSWERS_ALIKE
        return quality_answers.serve(stream, model, run.delta, seed, alike)
    if run.policy == STATIC:
        hit_rates, errors = sweep(stream, np.array(THRESHOLDS), run.guards)
        return {
            "hit_rate": [round(rate, 4) for rate in hit_rates],
            "error_per_request": [round(rate, 5) for rate in errors],
        }
    if run.policy == "exact":
        return _repeats(stream)
    return measured(_replayed(run, stream, seed))


def _replayed(run: Run, stream: Stream, seed: int) -> Outcome:
    # Many runs read the same texts.
    remembered = patch.object(guards, "signature", _signature)
    with policy_named(run.policy) as policy, remembered:
        return replay(
            policy,
            stream.vectors,
            stream.classes,
            run.delta,
            seed,
            judge_noise=run.judge_noise,
            texts=stream.texts if run.guards else None,
        )


def _repeats(stream: Stream) -> Row:
    """Only a text that was there before is answered, as it was then."""
    first: dict[str, int] = {}
    wrong = hits = 0
    for text, intent in zip(stream.texts, stream.classes.tolist(), strict=True):
        if text in first:
            hits += 1
            wrong += first[text] != intent
        first.setdefault(text, intent)
    n = len(stream.texts)
    return {
        "requests": n,
        "hit_rate": round(hits / n, 5),
        "error_per_request": round(wrong / n, 5),
        "error_per_hit": round(wrong / max(hits, 1), 5),
    }


def _traps(run: Run, model_directory: str) -> Row:
    """The first question of each pair, then the second, which is a trap or is not."""
    whole = quality_streams.embedded(run.source, model_directory)
    seed = quality_streams.seed_of(run.order)
    pairs = np.random.default_rng(seed).permutation(len(whole.texts) // 2)
    places = np.stack([2 * pairs, 2 * pairs + 1], axis=1).reshape(-1)
    stream = whole.in_order(places)
    outcome = _replayed(run, stream, seed)
    same = stream.classes[0::2] == stream.classes[1::2]
    hit, wrong = outcome.hit[1::2], outcome.wrong[1::2]
    return {
        "traps": int((~same).sum()),
        "traps_answered_wrongly": int(wrong[~same].sum()),
        "rephrasings": int(same.sum()),
        "rephrasings_served": int((hit & ~wrong)[same].sum()),
        "error_per_request": round(outcome.error_per_request, 5),
    }


class RunLog:
    """Rows as they come, so that an interrupted benchmark goes on where it was.

    Args:
        path: JSON lines. What was measured on other code or with other settings is
            thrown away.
        settings: What all runs have in common.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path
        self._rows: dict[str, Row] = {}
        head = json.dumps({"code": _code_digest(), "settings": settings})
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        if lines[:1] == [head]:
            for line in lines[1:]:
                row = json.loads(line)
                self._rows[row.pop("key")] = row
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(head + "\n", "utf-8")

    def find(self, run: Run) -> Row | None:
        """What a run measured, if it is done."""
        return self._rows.get(json.dumps(run.row()))

    def add(self, run: Run, row: Row) -> None:
        """Keep what a run measured."""
        key = json.dumps(run.row())
        self._rows[key] = row
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, **row}) + "\n")


def perform_all(
    runs: Iterable[Run],
    log: RunLog,
    model_directory: str,
    requests: int | None,
    processes: int,
) -> Iterator[tuple[Run, Row]]:
    """Do what is not in the log yet; rows come as they are finished."""
    missing = []
    for run in runs:
        if (known := log.find(run)) is not None:
            yield run, known
        else:
            missing.append(run)
    done: Iterator[tuple[Run, Row]]
    if processes == 1:
        done = ((run, perform(run, model_directory, requests)) for run in missing)
    else:
        done = _in_processes(missing, model_directory, requests, processes)
    for run, row in done:
        log.add(run, row)
        yield run, row


def _in_processes(
    runs: list[Run], model_directory: str, requests: int | None, processes: int
) -> Iterator[tuple[Run, Row]]:
    # Not forked: the embedding model's threads would not come along.
    pool = ProcessPoolExecutor(processes, get_context("spawn"))
    one_thread_each = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        with patch.dict(os.environ, one_thread_each):
            futures = {
                pool.submit(perform, run, model_directory, requests): run
                for run in runs
            }
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        # After an interruption, what has not begun is not waited for.
        pool.shutdown(cancel_futures=True)


def _code_digest() -> str:
    """Hash over the sources that decide what is measured."""
    digest = hashlib.sha256()
    plugin = sorted(Path(vllm_vectorq.__file__).parent.glob("*.py"))
    for path in (*plugin, *(Path(str(module.__file__)) for module in _MEASURING)):
        digest.update(path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]
