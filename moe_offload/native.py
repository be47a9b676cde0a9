# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Builds and loads the kernels for attention in host memory.

They are compiled on first use with the system's C++ compiler into the cache directory,
once for each version of their source; that takes some seconds. One library holds all
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
_MAIN = "host_attention.cpp"
# Nothing here looks at errors or flags of floating point; sums keep their order.
_FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math"),
    *("-ffp-contract=fast", "-fvisibility=hidden", "-Wno-psabi"),
)


class Decode(ctypes.Structure):
    """A step of decoding, as the source declares it; strides are in elements."""

    _fields_ = (
        ("queries", ctypes.c_void_p),
        ("cache", ctypes.c_void_p),
        ("results", ctypes.c_void_p),
        ("blocks", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("query_stride", ctypes.c_int64),
        ("blocks_stride", ctypes.c_int64),
        ("cache_blocks", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("sequences", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("block_tokens", ctypes.c_int32),
        ("scale", ctypes.c_float),
    )


class NoKernelsError(RuntimeError):
    """There are no kernels on this machine, and why."""


@cache
def library() -> ctypes.CDLL:
    """Return the compiled kernels.

    Calls into it let other Python threads run.

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
        kernels = ctypes.CDLL(str(path))
    except OSError as error:
        raise NoKernelsError(f"{path} cannot be loaded: {error}") from error
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    kernels.moe_offload_store.argtypes = (
        *(pointer, size, size, pointer, ctypes.c_int, ctypes.c_int, pointer, size),
    )
    kernels.moe_offload_store.restype = None
    return kernels


@cache
def library_or_reason() -> ctypes.CDLL | str:
    """Return the compiled kernels, or why they cannot be had."""
    try:
        return library()
    except NoKernelsError as error:
        return str(error)


def _built() -> Path:
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    folder = _cache_directory()
    target = folder / f"host-attention-{digest.hexdigest()[:16]}.so"
    if target.is_file():
        return target
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise NoKernelsError(
            "there is no C++ compiler (g++) to build the kernels with; install one"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            # Others may have built the same meanwhile.
            _compile(compiler, Path(work)).replace(target)
    except OSError as error:
        raise NoKernelsError(
            f"the kernels cannot be built with {compiler} in {folder}: {error}; set "
            "XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return target


def _compile(compiler: str, folder: Path) -> Path:
    compiled, linked = folder / "kernels.o", folder / "kernels.so"
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
    return linked


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vllm-moe-offload"
