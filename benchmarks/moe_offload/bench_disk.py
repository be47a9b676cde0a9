# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Decoding with a model three times as large as the memory for its experts.

Arms take turns, each in a fresh process with the same limit on memory: pages with the
schedule of the paper, whole layers ahead, no prefetch, and a mapped file that the
system caches. The disk's own rate is measured before each turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.command import run_command
from benchmarks.environment import describe
from benchmarks.moe_offload.memory_group import NoGroupError, limited
from benchmarks.moe_offload.synthetic_model import Synthetic, ensure_synthetic
from moe_offload.aligned_memory import aligned_memory, view_of
from scripts.model_cache import cache_dir

RESULTS = Path(__file__).parent / "results"
SCRATCH = Path("results/moe_offload")  # of quick runs, not published
REPEATS = 3
LARGE = Synthetic(layers=24, hidden=1024, intermediate=1792, experts=16)
SMALL = Synthetic(layers=8, hidden=512, intermediate=896, experts=8)
# How many times larger than its memory the model is.
TIMES = 3
# Besides the experts: activations, the cache, what vLLM allocates while it runs.
_OTHERS_BYTES = 768 << 20
_CHUNK_BYTES = 8 << 20
ARMS = {
    "pages": "cgopipe",
    "whole layers": "s2",
    "no prefetch": "no-prefetch",
    "mmap": "cgopipe",
}


def main() -> int:
    """Measure and write ``disk.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model, once")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--steps", type=int, default=8, help="measured (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    folder = options.out or (SCRATCH if options.quick else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    shape = SMALL if options.quick else LARGE
    model = ensure_synthetic(shape, cache_dir() / "moe_offload")
    environment, rows = describe(), []
    for repeat in range(1 if options.quick else REPEATS):
        for batch in options.batches:
            arms = list(ARMS)[:: 1 if repeat % 2 == 0 else -1]
            rows += [_run(shape, model, arm, batch, repeat, options) for arm in arms]
    settings = {
        "expert_bytes": shape.total_expert_bytes,
        "memory_bytes": shape.total_expert_bytes // TIMES,
        "steps": options.steps,
    }
    result = {"environment": environment, "settings": settings, "rows": rows}
    path = folder / "disk.json"
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(path)
    return 0


def _run(
    shape: Synthetic,
    model: Path,
    arm: str,
    batch: int,
    repeat: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    disk = cache_dir() / "moe_offload" / "disk"
    memory = shape.total_expert_bytes // TIMES
    # Mapped files have a slot for every expert, and the limit is on what is cached.
    slots = shape.total_expert_bytes + 1 if arm == "mmap" else memory
    asked = {
        "arm": arm,
        "model": str(model),
        "disk": str(disk),
        "batch": batch,
        "steps": options.steps,
        "options": {
            "enabled": True,
            "device_memory_gib": slots / 2**30,
            "disk": str(disk),
            "schedule": ARMS[arm],
        },
    }
    rate = disk_rate(disk)
    limit = _OTHERS_BYTES + (memory if arm == "mmap" else 0)
    with (
        limited("moe_offload-bench", limit) as procs,
        tempfile.TemporaryDirectory() as w,
    ):
        file = Path(w, "asked.json")
        file.write_text(json.dumps({**asked, "procs": str(procs)}), "utf-8")
        command = [
            sys.executable,
            "-m",
            "benchmarks.moe_offload.disk_engine",
            str(file),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoGroupError(f"the engine of {arm} ended early: {done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    row = {"arm": arm, "batch": batch, "repeat": repeat, "disk_rate": rate, **found}
    print(
        f"{arm}, batch {batch}: {batch / row['step_s']:.1f} tokens/s, "
        f"{row['step_bytes'] / row['step_s'] / 1e9:.2f} GB/s; the disk alone "
        f"{rate / 1e9:.2f} GB/s",
        file=sys.stderr,
        flush=True,
    )
    return row


def disk_rate(folder: Path) -> float:
    """Bytes per second of reading a file from end to end, around the page cache.

    Args:
        folder: On the disk; the file with the experts is read if there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(folder.glob("*.experts"))
    if not files:
        return float("nan")
    size = min(files[0].stat().st_size, 2 << 30)
    view = view_of(aligned_memory(_CHUNK_BYTES))
    file = os.open(files[0], os.O_RDONLY | os.O_DIRECT)
    started_s = time.perf_counter()
    for start in range(0, size - _CHUNK_BYTES + 1, _CHUNK_BYTES):
        os.preadv(file, [view], start)
    rate = (size // _CHUNK_BYTES) * _CHUNK_BYTES / (time.perf_counter() - started_s)
    os.close(file)
    return rate


if __name__ == "__main__":
    sys.exit(run_command("bench_disk", main, (OSError, ValueError, NoGroupError)))
