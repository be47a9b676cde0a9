# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""``vllm-hashattn import``: a published checkpoint as a hash file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

_DESCRIPTION = """\
Turn a checkpoint that was published with the HashAttention paper (a .pt file, or
hat_weights.pkl) into a hash file. No code in it is run. The checkpoint does not say
which model it was trained for; give the folder of the right one.
"""
_EXAMPLE = """\
example:
  vllm-hashattn import llama3.1-8b-patch.64K.v1.pt --model FOLDER --out hash.safetensors
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "import",
        help="take over a published checkpoint",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Import a checkpoint; return the exit status.

    Raises:
        ValueError: It cannot be used for the model.
    """
    from .checkpoint_import import import_checkpoint

    found = import_checkpoint(options.file, options.model)
    found.save(options.out)
    first = next(iter(found.layers.values()))
    facts = {
        "file": str(options.out),
        "form": found.training["form"],
        "layers": len(found.layers),
        "query_heads": first.heads,
        "head_dim": first.head_dim,
        "bits_per_query_head": first.bits,
    }
    if options.json:
        print(json.dumps(facts, indent=1))
        return 0
    print(
        f"{facts['form']} of {len(found.layers)} layers, {first.heads} query heads of "
        f"{first.bits} bits. The shape fits; whether it was trained for this model, "
        "the file does not say.",
        file=sys.stderr,
    )
    print(options.out)
    return 0
