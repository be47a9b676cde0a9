# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How fast is attention itself: vLLM's kernel, this plugin's dense one, and sparse.

All arms run in one process, one after the other on the same shapes, three times with
other random data. One thread by default; ratios are what can be compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.command import run_command
from benchmarks.environment import describe

RESULTS = Path(__file__).parent / "results"
SCRATCH = Path("results/hashattn")  # of quick runs, not published
SHAPES = ((32, 8, 128), (14, 2, 64))
CONTEXTS = (4096, 16384, 32768, 131072)
BATCHES = (1, 4, 8)
DENSITIES = (1 / 16, 1 / 32)
PREFILLS = ((2048, 2048), (8192, 2048), (32768, 2048))
SEEDS = (0, 1, 2)
# Caches beyond this do not fit a small machine beside the other arm's.
MOST_BYTES = 1_300_000_000


def main() -> int:
    """Measure and write ``op.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few shapes, a minute")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file to write")
    options = parser.parse_args()
    folder = SCRATCH if options.quick else RESULTS
    options.out = options.out or folder / "op.json"
    rows = [*_decoding(options), *_prefill(options)]
    result = {"environment": describe(), "threads": options.threads, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(options.out)
    return 0


def _decoding(options: argparse.Namespace) -> list[dict[str, Any]]:
    import torch

    from benchmarks.hashattn.op_cases import OwnLayer, Shape, StockLayer, times_ms
    from vllm_hashattn.budget import Budget

    torch.set_num_threads(options.threads)
    rows = []
    contexts = (4096, 32768) if options.quick else CONTEXTS
    batches = (1,) if options.quick else BATCHES
    for heads, kv_heads, head_dim in SHAPES:
        shape = Shape(heads, kv_heads, head_dim)
        for batch in batches:
            for tokens in contexts:
                if batch * tokens * kv_heads * shape.row_bytes > MOST_BYTES:
                    continue
                repeats = max(6, min(60, 2_000_000 // (tokens * batch)))
                arms: dict[str, list[float]] = {}
                for seed in SEEDS[: 1 if options.quick else 3]:
                    own = OwnLayer(shape, batch, tokens, seed)
                    steps = {"own dense": own.decode(None)}
                    for density in DENSITIES:
                        name = f"sparse 1/{round(1 / density)}"
                        steps[name] = own.decode(Budget(density))
                    found = {n: times_ms(s, repeats) for n, s in steps.items()}
                    del own, steps
                    stock = StockLayer(shape, batch, tokens, seed).attend(1)
                    found["vLLM"] = times_ms(stock, repeats)
                    del stock
                    for name, times in found.items():
                        arms.setdefault(name, []).append(statistics.median(times))
                rows.append(_row("decode", shape, batch, tokens, 1, arms))
                _say(rows[-1])
    return rows


def _prefill(options: argparse.Namespace) -> list[dict[str, Any]]:
    from benchmarks.hashattn.op_cases import OwnLayer, Shape, StockLayer, times_ms

    rows = []
    for heads, kv_heads, head_dim in SHAPES:
        shape = Shape(heads, kv_heads, head_dim)
        for tokens, new in PREFILLS[: 1 if options.quick else None]:
            arms: dict[str, list[float]] = {}
            for seed in SEEDS[: 1 if options.quick else 3]:
                own = OwnLayer(shape, 1, tokens, seed).prefill(new)
                stock = StockLayer(shape, 1, tokens, seed).attend(new)
                for name, step in (("own dense", own), ("vLLM", stock)):
                    median = statistics.median(times_ms(step, 3, warm=1))
                    arms.setdefault(name, []).append(median)
            rows.append(_row("prefill", shape, 1, tokens, new, arms))
            _say(rows[-1])
    return rows


def _row(
    what: str,
    shape: Any,  # noqa: ANN401
    batch: int,
    tokens: int,
    new: int,
    arms: dict[str, list[float]],
) -> dict[str, Any]:
    """One shape: for each arm the medians of the seeds, in milliseconds."""
    return {
        "what": what,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "batch": batch,
        "tokens": tokens,
        "new": new,
        "ms": {name: [round(ms, 4) for ms in times] for name, times in arms.items()},
    }


def _say(row: dict[str, Any]) -> None:
    medians = {name: statistics.median(times) for name, times in row["ms"].items()}
    shown = ", ".join(f"{name} {ms:.3g} ms" for name, ms in medians.items())
    shape = f"{row['heads']}/{row['kv_heads']}/{row['head_dim']}"
    print(
        f"{row['what']} {shape}, batch {row['batch']}, {row['tokens']:,} tokens: "
        f"{shown}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(run_command("bench_op", main, (OSError, ValueError)))
