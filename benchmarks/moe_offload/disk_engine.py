# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""One engine of the disk benchmark, in a process of its own.

``python -m benchmarks.moe_offload.disk_engine FILE`` with a JSON object; prints a JSON
object on its last line. With ``"arm": "mmap"`` all experts are in a mapped file that
the system caches, and nothing else differs: the same kernel, schedule and attention.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_CPU_KVCACHE_SPACE="1",
)

import torch
from torch import Tensor

from benchmarks.moe_offload.memory_group import join
from moe_offload import model_experts
from moe_offload.arena import Arena
from moe_offload.expert_format import Part


class MappedArena(Arena):
    """Slots in files that the system reads when they are touched, and caches.

    Attributes:
        folder: Of the files.
    """

    folder = Path()
    maps: list[tuple[int, mmap.mmap]] = []  # noqa: RUF012

    def _made(self, part: Part, device: torch.device | None) -> Tensor:
        size = self.slots * self.form.page_bytes(part)
        file = os.open(self.folder / f"mapped-{part.name}", os.O_RDWR | os.O_CREAT)
        os.ftruncate(file, size)
        region = mmap.mmap(file, size)
        self.maps.append((file, region))
        found = torch.frombuffer(region, dtype=torch.uint8).view(self.form.dtype)
        return found.view(self.slots, *self.form.shape(part))


def forget_cached() -> None:
    """Have the system cache nothing of the mapped files."""
    for file, region in MappedArena.maps:
        region.flush()
        region.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Start the engine, warm it up, limit its memory, measure."""
    from vllm import LLM, SamplingParams

    if asked["arm"] == "mmap":
        MappedArena.folder = Path(asked["disk"])
        setattr(model_experts, "Arena", MappedArena)  # noqa: B010
    engine = LLM(
        asked["model"],
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=asked["batch"],
        seed=0,
        additional_config={"moe_offload": asked["options"]},
    )
    core: Any = engine.llm_engine.engine_core
    worker = core.engine_core.model_executor.driver_worker.worker
    chosen = random.Random(0)
    prompts: list[Any] = [
        {"prompt_token_ids": [chosen.randrange(10, 4000) for _ in range(16)]}
        for _ in range(asked["batch"])
    ]

    def answer(tokens: int) -> tuple[float, int]:
        """Seconds and bytes moved, of decoding alone: prefill is one step more."""
        sampling = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        memory = worker._experts.memory()
        before, started_s = memory.moved_bytes, time.perf_counter()
        engine.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - started_s, memory.moved_bytes - before

    answer(2)
    forget_cached()
    join(Path(asked["procs"]))
    few_s, few_bytes = answer(2)
    many_s, many_bytes = answer(2 + asked["steps"])
    return {
        "step_s": (many_s - few_s) / asked["steps"],
        "step_bytes": (many_bytes - few_bytes) / asked["steps"],
        "placement": str(worker._experts.memory().placement),
        "late_pages": worker._experts.memory().late_pages,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text("utf-8")))))
