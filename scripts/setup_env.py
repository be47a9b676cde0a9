# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Create ``.venv`` with vLLM for CPU and the plugins, and the demo model.

Run from the repository root by any Python 3.11 or later, which needs no packages:
``python3 -m scripts.setup_env``. It is safe to run again: what is done is kept, and
when nothing changed it ends in about a second. It is the only step that uses the
network. This file itself must be readable by any Python 3, to say which one is needed.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON = (3, 14)
ENVIRONMENT_BYTES = 8 * 1024**3
MODEL_BYTES = 1024**3


def main() -> int:
    """Set everything up; return the exit status."""
    arguments = _parse_arguments()
    # Imported late: with an older Python these would fail before the clear message.
    complaint = _python_complaint()
    if complaint:
        print(complaint, file=sys.stderr)
        return 1
    from scripts.demo_model import ensure_demo_model
    from scripts.environment import Environment
    from scripts.setup_error import SetupError

    environment = Environment(ROOT)
    try:
        if environment.is_current(arguments.extra):
            print("environment: .venv is up to date")
        else:
            _check_machine()
            environment.install(arguments.extra)
        if not arguments.no_model:
            ensure_demo_model(environment.python)
    except SetupError as error:
        print(f"\nset-up stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted; run it again to continue", file=sys.stderr)
        return 130
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="setup_env", description=__doc__)
    parser.add_argument(
        "--no-model", action="store_true", help="leave the demo model out"
    )
    parser.add_argument(
        "--extra",
        action="append",
        default=[],
        help="also install this extra of the root project, for example docs",
    )
    return parser.parse_args()


def _python_complaint() -> str:
    if OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        return ""
    found = ".".join(map(str, sys.version_info[:3]))
    return (
        f"set-up stopped: Python {found} runs it, and vLLM needs 3.11 to 3.14. "
        "Name another one, for example: make setup PYTHON=python3.11"
    )


def _check_machine() -> None:
    """Refuse early what would fail after minutes of downloading."""
    from scripts.model_cache import cache_dir
    from scripts.setup_error import SetupError

    if not any(shutil.which(name) for name in ("gcc", "cc", "clang")):
        raise SetupError(
            "checking the machine",
            "no C compiler was found",
            "install gcc (Debian, Ubuntu: apt-get install build-essential)",
        )
    for path, needed in ((ROOT, ENVIRONMENT_BYTES), (cache_dir(), MODEL_BYTES)):
        existing = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(existing).free
        if free < needed:
            raise SetupError(
                "checking the machine",
                f"{free / 1024**3:.1f} GiB are free on the disk of {path}, and "
                f"{needed / 1024**3:.0f} GiB are needed",
                "free some space, or set XDG_CACHE_HOME to another disk for the model",
            )
        if not os.access(existing, os.W_OK):
            raise SetupError(
                "checking the machine",
                f"{existing} cannot be written",
                "change its permissions, or set XDG_CACHE_HOME for the model",
            )


if __name__ == "__main__":
    sys.exit(main())
