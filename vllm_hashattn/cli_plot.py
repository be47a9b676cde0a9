# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""``vllm-hashattn plot``: how a training went, as a picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_EXAMPLE = """\
example:
  vllm-hashattn train --model FOLDER --data TEXTS --out hash.safetensors
  vllm-hashattn plot hash.safetensors --out training.svg
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "plot",
        help="draw how a training went",
        description="Draw recall, attention mass and loss of every layer, as measured "
        "on held-out documents. Needs matplotlib: pip install matplotlib.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="HASH_FILE")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="picture to write, .png or .svg",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Draw a training; return the exit status.

    Raises:
        ValueError: The file says nothing about its training, or matplotlib is missing.
    """
    from .training_plot import plot_training

    plot_training(_training(options.file), options.out)
    print(json.dumps({"file": str(options.out)}) if options.json else options.out)
    return 0


def _training(path: Path) -> Mapping[str, Any]:
    """Read the notes of a file of either kind."""
    from . import hash_file, paper_file

    if paper_file.format_of(path) == paper_file.FORMAT:
        return paper_file.load_paper(path).training
    return hash_file.load(path).training
