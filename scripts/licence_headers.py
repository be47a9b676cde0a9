# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Find sources that do not name their licence."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

HEADER = (
    "# SPDX-License-Identifier: Apache-2.0",
    "# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite",
)
SUFFIXES = {".py", ".toml", ".yaml", ".yml", ".sh"}
NAMES = {"Makefile", ".ci/run"}
SKIPPED_FOLDERS = {".git", ".venv", "build", "dist", "site", "results"}


def files_without_header(root: Path) -> Iterator[Path]:
    """Yield the sources, relative to ``root``, whose first lines lack the header."""
    for relative in sorted(_sources(root)):
        lines = (root / relative).read_text("utf-8").splitlines()
        # An interpreter line stays first.
        start = 1 if lines and lines[0].startswith("#!") else 0
        if tuple(lines[start : start + 2]) != HEADER:
            yield relative


def _sources(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        # Pruned in place: .venv alone holds tens of thousands of files.
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        for name in names:
            relative = Path(folder, name).relative_to(root)
            if relative.suffix in SUFFIXES or relative.as_posix() in NAMES:
                yield relative


def report_missing_headers(root: Path) -> int:
    """Print the sources without a header; return how many there are."""
    missing = list(files_without_header(root))
    for path in missing:
        print(f"{path}: the two SPDX lines are missing at the top")
    return len(missing)


if __name__ == "__main__":
    sys.exit(report_missing_headers(Path.cwd()) > 0)
