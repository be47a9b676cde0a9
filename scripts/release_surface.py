# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Run the tests of the vLLM surface against another release, without installing it.

The wheel is downloaded once, its Python sources go into the cache directory, and they
are put before the installed vLLM. No kernel is loaded: what runs are signatures and
vLLM's own scheduler classes, on the packages that the present vLLM needs. That shows
whether a release still offers what the plugins rely on, and no more.
"""

import argparse
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from scripts.model_cache import cache_dir

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/program_sched/test_compat.py",
    "tests/program_sched/test_scheduler_adapter.py",
    "tests/packaging/test_coupled_symbols.py",
    "tests/vectorq/test_vectorq_compat.py",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the release if needed and run the tests; return pytest's exit status."""
    parser = argparse.ArgumentParser(
        prog="make test-release RELEASE=VERSION",
        description="Run the tests of the vLLM surface against another release.",
    )
    parser.add_argument("release", help="version of vLLM, for instance 0.33.0")
    release: str = parser.parse_args(arguments).release
    try:
        sources = unpack(fetch(release), release)
    except (subprocess.CalledProcessError, OSError, ValueError) as problem:
        print(f"test-release: vLLM {release}: {problem}", file=sys.stderr)
        return 1
    print(f"test-release: vLLM {release} from {sources}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(sources), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", *TESTS]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def fetch(release: str) -> Path:
    """Return the wheel of a release, downloaded once.

    Raises:
        CalledProcessError: pip could not download it; it has said why itself.
    """
    folder = cache_dir() / "downloads" / f"vllm-{release}"
    wheels = sorted(folder.glob("vllm-*.whl"))
    if not wheels:
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps"]
        subprocess.run([*pip, "-d", str(folder), f"vllm=={release}"], check=True)
        wheels = sorted(folder.glob("vllm-*.whl"))
    return wheels[-1]


def unpack(wheel: Path, release: str) -> Path:
    """Extract the Python sources of a wheel and return their folder.

    vLLM takes itself for a CPU build when its version says so; the metadata is written
    with that mark, since the machine that runs these tests may have no GPU.

    Raises:
        ValueError: The wheel is not one of vLLM.
    """
    folder = cache_dir() / "sources" / wheel.stem
    if (folder / "complete").is_file():
        return folder
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next((n for n in names if n.endswith(".dist-info/METADATA")), None)
        if metadata is None or "vllm/__init__.py" not in names:
            raise ValueError(f"{wheel.name} is not a wheel of vLLM")
        sources = [n for n in names if n.endswith((".py", ".json", ".jinja"))]
        archive.extractall(folder, sources)
        text = archive.read(metadata).decode()
    marked = folder / f"vllm-{release}+cpu.dist-info"
    marked.mkdir(parents=True, exist_ok=True)
    version = f"\nVersion: {release}\n"
    (marked / "METADATA").write_text(text.replace(version, f"{version[:-1]}+cpu\n"))
    (folder / "complete").touch()
    return folder


if __name__ == "__main__":
    sys.exit(main())
