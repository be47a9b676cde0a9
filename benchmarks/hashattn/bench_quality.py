# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What sparse decoding costs in quality, at equal bytes and equal bits.

Every arm reads the same number of tokens and runs after the same dense context; Quest
and the linear hash keep the same 128 bits of a token for each KV head. Perplexity is
that of decoded tokens, tasks are answered greedily. Texts are not those of training.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import run_command
from benchmarks.environment import describe
from benchmarks.hashattn.long_model import ensure_long_model
from benchmarks.hashattn.quality_hashes import (
    MEASURED_ESSAYS,
    MEASURED_MODULES,
    essays,
    hashes_of,
    modules,
)
from scripts.model_cache import demo_model_dir
from scripts.setup_error import SetupError
from vllm_hashattn.budget import Budget
from vllm_hashattn.evaluation_arms import (
    Arm,
    dense_arm,
    levels_arm,
    linear_arm,
    oracle_arm,
    paper_arm,
    quest_arm,
    window_arm,
)
from vllm_hashattn.hash_file import model_fingerprint
from vllm_hashattn.long_context import Sample, token_counter
from vllm_hashattn.long_context_needles import build_needle_context
from vllm_hashattn.long_context_score import summarise
from vllm_hashattn.long_context_words import build_common_words, build_frequent_words
from vllm_hashattn.quality import measure_tasks, measure_texts
from vllm_hashattn.training_texts import read_documents

RESULTS = Path(__file__).parent / "results"
SCRATCH = Path("results/hashattn")  # of quick runs, not published
DENSITIES = (1 / 16, 1 / 32)
DENSE_LAYERS = 2
SINK_TOKENS = RECENT_TOKENS = 32
PREDICTED = 128


def main() -> int:
    """Measure and write ``quality-small.json`` and ``quality-long.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small model, little")
    parser.add_argument("--model", choices=("small", "long", "both"), default="both")
    parser.add_argument("--tokens", type=int, default=4096, help="context (4096)")
    parser.add_argument("--texts", type=int, default=3, help="of each kind (3)")
    parser.add_argument("--contexts", type=int, default=5, help="of tasks (5)")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    options.out = options.out or (SCRATCH if options.quick else RESULTS)
    if options.quick:
        options.texts, options.contexts, options.model = 1, 1, "small"
    options.out.mkdir(parents=True, exist_ok=True)
    models = {"small": demo_model_dir, "long": ensure_long_model}
    for name, folder in models.items():
        if options.model not in (name, "both"):
            continue
        result = {
            "environment": describe(),
            "settings": {
                "context_tokens": options.tokens,
                "predicted_tokens": PREDICTED,
                "dense_layers": DENSE_LAYERS,
                "sink_tokens": SINK_TOKENS,
                "recent_tokens": RECENT_TOKENS,
            },
            **_of_model(folder(), options),
        }
        path = options.out / f"quality-{name}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        print(path)
    return 0


def arms_of(model_folder: Path, density: float) -> list[Arm]:
    """All sparse arms at one density; the hashes are trained if need be."""
    hashes = hashes_of(model_folder)
    model = model_fingerprint(model_folder)
    head_dim = next(iter(hashes.signs.layers.values())).head_dim
    kv_heads = int(model["num_key_value_heads"])
    budget = Budget(density, 0, SINK_TOKENS, RECENT_TOKENS)
    linear = linear_arm(hashes.signs, budget, DENSE_LAYERS)
    arms = [
        oracle_arm(head_dim, budget, DENSE_LAYERS),
        levels_arm(hashes.levels, budget, DENSE_LAYERS),
        levels_arm(hashes.levels, budget, DENSE_LAYERS, weighs=False),
        linear,
        linear_arm(hashes.signs, budget, DENSE_LAYERS, asymmetric=True),
        quest_arm(head_dim, budget, DENSE_LAYERS),
        window_arm(budget, DENSE_LAYERS),
    ]
    if hashes.paper is not None:
        arms.append(paper_arm(hashes.paper, kv_heads, budget, DENSE_LAYERS))
    return [replace(arm, name=f"{arm.name} 1/{round(1 / density)}") for arm in arms]


def _of_model(model_folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arms = [dense_arm(), *(a for d in DENSITIES for a in arms_of(model_folder, d))]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
    documents = _documents(tokenizer, options)
    texts = []
    for kind, token_ids in documents.items():
        for each in measure_texts(model, token_ids, PREDICTED, arms, _say):
            texts.append({"kind": kind, **asdict(each)})
    samples = _samples(tokenizer, options)
    asked = [arm for arm in arms if arm.name.endswith(("dense", "1/16"))]
    answers = list(measure_tasks(model, tokenizer, samples, asked, _say))
    tasks = []
    for arm in asked:
        mine = [each for each in answers if each.arm == arm.name]
        share = sum(each.reading.bytes_share for each in mine) / len(mine)
        for kind, found in summarise(each.score for each in mine).items():
            row = {"arm": arm.name, "kind": kind.value, "bytes_share": share}
            tasks.append({**row, **asdict(found)})
    return {"model": model_folder.name, "texts": texts, "tasks": tasks}


def _documents(tokenizer: Any, options: argparse.Namespace) -> dict[str, list[Tensor]]:  # noqa: ANN401
    length = options.tokens + PREDICTED
    kinds = {"essays": essays(MEASURED_ESSAYS), "code": modules(MEASURED_MODULES)}
    return {
        kind: list(read_documents(files, tokenizer, length, options.texts, 0).training)
        for kind, files in kinds.items()
    }


def _samples(tokenizer: Any, options: argparse.Namespace) -> list[Sample]:  # noqa: ANN401
    count, tokens = token_counter(tokenizer), options.tokens
    found = []
    for seed in range(options.contexts):
        found.append(build_needle_context(tokens, count, None, seed))
    # Small models fail at counting words even when they read everything.
    found.append(build_common_words(tokens, count, 0))
    found.append(build_frequent_words(tokens, count, 0))
    return found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(run_command("bench_quality", main, (OSError, ValueError, SetupError)))
