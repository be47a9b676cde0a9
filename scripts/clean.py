# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Remove what the set-up, the tools and the builds left in the checkout."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from scripts.requirements import PLUGIN_FOLDERS

ROOT = Path(__file__).resolve().parents[1]
CACHES = (".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis")
SOURCES = (*PLUGIN_FOLDERS, "benchmarks", "examples", "scripts", "tests")


def leftovers(root: Path) -> Iterator[Path]:
    """Folders that can be made again; measured results are not among them."""
    for name in (".venv", "build", "dist", "site", *CACHES):
        yield root / name
    for folder in PLUGIN_FOLDERS:
        yield root / folder / "dist"
    for folder in SOURCES:
        yield from (root / folder).rglob("__pycache__")


def main() -> None:
    """Remove every leftover and say which."""
    for path in leftovers(ROOT):
        if path.is_dir():
            shutil.rmtree(path)
            print(f"removed {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
