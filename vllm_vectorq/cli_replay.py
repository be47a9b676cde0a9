# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""``vllm-vectorq replay``: what a policy would have done with a log."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .cli_embedding import embedding_model
from .cli_error import CliError
from .cli_log import RequestLog, read_log
from .cli_progress import Progress
from .cli_result import FORMAT, VERSION, run_result
from .cli_table import percent, table
from .config import POLICIES, VectorQConfig
from .record import Vector
from .replay import replay
from .service import policy_factory

_BATCH = 64
_DEFAULTS = VectorQConfig()
_EXAMPLE = """\
example:
  vllm-vectorq replay log.jsonl --policy suite --policy vcache --delta 0.01 \\
      --shuffle 5 --out result.json

The log has one request a line, in the order of arrival:
  {"text": "How tall is Mont Blanc?", "class": "mont-blanc-height"}
or, with the model's answer instead of a class:
  {"text": "How tall is Mont Blanc?", "answer": "4,806 m"}
Requests are right for each other when their classes, or the wording of their answers,
are equal. Texts that the embedding model cannot read whole are left out.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "replay",
        help="try policies on a log of requests",
        description="Run policies over a log, each from an empty cache, and measure "
        "hits and errors. No model is asked: the log has the answers.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("log", type=Path, metavar="LOG.jsonl", help="the requests")
    parser.add_argument(
        "--policy",
        action="append",
        choices=POLICIES,
        help=f"what decides; may be repeated (default: {_DEFAULTS.policy})",
    )
    parser.add_argument(
        "--delta",
        action="append",
        type=float,
        help="error budget per request; may be repeated (default: "
        f"{_DEFAULTS.delta:g})",
    )
    parser.add_argument(
        "--embedding-model",
        default=_DEFAULTS.embedding_model,
        metavar="MODEL",
        help="directory or name of the model (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of exploration and order (default: 0)"
    )
    parser.add_argument(
        "--shuffle",
        type=_count,
        default=0,
        metavar="N",
        help="run over N random orders instead of the order of the log",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the result, for plot"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Replay a log; return the exit status."""
    policies = dict.fromkeys(options.policy or [_DEFAULTS.policy])
    deltas = dict.fromkeys(options.delta or [_DEFAULTS.delta])
    configs = [
        VectorQConfig(policy=policy, delta=delta)
        for policy, delta in product(policies, deltas)
    ]
    whole = read_log(options.log)
    log, vectors = _embedded(whole, options.embedding_model)
    result = {
        "format": FORMAT,
        "version": VERSION,
        "log": str(options.log),
        "requests": len(log.texts),
        "left_out": len(whole.texts) - len(log.texts),
        "classes": len(np.unique(log.classes)),
        "embedding_model": options.embedding_model,
        "seed": options.seed,
        "runs": list(_runs(log, vectors, configs, options)),
    }
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2) if options.json else _shown(result))
    return 0


def _embedded(log: RequestLog, name: str) -> tuple[RequestLog, Vector]:
    """The requests that the model can read, and their vectors, float32 [n, d]."""
    model = embedding_model(name)
    fits = {text: model.fits(text) for text in dict.fromkeys(log.texts)}
    kept = [place for place, text in enumerate(log.texts) if fits[text]]
    if not kept:
        raise CliError("the embedding model can read none of the texts whole.")
    texts = [text for text, readable in fits.items() if readable]
    progress = Progress("embedded texts", len(texts))
    parts = []
    for start in range(0, len(texts), _BATCH):
        parts.append(model.embed(texts[start : start + _BATCH]))
        progress(start)
    progress.end()
    row_of = {text: row for row, text in enumerate(texts)}
    log = log.only(kept)
    return log, np.concatenate(parts)[[row_of[text] for text in log.texts]]


def _runs(
    log: RequestLog,
    vectors: Vector,
    configs: Sequence[VectorQConfig],
    options: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    n = len(log.texts)
    for shuffle in range(max(options.shuffle, 1)):
        seed = options.seed + shuffle
        order = np.arange(n)
        if options.shuffle:
            order = np.random.default_rng(seed).permutation(n)
        ordered = log.only(order.tolist())
        for config in configs:
            progress = Progress(f"{config.policy}, delta {config.delta:g}", n)
            started_s = time.perf_counter()
            outcome = replay(
                policy_factory(config)(),
                vectors[order],
                ordered.classes,
                config.delta,
                seed,
                neighbours=config.neighbours,
                texts=ordered.texts,
                progress=progress,
            )
            progress.end()
            yield {
                "policy": config.policy,
                "delta": config.delta,
                "hit_delta": config.hit_delta,
                "order": f"shuffle {seed}" if options.shuffle else "log",
                "seconds": round(time.perf_counter() - started_s, 3),
                **run_result(outcome),
            }


def _shown(result: dict[str, Any]) -> str:
    left_out = result["left_out"]
    lines = [
        f"{result['requests']} requests of {result['classes']} classes"
        + (f", {left_out} left out" if left_out else "")
    ]
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for found in result["runs"]:
        groups.setdefault((found["policy"], found["delta"]), []).append(found)
    rows = [
        (
            policy,
            f"{delta:g}",
            *(_spread(runs, name) for name in _SHARES),
            *(f"{_mean(runs, name):.0f}" for name in _COUNTS),
        )
        for (policy, delta), runs in groups.items()
    ]
    header = ("policy", "delta", *_SHARES.values(), *_COUNTS.values())
    lines.append(table(header, rows))
    shuffles = max(map(len, groups.values()))
    if shuffles > 1:
        lines.append(f"mean and standard deviation over {shuffles} random orders")
    return "\n".join(lines)


_SHARES = {
    "hit_rate": "hit rate",
    "error_per_request": "error/request",
    "error_per_hit": "error/hit",
}
_COUNTS = {"judge_calls": "judge calls", "entries": "entries"}


def _mean(runs: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.fmean(found[name] for found in runs)


def _spread(runs: Sequence[dict[str, Any]], name: str) -> str:
    mean = percent(_mean(runs, name))
    if len(runs) == 1:
        return mean
    return f"{mean} \u00b1 {percent(statistics.stdev(found[name] for found in runs))}"


def _count(given: str) -> int:
    """Read a number of orders."""
    count = int(given)
    if count < 0:
        raise argparse.ArgumentTypeError(f"{count} is negative")
    return count
