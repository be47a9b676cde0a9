# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Run every static check and report all of them, not just the first that fails."""

import subprocess
import sys
from pathlib import Path

from scripts.licence_headers import report_missing_headers

ROOT = Path(__file__).resolve().parents[1]
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("typos",),
)


def main() -> int:
    """Run the checks in the environment this Python belongs to."""
    tools = Path(sys.executable).parent
    failed = []
    for name, *arguments in CHECKS:
        label = " ".join((name, *arguments))
        print(f"$ {label}", flush=True)
        if subprocess.run([tools / name, *arguments], cwd=ROOT, check=False).returncode:
            failed.append(label)
    print("$ licence headers")
    if report_missing_headers(ROOT):
        failed.append("licence headers")
    print(f"lint: failed: {', '.join(failed)}" if failed else "lint: all clean")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
