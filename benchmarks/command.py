# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How the benchmarks' commands end: with an exit status and a sentence, no trace."""

import signal
import sys
from collections.abc import Callable


def run_command(
    name: str,
    work: Callable[[], int],
    problems: tuple[type[Exception], ...],
    interrupted: str = "interrupted; run it again to go on",
) -> int:
    """Do the work of a command and return its exit status.

    Args:
        name: Of the command, in front of what it says.
        work: Returns the exit status.
        problems: Exceptions that a user can cause; their message says what to do.
        interrupted: What is said after Ctrl-C.
    """
    # A terminated command must still end the servers it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return work()
    except problems as problem:
        print(f"{name}: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{name}: {interrupted}", file=sys.stderr)
        return 130
