# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Whether per-entry policies keep an error budget, and what breaks it.

Run from the repository root: ``python -m benchmarks.vectorq.budget``. Every entry has
a true sigmoid, so the paper's assumptions hold; then the judge errs, or every boundary
moves up halfway through (answers grow old). Rates are of the truth, not of labels.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import environment
from vllm_vectorq.policy import Evidence, Policy
from vllm_vectorq.policy_static import StaticPolicy
from vllm_vectorq.policy_vcache import VCachePolicy
from vllm_vectorq.policy_vectorq_v1 import VectorQV1Policy

Floats = NDArray[np.float64]

_DELTAS = (0.01, 0.02, 0.05)
_NOISES = (0.0, 0.05, 0.1, 0.2, 0.3)
_DRIFTS = (0.0, 0.05, 0.1)
_POLICIES: dict[str, Callable[[float], Policy]] = {
    "vcache": lambda delta: VCachePolicy(),
    "vcache with floor": lambda delta: VCachePolicy(hit_floor=1.0 - delta),
    "vectorq_v1": lambda delta: VectorQV1Policy(),
    "static 0.90": lambda delta: StaticPolicy(0.90),
}


@dataclass(frozen=True)
class World:
    """Entries with a true sigmoid each, and what happens to them.

    Attributes:
        boundaries: Similarity at which each entry is right half of the time [entries].
        slopes: Slope of each entry's sigmoid [entries].
        judge_noise: Probability that a label is the opposite of the truth.
        drift: How far every boundary moves up at half time.
    """

    boundaries: Floats
    slopes: Floats
    judge_noise: float = 0.0
    drift: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a policy did with a stream of requests, by entry.

    Attributes:
        requests: Requests whose nearest entry this was, int64 [entries].
        hits: Of these, served from the cache, int64 [entries].
        errors: Of the hits, wrong ones, int64 [entries].
    """

    requests: NDArray[np.int64]
    hits: NDArray[np.int64]
    errors: NDArray[np.int64]


def nearest(similarity: float, entry_id: int = 0) -> Evidence:
    """Evidence of a request with one entry near it."""
    vector = np.zeros(1, dtype=np.float32)
    return Evidence(
        vector=vector,
        entry_ids=np.array([entry_id], dtype=np.int64),
        class_ids=np.array([entry_id], dtype=np.int64),
        similarities=np.array([similarity], dtype=np.float32),
        vectors=vector[None, :],
        conflicts=np.zeros(1, dtype=np.bool_),
        lexical=np.ones(1, dtype=np.float32),
        size=1,
    )


def draw_similarities(rng: np.random.Generator, count: int) -> Floats:
    """Similarities to the nearest entry: 0.5 to 1, mean 0.83, as MiniLM's are."""
    return np.asarray(0.5 + 0.5 * rng.beta(4.0, 2.0, count))


def simulate(
    policy: Policy, world: World, num_requests: int, delta: float, seed: int
) -> Outcome:
    """Run a stream of requests through a policy, labelling whatever it explores."""
    rng = np.random.default_rng(seed)
    entries = rng.integers(len(world.boundaries), size=num_requests)
    similarities = draw_similarities(rng, num_requests).astype(np.float32)
    moved = world.drift * (np.arange(num_requests) >= num_requests // 2)
    odds = world.slopes[entries] * (similarities - world.boundaries[entries] - moved)
    right = rng.random(num_requests) < 1.0 / (1.0 + np.exp(-odds))
    labels = right ^ (rng.random(num_requests) < world.judge_noise)
    uniform = rng.random(num_requests)
    served = np.zeros(num_requests, dtype=np.bool_)
    for i, entry in enumerate(entries.tolist()):
        evidence = nearest(float(similarities[i]), entry)
        decision = policy.decide(evidence, delta, float(uniform[i]))
        served[i] = decision.serve
        if not decision.serve and decision.candidate is not None:
            policy.observe(
                entry, decision.features, bool(labels[i]), decision.propensity
            )
    size = len(world.boundaries)
    return Outcome(
        requests=np.bincount(entries, minlength=size),
        hits=np.bincount(entries[served], minlength=size),
        errors=np.bincount(entries[served & ~right], minlength=size),
    )


def _draw_world(num_entries: int, seed: int, noise: float, drift: float) -> World:
    """Entries of which one in ten is never right, the others at 0.55 to 0.95."""
    rng = np.random.default_rng([seed, num_entries])
    boundaries = rng.uniform(0.55, 0.95, num_entries)
    boundaries[: num_entries // 10] = 1.3
    slopes = np.exp(rng.uniform(np.log(8.0), np.log(120.0), num_entries))
    return World(boundaries, slopes, noise, drift)


def measure(
    name: str,
    delta: float,
    judge_noise: float,
    drift: float,
    seeds: int,
    num_entries: int,
    num_requests: int,
) -> dict[str, Any]:
    """One row of the report: rates over all seeds, and the worst seed's."""
    totals = []
    for seed in range(seeds):
        world = _draw_world(num_entries, seed, judge_noise, drift)
        outcome = simulate(_POLICIES[name](delta), world, num_requests, delta, seed)
        totals.append([int(outcome.hits.sum()), int(outcome.errors.sum())])
    hits, errors = np.sum(totals, axis=0).tolist()
    worst = max(errors for _, errors in totals) / num_requests
    return {
        "policy": name,
        "delta": delta,
        "judge_noise": judge_noise,
        "drift": drift,
        "hit_rate": hits / (seeds * num_requests),
        "error_per_request": errors / (seeds * num_requests),
        "error_per_request_worst_seed": worst,
        "error_per_hit": errors / max(1, hits),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every cell and write JSON; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vectorq.budget", description="Error budgets."
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--entries", type=int, default=50)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("results/vectorq/budget.json"))
    options = parser.parse_args(arguments)
    cells = [(delta, noise, 0.0) for delta in _DELTAS for noise in _NOISES]
    cells += [(delta, 0.0, drift) for delta in _DELTAS for drift in _DRIFTS[1:]]
    rows = []
    for delta, noise, drift in cells:
        for name in _POLICIES:
            row = measure(
                *(name, delta, noise, drift),
                *(options.seeds, options.entries, options.requests),
            )
            rows.append(row)
            print(
                f"{name:18} delta {delta:.2f} noise {noise:.2f} drift {drift:.2f}: "
                f"hit {row['hit_rate']:6.1%}, wrong per request "
                f"{row['error_per_request']:.2%}, per hit {row['error_per_hit']:.2%}",
                flush=True,
            )
    report = {
        "environment": environment.describe(),
        "settings": {
            "seeds": options.seeds,
            "entries": options.entries,
            "requests": options.requests,
        },
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
