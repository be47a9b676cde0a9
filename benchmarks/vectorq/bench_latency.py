# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the cache costs: every stage, hits and misses through a server, and memory.

Run from the repository root: ``python -m benchmarks.vectorq.bench_latency``. The
targets are reported, they fail nothing: a hit within 5 ms beyond its embedding with
100,000 entries (median), a miss at most 3 ms slower beyond its embedding (99th
percentile). The second one is told from the look-up in the process: between two
servers the noise of the model's part is far larger. Nothing else should run on the
machine.
"""

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.command import run_command
from benchmarks.vectorq import latency_server, latency_soak, latency_stages
from benchmarks.vectorq.latency_plot import plot
from benchmarks.vectorq.latency_store import embedding_model_dir

PARTS = ("stages", "server", "soak")
HIT_TARGET_MS = 5.0
MISS_TARGET_MS = 3.0
_LIBRARIES = ("vllm-vectorq", "sentence-transformers", "faiss-cpu", "numpy")
_OUT = Path("benchmarks/vectorq/results/latency.json")
_PICTURE = Path("docs/vectorq/images/latency")
_QUICK_OUT = Path("results/vectorq/latency_quick.json")


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _integers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vectorq.bench_latency",
        description="Measure what the semantic cache costs in time and memory.",
    )
    parser.add_argument(
        "--parts", type=_words, default=list(PARTS), help="stages,server,soak"
    )
    parser.add_argument(
        "--quick", action="store_true", help="minutes instead of an hour; few entries"
    )
    parser.add_argument(
        "--entries", type=_integers, help="sizes for the stages; the last for servers"
    )
    parser.add_argument("--requests", type=int, help="timed requests per cell")
    parser.add_argument("--clients", type=_integers, default=[1, 16, 64])
    parser.add_argument("--repeats", type=int, help="starts of both servers")
    parser.add_argument(
        "--soak", type=int, metavar="N", help="requests of the memory test"
    )
    parser.add_argument("--embedding-model", metavar="DIRECTORY")
    parser.add_argument(
        "--folder", type=Path, default=Path("results/vectorq/latency"), help="scratch"
    )
    parser.add_argument("--out", type=Path, help=f"default: {_OUT}")
    parser.add_argument(
        "--picture", type=Path, metavar="STEM", help=f"default: {_PICTURE}"
    )
    return parser


def _with_defaults(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on ``--quick``.

    Raises:
        ValueError: A part is unknown.
    """
    for part in options.parts:
        if part not in PARTS:
            raise ValueError(f"--parts {part}: choose some of {', '.join(PARTS)}")
    quick = options.quick
    options.entries = options.entries or ([1_000] if quick else [1_000, 100_000])
    options.requests = options.requests or (40 if quick else 200)
    options.repeats = options.repeats or (1 if quick else 3)
    options.soak = options.soak or (5_000 if quick else 200_000)
    options.out = options.out or (_QUICK_OUT if quick else _OUT)
    own = options.out.with_suffix("")
    options.picture = options.picture or (_PICTURE if options.out == _OUT else own)
    options.embedding_model = embedding_model_dir(options.embedding_model)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts, write JSON and pictures; return the exit status."""
    options = _parser().parse_args(arguments)
    return run_command(
        "bench_latency",
        lambda: _run(_with_defaults(options)),
        (FileNotFoundError, ValueError, RuntimeError),
        interrupted="interrupted",
    )


def _run(options: argparse.Namespace) -> int:
    # The pictures show all parts, so what an earlier run measured stays.
    report: dict[str, Any] = {}
    if options.out.is_file():
        report = json.loads(options.out.read_text())
    measure: dict[str, Callable[[argparse.Namespace], Any]] = {
        "stages": _stages,
        "server": _server,
        "soak": _soak,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if part not in options.parts:
            continue
        print(f"== {part} ==", file=sys.stderr, flush=True)
        report[part] = measure[part](options)
        report.setdefault("environment", {})[part] = {
            **environment.describe(),
            "libraries": {n: importlib.metadata.version(n) for n in _LIBRARIES},
            "settings": _settings(options),
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    pictures = plot(report, options.picture)
    print("\n".join(_lines(report)))
    print(f"\nAll numbers: {options.out}")
    print(f"Plot:        {', '.join(str(picture) for picture in pictures)}")
    return 0


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = ("quick", "entries", "requests", "clients", "repeats", "soak")
    return {name: getattr(options, name) for name in names}


def _stages(options: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        latency_stages.measure(
            entries,
            requests=5 * options.requests,
            training=400 if options.quick else 2_000,
            embedding_model=options.embedding_model,
            folder=options.folder / "stages",
        )
        for entries in options.entries
    ]


def _server(options: argparse.Namespace) -> dict[str, Any]:
    return latency_server.measure(
        options.entries[-1],
        options.requests,
        options.repeats,
        options.clients,
        options.embedding_model,
        options.folder / "server",
    )


def _soak(options: argparse.Namespace) -> dict[str, Any]:
    return latency_soak.measure(
        options.soak,
        max_entries=1_000 if options.quick else 20_000,
        embedding_model=options.embedding_model,
        folder=options.folder / "soak",
    )


def _lines(report: dict[str, Any]) -> list[str]:
    """The main numbers and how far they are from the targets."""
    lines = []
    for row in report.get("stages", []):
        memory = row["memory_bytes_per_entry"]
        lines.append(
            f"{row['entries']:7,} entries: start {row['start_s']:.1f} s, "
            f"{memory['rss_with_graph']:,.0f} bytes each (accounted "
            f"{memory['accounted']:,.0f})"
        )
        lookups = {f"look-up: {name}": each for name, each in row["lookup"].items()}
        times = {**row["stages"], **lookups, **row["comparators"]}
        lines += [
            f"    {name:17} p50 {each['p50_ms']:8.3f} ms   p99 {each['p99_ms']:8.3f} ms"
            for name, each in times.items()
            if isinstance(each, dict)
        ]
        hit_ms = row["lookup"].get("semantic", row["lookup"]["exact"])["p50_ms"]
        miss_ms = row["lookup"]["miss"]["p99_ms"]
        lines.append(
            f"    beyond the embedding: hit p50 {_verdict(hit_ms, HIT_TARGET_MS)}, "
            f"miss p99 {_verdict(miss_ms, MISS_TARGET_MS)}"
        )
    for row in report.get("server", {}).get("summary", []):
        hit_ms = row["semantic_hit_p50_beyond_embedding_ms"]
        lines.append(
            f"{row['clients']:3} clients: semantic hit p50 beyond its embedding "
            f"{_verdict(hit_ms, HIT_TARGET_MS)}, of which rendering alone takes "
            f"{row['render_only_p50_ms']:.1f} ms; miss against a server without "
            f"p50 {row['added_to_miss_p50_beyond_embedding_ms']:+.1f} ms, "
            f"p99 {row['added_to_miss_p99_beyond_embedding_ms']:+.1f} ms"
        )
    if "soak" in report:
        soak = report["soak"]
        slope = soak["slope_mib_per_100k_requests"]
        lines.append(
            f"memory: {slope:+.1f} MiB per 100,000 requests over the second half of "
            f"{soak['requests']:,}"
        )
    return lines


def _verdict(found_ms: float, target_ms: float) -> str:
    met = "met" if found_ms <= target_ms else "missed"
    return f"{found_ms:.2f} ms (target {target_ms:g} ms {met})"


if __name__ == "__main__":
    sys.exit(main())
