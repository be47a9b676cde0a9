# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Builds and loads the CPU kernels.

They are compiled on first use with the system's C++ compiler into the cache directory,
once for each version of their source; that takes a few seconds. One library holds all
instruction sets and picks one when it runs. Without a compiler, or on another
architecture than x86-64, there are none, and torch does their work.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_SOURCES = Path(__file__).parent / "csrc"
_MAIN = "hashattn.cpp"
# Sums may be reordered, which is what makes loops over floats vectors; infinities and
# not-a-numbers keep their meaning.
_FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math"),
    *("-fassociative-math", "-fno-signed-zeros", "-ffp-contract=fast"),
    *("-fvisibility=hidden", "-Wno-psabi"),
)


class NoKernelsError(RuntimeError):
    """There are no kernels on this machine, and why."""


@cache
def library() -> ctypes.CDLL:
    """Return the compiled kernels.

    Raises:
        NoKernelsError: They cannot be had here.
    """
    machine = platform.machine()
    if machine != "x86_64":
        raise NoKernelsError(f"the kernels are for x86-64, and this is {machine}")
    # torch has loaded an OpenMP library by now, whose threads are used.
    import torch  # noqa: F401

    path = _built()
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoKernelsError(f"{path} cannot be loaded: {error}") from error


@cache
def library_or_none() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they cannot be had."""
    try:
        return library()
    except NoKernelsError:
        return None


def _built() -> Path:
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    folder = _cache_directory()
    target = folder / f"hashattn-{digest.hexdigest()[:16]}.so"
    if target.is_file():
        return target
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise NoKernelsError(
            "there is no C++ compiler (g++) to build the kernels with; install one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        compiled, linked = Path(work, "kernels.o"), Path(work, "kernels.so")
        # OpenMP calls stay open when linking: the process has an OpenMP library.
        commands = (
            (compiler, *_FLAGS, "-fopenmp", "-c", _SOURCES / _MAIN, "-o", compiled),
            (compiler, "-shared", compiled, "-o", linked),
        )
        for command in commands:
            done = subprocess.run(
                [str(part) for part in command], capture_output=True, text=True
            )
            if done.returncode:
                raise NoKernelsError(
                    f"{compiler} failed to build the kernels:\n{done.stderr[-2000:]}"
                )
        # Others may have built the same meanwhile.
        linked.replace(target)
    return target


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vllm-hashattn"
