# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""``vllm-hashattn bench`` and ``calibrate``: whether it is worth it, and from when."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

_COMMANDS = {
    "bench": "Time dense and sparse decoding of one layer by context length.",
    "calibrate": "Find the context length from which on sparse decoding is faster, the "
    "value for --additional-config.hashattn.dense_below.",
}


def add_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    """Describe both commands."""
    for name, text in _COMMANDS.items():
        parser = commands.add_parser(name, help=text, description=text)
        parser.add_argument("--model", required=True, type=Path, metavar="FOLDER")
        parser.add_argument("--density", type=float, default=0.0625, help="(1/16)")
        parser.add_argument("--min-tokens", type=int, default=512, help="(512)")
        parser.add_argument("--batch", type=int, default=1, help="sequences (1)")
        parser.add_argument("--threads", type=int, default=1, help="(1)")
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.set_defaults(run=run, command=name)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    import torch

    from .budget import Budget
    from .calibration import Geometry, crossover, timings
    from .native import library

    library()  # without kernels there is nothing to time: says why
    torch.set_num_threads(options.threads)
    geometry = Geometry.of_model(options.model)
    budget = Budget(options.density, options.min_tokens)
    found = []
    for timing in timings(geometry, budget, options.batch):
        found.append(timing)
        line = (
            f"{timing.context_tokens:>7,} tokens: all {timing.dense_ms:8.3f} ms, "
            f"{timing.read_tokens:>6,} of them {timing.sparse_ms:8.3f} ms, "
            f"{timing.speedup:5.1f}x"
        )
        shown = options.command == "bench" and not options.json
        print(line, file=sys.stdout if shown else sys.stderr, flush=True)
    length = crossover(found)
    if options.json:
        rows = [{**asdict(each), "speedup": each.speedup} for each in found]
        print(json.dumps({"dense_below": length, "timings": rows}, indent=1))
    elif length is None:
        print("sparse decoding is not faster at any of these lengths")
    elif options.command == "calibrate":
        print(f"--additional-config.hashattn.dense_below {length}")
    return 0
