# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""``vllm-vectorq``: looks into stores, moves them, and tries policies on a log."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from . import __version__, cli_inspect, cli_plot, cli_replay, cli_transfer
from .cli_error import CliError
from .config import ConfigError
from .store import StoreError
from .transfer import TransferError

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status.

    That is 0, or 1 for an error, or 2 for a command that cannot be understood.
    """
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except ConfigError as error:
        return _fail(error, USAGE)
    except BrokenPipeError:
        # Whoever read the output has seen enough. Python flushes it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (CliError, StoreError, TransferError, OSError, ImportError) as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted.", INTERRUPTED)


def _fail(reason: Exception | str, status: int) -> int:
    text = str(reason).removeprefix("vectorq: ")
    print(f"vllm-vectorq: {text}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vllm-vectorq",
        description="Look into the stores of the semantic response cache, move them, "
        "and try its policies on a log of requests.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    cli_inspect.add_parser(commands)
    cli_transfer.add_parsers(commands)
    cli_replay.add_parser(commands)
    cli_plot.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
