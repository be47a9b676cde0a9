# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A stand-in for the CUDA copies of vLLM's KV offloading."""

from collections import deque
from collections.abc import Callable

import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class Copies(OffloadingWorker):
    """Copies blocks between the KV cache and host memory, some steps late.

    A copy is made when it is reported or waited for, not when it is asked for: a block
    that is reused too early spoils it.
    """

    def __init__(
        self, caches: CanonicalKVCaches, num_chunks: int, delay: int = 2
    ) -> None:
        self.caches = [cache.tensor for cache in caches.tensors]
        self.host = [
            torch.empty(num_chunks, c.shape[1], dtype=c.dtype) for c in self.caches
        ]
        self.delay = delay
        self.stored = self.loaded = 0
        self._steps = 0
        self._pending: deque[tuple[int, int, Callable[[], None]]] = deque()
        self._done: list[int] = []

    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec
    ) -> bool:
        def copy() -> None:
            assert isinstance(dst_spec, CPULoadStoreSpec)
            assert len(src_spec.block_ids) == len(dst_spec.block_ids)
            self.stored += len(src_spec.block_ids)
            for cache, host in zip(self.caches, self.host, strict=True):
                host[dst_spec.block_ids] = cache[src_spec.block_ids]

        self._pending.append((job_id, self._steps + self.delay, copy))
        return True

    def submit_load(
        self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec
    ) -> bool:
        def copy() -> None:
            assert isinstance(src_spec, CPULoadStoreSpec)
            assert len(src_spec.block_ids) == len(dst_spec.block_ids)
            self.loaded += len(src_spec.block_ids)
            for cache, host in zip(self.caches, self.host, strict=True):
                cache[dst_spec.block_ids] = host[src_spec.block_ids]

        self._pending.append((job_id, self._steps + self.delay, copy))
        return True

    def get_finished(self) -> list[TransferResult]:
        self._steps += 1
        while self._pending and self._pending[0][1] <= self._steps:
            self._copy_next()
        done, self._done = self._done, []
        return [TransferResult(job_id, success=True) for job_id in done]

    def wait(self, job_ids: set[int]) -> None:
        while any(job_id in job_ids for job_id, _, _ in self._pending):
            self._copy_next()

    def _copy_next(self) -> None:
        job_id, _, copy = self._pending.popleft()
        copy()
        self._done.append(job_id)


class CopiesSpec(CPUOffloadingSpec):
    """vLLM's host offloading with ``Copies`` for its CUDA copies."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        return Copies(kv_caches, self.num_chunks)
