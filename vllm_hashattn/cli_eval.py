# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""``vllm-hashattn eval``: what a hash costs in quality, on a user's own texts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from .evaluation_arms import Arm
    from .long_context import Sample
    from .quality import TaskResult, TextResult

_DESCRIPTION = """\
Compare sparse decoding with dense decoding of a model: how likely it finds the end of
texts, and answers to generated long-context tasks (numbers hidden in a text). The
oracle reads as much and knows the true dot products; the window reads the newest
tokens. Use texts that the hash was not trained on. The divergence (Kullback-Leibler, of
the next token from dense decoding's, in nats) says most where texts are few; changes of
perplexity come with a 95 % interval.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "eval", help="measure what a hash costs in quality", description=_DESCRIPTION
    )
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--hash", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="PATH", help="texts"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="context (4096)")
    parser.add_argument("--predicted", type=int, default=256, help="of them (256)")
    parser.add_argument("--documents", type=int, default=4, help="texts (4)")
    parser.add_argument("--contexts", type=int, default=2, help="of tasks (2)")
    parser.add_argument("--density", type=float, default=0.0625, help="(1/16)")
    parser.add_argument("--min-tokens", type=int, default=0, help="(0)")
    parser.add_argument("--sink-tokens", type=int, default=64, help="(64)")
    parser.add_argument("--recent-tokens", type=int, default=64, help="(64)")
    parser.add_argument("--dense-layers", type=int, default=2, help="(2)")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks (0)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print a table; return the exit status."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .quality import measure_tasks, measure_texts

    arms = _arms(options)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    documents = _documents(options, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
    texts = list(measure_texts(model, documents, options.predicted, arms, _say))
    samples = _samples(options, tokenizer)
    tasks = list(measure_tasks(model, tokenizer, samples, arms, _say))
    rows = [_row(arm.name, texts, tasks) for arm in arms]
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        print(_line(row))
    return 0


def _arms(options: argparse.Namespace) -> list[Arm]:
    from .budget import Budget
    from .evaluation_arms import (
        dense_arm,
        levels_arm,
        linear_arm,
        oracle_arm,
        paper_arm,
        window_arm,
    )
    from .hash_file import LEVELS_FORMAT, HashFile, model_fingerprint
    from .layer_codes import any_layer, hashes

    file = hashes(str(options.hash))
    fingerprint = model_fingerprint(options.model)
    file.check_model(fingerprint)
    budget = Budget(
        options.density,
        options.min_tokens,
        options.sink_tokens,
        options.recent_tokens,
    )
    dense = options.dense_layers
    if not isinstance(file, HashFile):
        own = paper_arm(file, fingerprint["num_key_value_heads"], budget, dense)
    elif file.format == LEVELS_FORMAT:
        own = levels_arm(file, budget, dense)
    else:
        own = linear_arm(file, budget, dense)
    oracle = oracle_arm(any_layer(file).head_dim, budget, dense)
    return [dense_arm(), own, oracle, window_arm(budget, dense)]


def _documents(
    options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase
) -> list[Tensor]:
    from .training_texts import read_documents

    found = read_documents(
        options.data, tokenizer, options.tokens, options.documents, held_out=0
    )
    return list(found.training)


def _samples(
    options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase
) -> list[Sample]:
    from .long_context import token_counter
    from .long_context_needles import build_needle_context

    count = token_counter(tokenizer)
    return [
        build_needle_context(options.tokens, count, None, options.seed + number)
        for number in range(options.contexts)
    ]


def _row(arm: str, texts: list[TextResult], tasks: list[TaskResult]) -> dict[str, Any]:
    from .long_context_score import summarise
    from .quality import perplexity, perplexity_change

    mine = [each for each in texts if each.arm == arm]
    tokens = sum(each.tokens for each in mine)
    answered = summarise(each.score for each in tasks if each.arm == arm)
    change, interval = perplexity_change(mine)
    return {
        "arm": arm,
        "bytes_share": sum(each.reading.bytes_share for each in mine) / len(mine),
        "perplexity": perplexity(mine),
        "perplexity_change": change,
        "perplexity_change_interval": interval,
        "divergence": sum(each.divergence * each.tokens for each in mine) / tokens,
        "same_top": sum(each.same_top * each.tokens for each in mine) / tokens,
        "tasks": {kind.value: each.mean_share for kind, each in answered.items()},
    }


def _line(row: dict[str, Any]) -> str:
    low, high = row["perplexity_change_interval"]
    tasks = ", ".join(f"{kind} {share:.0%}" for kind, share in row["tasks"].items())
    return (
        f"{row['arm']:<20} {row['bytes_share']:6.1%} of the bytes, divergence "
        f"{row['divergence']:.4f}, same token {row['same_top']:.1%}, perplexity "
        f"{row['perplexity']:.3f} ({low:+.2%} to {high:+.2%}), tasks {tasks}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
