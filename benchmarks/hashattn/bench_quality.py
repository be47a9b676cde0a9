# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What sparse decoding costs in quality, at equal bytes and equal bits.

Every arm reads the same number of tokens and runs after the same dense context; Quest
and the hashes keep the same 128 bits of a token for each KV head. What follows a text
is compared with dense decoding token by token, tasks are answered greedily. Texts are
not those of training. An interrupted run goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
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
    Hashes,
    essays,
    hashes_of,
    modules,
)
from benchmarks.hashattn.quality_parts import Parts, Row
from benchmarks.hashattn.quality_tasks import Tasks
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
    weighing_oracle_arm,
    window_arm,
)
from vllm_hashattn.long_context import token_counter
from vllm_hashattn.quality import measure_tasks, measure_texts
from vllm_hashattn.training_texts import read_documents

RESULTS = Path(__file__).parent / "results"
SCRATCH = Path("results/hashattn")  # of quick runs, not published
DENSITIES = (1 / 16, 1 / 32)
DENSE_LAYERS = 2
SINK_TOKENS = RECENT_TOKENS = 32
PREDICTED = 257  # the first of them follows from the dense context
MAIN_ARMS = ("oracle", "levels", "linear", "quest")
LONG_TOKENS = 16_384


def main() -> int:
    """Measure and write ``quality-small.json`` and ``quality-long.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small model, little")
    parser.add_argument("--model", choices=("small", "long", "both"), default="both")
    parser.add_argument("--tokens", type=int, default=4096, help="context (4096)")
    parser.add_argument("--texts", type=int, default=3, help="of each kind (3)")
    parser.add_argument("--questions", type=int, default=50, help="of a kind (50)")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    options.out = options.out or (SCRATCH if options.quick else RESULTS)
    if options.quick:
        options.texts, options.questions, options.model = 1, 2, "small"
    options.out.mkdir(parents=True, exist_ok=True)
    models = {"small": demo_model_dir, "long": ensure_long_model}
    for name, folder in models.items():
        if options.model in (name, "both"):
            print(_measure_model(name, folder(), options))
    return 0


def _measure_model(name: str, folder: Path, options: argparse.Namespace) -> Path:
    environment = describe()
    settings = {
        "context_tokens": options.tokens,
        "predicted_tokens": PREDICTED - 1,
        "texts": options.texts,
        "questions": options.questions,
        "dense_layers": DENSE_LAYERS,
        "sink_tokens": SINK_TOKENS,
        "recent_tokens": RECENT_TOKENS,
    }
    path: Path = options.out / f"quality-{name}.json"
    same = {**settings, "commit": environment["commit"]}
    parts = Parts(path.with_suffix(".parts"), same)
    measured = _of_model(name, folder, options, parts)
    result = {"environment": environment, "settings": settings, **measured}
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    parts.remove()
    return path


def arms_of(hashes: Hashes, density: float, dense_layers: int) -> dict[str, Arm]:
    """All sparse arms at one density, by their names without it."""
    budget = Budget(density, 0, SINK_TOKENS, RECENT_TOKENS)
    head_dim = next(iter(hashes.signs.layers.values())).head_dim
    arms = [
        oracle_arm(head_dim, budget, dense_layers),
        weighing_oracle_arm(head_dim, budget, dense_layers),
        levels_arm(hashes.levels, budget, dense_layers),
        levels_arm(hashes.levels, budget, dense_layers, weighs=False),
        linear_arm(hashes.signs, budget, dense_layers),
        linear_arm(hashes.signs, budget, dense_layers, asymmetric=True),
        quest_arm(head_dim, budget, dense_layers),
        window_arm(budget, dense_layers),
    ]
    if hashes.paper is not None:
        kv_heads = int(hashes.signs.model["num_key_value_heads"])
        arms.append(paper_arm(hashes.paper, kv_heads, budget, dense_layers))
    named = f"1/{round(1 / density)}"
    return {arm.name: replace(arm, name=f"{arm.name} {named}") for arm in arms}


@dataclass(frozen=True)
class TextSet:
    """Texts of one length and the arms that are compared on them.

    Attributes:
        tokens: Of the dense context.
        texts: Of each kind.
        arms: To compare; the first one reads everything.
    """

    tokens: int
    texts: int
    arms: list[Arm]

    def documents(self, tokenizer: Any) -> dict[str, tuple[str, Tensor]]:  # noqa: ANN401
        """Return documents with their kind, by the key of a part."""
        kinds = {"essays": essays(MEASURED_ESSAYS), "code": modules(MEASURED_MODULES)}
        length = self.tokens + PREDICTED
        found = {}
        for kind, files in kinds.items():
            read = read_documents(files, tokenizer, length, self.texts, 0).training
            for number, token_ids in enumerate(read):
                found[f"{kind} {self.tokens} {number}"] = kind, token_ids
        return found


def _of_model(
    name: str, folder: Path, options: argparse.Namespace, parts: Parts
) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hashes = hashes_of(folder)
    dense = dense_arm()
    widely, narrowly = (arms_of(hashes, each, DENSE_LAYERS) for each in DENSITIES)
    every = [dense, *widely.values(), *(narrowly[each] for each in MAIN_ARMS)]
    sets = [TextSet(options.tokens, options.texts, every)]
    if name == "long":
        few = [dense, *(widely[each] for each in MAIN_ARMS)]
        sets.append(TextSet(LONG_TOKENS, 1, few))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def ask(sample: Any, arms: Any) -> Iterator[Any]:  # noqa: ANN401
        return measure_tasks(model, tokenizer, [sample], arms, _nothing)

    # What the oracle gains by weighing is seen in texts.
    asked = [dense, *(arm for key, arm in widely.items() if key != "oracle weighing")]
    count = token_counter(tokenizer)
    tasks = Tasks(options.tokens, count, options.questions, ask, asked, parts)
    tasks.plan()
    for each in sets:
        parts.plan(f"texts {each.tokens}", list(each.documents(tokenizer)))
    rows: list[Row] = []
    for each in sets:
        rows += _texts(model, each, each.documents(tokenizer), parts)
    return {"model": folder.name, "texts": rows, "tasks": tasks.measure()}


def _texts(
    model: Any,  # noqa: ANN401
    compared: TextSet,
    documents: dict[str, tuple[str, Tensor]],
    parts: Parts,
) -> list[Row]:
    def work(number: int, kind: str, token_ids: Tensor) -> list[Row]:
        about = {"kind": kind, "context_tokens": compared.tokens}
        measured = measure_texts(model, [token_ids], PREDICTED, compared.arms, _nothing)
        return [{**about, **asdict(each), "document": number} for each in measured]

    found = []
    for number, (key, (kind, token_ids)) in enumerate(documents.items()):
        once = partial(work, number, kind, token_ids)
        found += parts.measure(f"texts {compared.tokens}", key, once)
    return found


def _nothing(_: str) -> None:
    """Progress is told by parts."""


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(run_command("bench_quality", main, (OSError, ValueError, SetupError)))
