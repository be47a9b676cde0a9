# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How fast is a whole model: time per output token and time to the first token.

Arms take turns, each in a fresh process: stock vLLM, and hash attention with the same
settings. Decoding runs on caches of noise (see ``engine_speed``), prefill on real text.
The hash's contents do not matter for speed, so random planes serve.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.command import run_command
from benchmarks.environment import describe
from benchmarks.hashattn.long_model import ensure_long_model
from scripts.model_cache import demo_model_dir
from scripts.setup_error import SetupError

RESULTS = Path(__file__).parent / "results"
SCRATCH = Path("results/hashattn")  # of quick runs, not published
REPEATS = 3
DENSITY = 0.0625
_CACHE_GIB = "4"


def main() -> int:
    """Measure and write ``e2e-small.json`` and ``e2e-long.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small model, once")
    parser.add_argument("--model", choices=("small", "long", "both"), default="both")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    folder = options.out or (SCRATCH if options.quick else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    asked = "small" if options.quick else options.model
    for name, make_plan in _PLANS.items():
        if asked not in (name, "both"):
            continue
        environment, plan, rows = describe(), make_plan(), []
        with tempfile.TemporaryDirectory() as work:
            for repeat in range(1 if options.quick else REPEATS):
                rows += _run_plan(plan, repeat, Path(work))
        result = {"environment": environment, "density": DENSITY, "rows": rows}
        path = folder / f"e2e-{name}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        print(path)
    return 0


def _plan(
    model: Path, limit: int, contexts: tuple[int, ...], prefills: tuple[int, ...]
) -> dict[str, Any]:
    return {
        "model": model,
        "limit": limit,
        "contexts": contexts,
        "prefills": prefills,
        "batches": (1, 4, 8),
    }


_PLANS: dict[str, Callable[[], dict[str, Any]]] = {
    "small": lambda: _plan(demo_model_dir(), 8192, (4096, 8128), (4096,)),
    "long": lambda: _plan(
        ensure_long_model(), 32768, (4096, 16384, 32704), (4096, 8192)
    ),
}


def _run_plan(plan: dict[str, Any], repeat: int, work: Path) -> list[dict[str, Any]]:
    """All arms once; every other time in the other order."""
    hash_file = work / f"{plan['model'].name}.safetensors"
    if not hash_file.is_file():
        _random_hash(plan["model"], hash_file)
    text = work / "text.txt"
    if not text.is_file():
        text.write_text(_text(), "utf-8")
    arms: dict[str, dict[str, Any]] = {
        "vLLM": {},
        "hashattn": {
            "weights": str(hash_file),
            "density": DENSITY,
            "min_tokens": 0,
            "dense_below": 0,
        },
    }
    order = list(arms.items())[:: 1 if repeat % 2 == 0 else -1]
    rows = []
    for name, options in order:
        for what in ("decode", "prefill"):
            found = _engine(plan, what, options, text)
            for point in found["points"]:
                rows.append(
                    {
                        "what": what,
                        "arm": name,
                        "model": plan["model"].name,
                        "repeat": repeat,
                        "cache_tokens": found["cache_tokens"],
                        **point,
                    }
                )
                _say(rows[-1])
    return rows


def _engine(
    plan: dict[str, Any], what: str, hashattn: dict[str, Any], text: Path
) -> dict[str, Any]:
    contexts = plan["contexts"] if what == "decode" else plan["prefills"]
    command = [
        *(sys.executable, "-m", "benchmarks.hashattn.engine_speed", what),
        *("--model", str(plan["model"]), "--max-model-len", str(plan["limit"])),
        *("--contexts", ",".join(map(str, contexts)), "--text", str(text)),
        *("--batches", ",".join(map(str, plan["batches"]))),
        *("--hashattn", json.dumps(hashattn)),
    ]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": _CACHE_GIB,
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    done = subprocess.run(
        command, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise OSError(f"an engine failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _random_hash(model: Path, path: Path) -> None:
    import torch

    from vllm_hashattn.calibration import Geometry
    from vllm_hashattn.hash_file import HashFile, model_fingerprint
    from vllm_hashattn.scorer_levels import random_levels

    fingerprint = model_fingerprint(model)
    shape = Geometry.of_model(model)
    random = torch.Generator().manual_seed(0)
    layers = {
        layer: random_levels(shape.heads, shape.kv_heads, shape.head_dim, 128, random)
        for layer in range(fingerprint["num_hidden_layers"])
    }
    HashFile(layers, fingerprint, {}).save(path)


def _text() -> str:
    """Python's own sources, more than any context holds."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    return "\n".join(file.read_text("utf-8", errors="replace") for file in files[:40])


def _say(row: dict[str, Any]) -> None:
    print(
        f"{row['model']} {row['what']} {row['arm']}, {row['context_tokens']:,} tokens, "
        f"batch {row['batch']}: {row['step_ms']:,.1f} ms",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(run_command("bench_e2e", main, (OSError, ValueError, SetupError)))
