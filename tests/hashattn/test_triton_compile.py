# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Triton kernels are compiled for GPUs, down to their machine code, without a GPU.

The interpreter runs Python: it accepts types, names and constants that the compiler
does not. Here the functions that launch kernels do so as ever, and each launch ends
after compilation, for which Triton needs no device but the name of one.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

import vllm_hashattn
from tests.hashattn.paged_cases import random_level_maps, random_maps
from tests.hashattn.test_triton_process import INTERPRETED
from vllm_hashattn.budget import Budget
from vllm_hashattn.triton_cache import RowCache
from vllm_hashattn.triton_decode import decode, store_codes
from vllm_hashattn.triton_workspace import Workspace

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

OF_SIGNS = {"_encode_keys", "_encode_queries", "_scan", "_plan", "_choose"}
OF_LEVELS = {"_encode_levels", "_ask", "_estimate", "_weigh", "_threshold"}
OF_LEVELS |= {"_count", "_draw"}
OF_BOTH = {"_attend", "_merge"}
# Of GPUs with the least: RTX 30 and 40, A10, L4.
SHARED_BYTES = 99 * 1024
Launches = dict[str, Any]


class NamedDevice:
    """What Triton asks a driver for before it compiles."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability  # kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def compile_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], Launches]]:
    """Function that turns launches into compilations, and returns where they gather."""
    launch = JITFunction.run
    compiled: Launches = {}

    def only_compile(kernel: JITFunction, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        found = launch(kernel, *args, **{**options, "warmup": True})
        compiled[kernel.__name__] = found
        return found

    def start(capability: int) -> Launches:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(driver, "_active", NamedDevice(capability))
        monkeypatch.setattr(JITFunction, "run", only_compile)
        return compiled

    return start


@pytest.mark.parametrize(
    ("levels", "capability", "dtype", "heads", "kv_heads", "dim", "bits"),
    [
        (False, 80, torch.bfloat16, 32, 8, 128, 128),
        (False, 90, torch.float16, 16, 1, 64, 512),
        (True, 80, torch.bfloat16, 32, 8, 128, 128),
        (True, 90, torch.float32, 9, 3, 96, 384),
    ],
)
def test_kernels_compile_for_gpus(
    compile_for: Callable[[int], Launches],
    levels: bool,
    capability: int,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    bits: int,
) -> None:
    compiled = compile_for(capability)
    make = random_level_maps if levels else random_maps
    maps = make(heads, kv_heads, dim, bits)
    width = 2 * dim + bits // 8 // dtype.itemsize
    data = torch.zeros(2, kv_heads, 16, width, dtype=dtype)
    cache = RowCache(data, dim, bits // 8)
    space = Workspace.allocate(
        *(heads, kv_heads, dim, bits, 32768, 2048, 2),
        device="cpu",
        levels=levels,
    )
    keys = torch.zeros(5, kv_heads, dim, dtype=dtype)
    store_codes(cache, keys, torch.arange(5), maps)
    one = torch.ones(1, dtype=torch.int32)
    blocks = torch.zeros(1, 2048, dtype=torch.int32)
    query = torch.zeros(1, heads, dim, dtype=dtype)
    decode(cache, query, maps, blocks, one, one, Budget(0.0625), 1.0, space)

    assert set(compiled) == OF_BOTH | (OF_LEVELS if levels else OF_SIGNS)
    for name, kernel in compiled.items():
        assert len(kernel.asm["cubin"]) > 1000, name
        assert kernel.metadata.shared <= SHARED_BYTES, name
    # Matrices are multiplied by tensor cores.
    assert "mma.sync" in compiled["_attend"].asm["ptx"]
    scan = compiled["_weigh" if levels else "_scan"].asm["ptx"]
    if levels:
        assert ".s32.s8.s8" in scan
        # What rounds once must not round twice.
        assert "fma.rn.f32" in scan
    # A thread fetches 16 bytes at once of a code, and of a row.
    for each in (scan, compiled["_attend"].asm["ptx"]):
        assert "ld.global.v4" in each or "cp.async.cg.shared.global" in each


def test_parameters_mean_what_they_look_like() -> None:
    kernels = OF_SIGNS | OF_LEVELS | OF_BOTH
    found = set()
    for each in pkgutil.iter_modules(vllm_hashattn.__path__):
        if not each.name.startswith("triton_"):
            continue
        module = importlib.import_module(f"vllm_hashattn.{each.name}")
        for name, kernel in vars(module).items():
            if isinstance(kernel, JITFunction) and name in kernels:
                found.add(name)
                for parameter in kernel.params:
                    assert parameter.is_constexpr == parameter.name.isupper(), name
                    kinds = ("", "i32", "fp32")
                    assert parameter.annotation_type in kinds, parameter.name
    assert found == kernels
