# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The command ``vllm-hashattn``: train a hash, import one, look at it, measure."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from . import cli_bench, cli_eval, cli_import, cli_plot
from .native import NoKernelsError
from .training import TrainingSettings

if TYPE_CHECKING:
    from .hash_file import HashFile
    from .paper_file import PaperFile


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0, 1 for a failure, 2 for bad usage."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, OSError, ImportError, NoKernelsError) as problem:
        print(f"vllm-hashattn: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vllm-hashattn: interrupted; the same command goes on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vllm-hashattn", description="Hashes for sparse attention in vLLM."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands.add_parser("train", help="train a hash for a model"))
    look = commands.add_parser("inspect", help="show what a hash file holds")
    look.add_argument("file", type=Path)
    look.add_argument("--json", action="store_true")
    look.set_defaults(run=_inspect)
    for module in (cli_plot, cli_import, cli_eval, cli_bench):
        module.add_parser(commands)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    settings = TrainingSettings()
    parser.description = (
        "Train a hash for a model on texts like those it will be used on. An "
        "interrupted training goes on with the same command."
    )
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="text files, or folders of .txt, .md, .rst and .py files",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--tokens", type=int, default=8192, help="length of a document (%(default)s)"
    )
    parser.add_argument("--documents", type=int, default=6, help="(%(default)s)")
    parser.add_argument(
        "--held-out",
        type=int,
        default=2,
        help="documents that recall is measured on, from files of their own "
        "(%(default)s)",
    )
    parser.add_argument(
        "--max-model-len",
        type=int,
        metavar="TOKENS",
        help="longest contexts that will be served, as given to vLLM (the model's own "
        "limit): documents are spread over so many positions",
    )
    parser.add_argument(
        "--codes",
        choices=("levels", "signs"),
        default=settings.codes,
        help="levels estimate weights, signs are the paper's (%(default)s)",
    )
    parser.add_argument("--bits", type=int, default=settings.bits, help="(%(default)s)")
    parser.add_argument(
        "--steps", type=int, default=settings.steps, help="per layer (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=settings.seed, help="(%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .training_run import TrainingRun
    from .training_texts import read_documents

    settings = TrainingSettings(
        bits=options.bits, codes=options.codes, steps=options.steps, seed=options.seed
    )
    run = TrainingRun(options.model, options.out, settings, _say)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    documents = read_documents(
        options.data, tokenizer, options.tokens, options.documents, options.held_out
    )
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    run.capture(model, documents, options.max_model_len)
    del model
    reports = run.train(options.documents)
    if options.json:
        print(json.dumps([asdict(report) for report in reports], indent=1))
    print(options.out, file=sys.stderr if options.json else sys.stdout)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from .layer_codes import any_layer, code_bytes, hashes

    found = hashes(str(options.file))
    first = any_layer(found)
    facts = {
        "kind": _kind(found),
        "layers": len(found.layers),
        "bits_per_kv_head": 8 * code_bytes(found),
        "query_heads": first.heads,
        "head_dim": first.head_dim,
        "model": dict(found.model),
        "training": dict(found.training),
    }
    if options.json:
        print(json.dumps(facts, indent=1))
        return 0
    for name, value in facts.items():
        if not isinstance(value, dict):
            print(f"{name}: {value}")
    for name, value in found.model.items():
        print(f"model {name}: {value}")
    for layer in found.training.get("layers", []):
        shown = ", ".join(f"{k} {v:.0%}" for k, v in layer["recall"].items())
        print(f"layer {layer['layer']}: recall {shown}")
    return 0


def _kind(file: HashFile | PaperFile) -> str:
    from .hash_file import LEVELS_FORMAT, HashFile

    if not isinstance(file, HashFile):
        return "paper"
    return "levels" if file.format == LEVELS_FORMAT else "signs"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
