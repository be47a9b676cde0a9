# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A support desk's messages on a real server that learns which answers to reuse.

Run from the repository root: ``make demo ARGS=--vectorq``, or
``python -m benchmarks.vectorq.demo``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from benchmarks import environment
from benchmarks.command import run_command
from benchmarks.program_sched.results import one_row_a_line
from benchmarks.program_sched.server import VllmServer
from benchmarks.vectorq.demo_client import Desk, Reply
from benchmarks.vectorq.demo_report import Probe, Summary, errors, table, trap
from benchmarks.vectorq.demo_stream import (
    REFUND,
    REFUND_CHANGED,
    REFUND_REPHRASED,
    stream,
)
from benchmarks.vectorq.latency_store import embedding_model_dir
from scripts.model_cache import resolve_model
from vllm_vectorq.config import VectorQConfig

# A busy machine must not turn hits into misses; the plugin's own default is shorter.
_EMBEDDING_DEADLINE_S = 5.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make demo ARGS='--vectorq ...'",
        description="Send rephrased messages to one real vLLM server with the semantic "
        "cache: see it learn, serve, and refuse what only looks the same.",
    )
    parser.add_argument("--model", help="path or hub id (default: the demo model)")
    parser.add_argument(
        "--embedding-model",
        metavar="DIRECTORY",
        help="sentence-transformers model (default: the installed all-MiniLM-L6-v2)",
    )
    parser.add_argument(
        "--delta",
        type=float,
        default=VectorQConfig().delta,
        help="error budget: share of the requests that may get a wrong answer "
        "(default: %(default)s, the plugin's)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the messages' order")
    parser.add_argument("--out", type=Path, default=Path("results/demo-vectorq"))
    parser.add_argument(
        "--json", action="store_true", help="print the summary as JSON at the end"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit status."""
    options = _parser().parse_args(arguments)
    return run_command(
        "demo",
        lambda: _run(options),
        (FileNotFoundError, ValueError, RuntimeError, httpx.HTTPError),
        interrupted="interrupted, server stopped",
    )


def _run(options: argparse.Namespace) -> int:
    model = options.model or resolve_model()
    config = {
        "enabled": True,
        "embedding_model": embedding_model_dir(options.embedding_model),
        "embedding_deadline_s": _EMBEDDING_DEADLINE_S,
        "delta": options.delta,
        "store": "memory",
    }
    # Refused here rather than by the server a minute later.
    VectorQConfig.from_additional_config({"vectorq": config})
    messages = stream(options.seed)
    _explain(messages, model, options.delta)
    # The server inherits it: vLLM adds the routes of plugins that are named only.
    os.environ["VLLM_PLUGINS"] = "vectorq"
    out: Path = options.out
    flags = ("--additional-config", json.dumps({"vectorq": config}))
    server = VllmServer(model, out / "server.log", flags)
    with server, Desk(server.base_url) as desk:
        try:
            summary = _converse(desk, messages)
        except httpx.HTTPError:
            server.check_alive()
            raise
    settings = {"model": model, "seed": options.seed, "config": config}
    path = _write(out / "results.json", settings, summary)
    _conclude(summary, path, as_json=options.json)
    return exit_status(summary)


def _explain(messages: Sequence[str], model: str, delta: float) -> None:
    print(
        f"{len(messages)} messages to a support desk, {len(set(messages))} of them "
        "different; the model gives each a title.\n"
        f"Model: {model}\n"
        "One server with the semantic cache, policy suite, error budget "
        f"{100 * delta:g} % of the requests.\nIt knows nothing at first: it serves "
        "rephrased messages once enough answers have been compared.\n"
        "Two to four minutes on two cores.",
        file=sys.stderr,
    )


def _converse(desk: Desk, messages: Sequence[str]) -> Summary:
    """Ask everything, and find out what the model itself would have said."""
    replies = [_shown(desk, text, at) for at, text in enumerate(messages, start=1)]
    stats = desk.stats()
    hits = [reply.message for reply in replies if reply.outcome == "semantic"]
    print(f"asking the model itself about {len(hits)} semantic hits", file=sys.stderr)
    own = {message: desk.ask(message, cached=False).answer for message in hits}
    rephrased, changed = (
        Probe(desk.explain(message), desk.ask(message))
        for message in (REFUND_REPHRASED, REFUND_CHANGED)
    )
    return Summary(replies, own, stats, rephrased, changed, trap=REFUND)


def _shown(desk: Desk, message: str, number: int) -> Reply:
    reply = desk.ask(message)
    print(reply.line(number), file=sys.stderr, flush=True)
    return reply


def _write(path: Path, settings: dict[str, object], summary: Summary) -> Path:
    data = {
        "settings": settings,
        "environment": environment.describe(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "summary": summary.to_json(),
        "replies": [reply.to_json() for reply in summary.replies],
    }
    path.write_text(one_row_a_line(data))
    return path


def _conclude(summary: Summary, path: Path, *, as_json: bool) -> None:
    print(f"\n{table(summary)}\n\n{errors(summary)}\n\n{trap(summary)}\n")
    print(f"All replies: {path}")
    if as_json:
        print(json.dumps(summary.to_json(), indent=1))


def exit_status(summary: Summary) -> int:
    """Return 1 when an answer was served that the guards exist to refuse."""
    if summary.changed.explained["served"]:
        print(
            f'demo: FAILED: "{REFUND_CHANGED}" would get the answer to "{REFUND}"',
            file=sys.stderr,
        )
        return 1
    if not summary.of_kind("semantic"):
        print(
            "demo: nothing was served for a rephrased message: this model's answers "
            "to them agree too rarely for the budget",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
