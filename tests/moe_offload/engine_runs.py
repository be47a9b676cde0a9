# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Runs vLLM engines, one after another in one process, and says what they answered.

Called by tests as ``python -m tests.moe_offload.engine_runs FILE``: a JSON list of runs
in, a JSON list of results out, on the last line.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_CPU_KVCACHE_SPACE="1",
)


def prompts(count: int, seed: int = 0, shared: int = 0) -> list[list[int]]:
    """Return prompts of 3 to 59 tokens, after some that all of them begin with."""
    chosen = random.Random(seed)
    begin = [chosen.randrange(10, 500) for _ in range(shared)]
    return [
        begin + [chosen.randrange(10, 500) for _ in range(chosen.randrange(3, 60))]
        for _ in range(count)
    ]


def run(asked: dict[str, Any]) -> dict[str, Any]:
    """Start an engine, let it answer, stop it.

    Args:
        asked: ``model``, and optionally ``options`` of the plugin, arguments of the
            ``engine``, of ``prompts``, ``tokens``, and ``ragged`` for answers that end.
    """
    from vllm import LLM, SamplingParams

    options = asked.get("options")
    extra = {"additional_config": {"moe_offload": options}} if options else {}
    engine = LLM(
        asked["model"],
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype=asked.get("dtype", "float32"),
        max_model_len=256,
        seed=0,
        disable_log_stats=False,
        **extra,
        **asked.get("engine", {}),
    )
    given = prompts(**asked.get("prompts", {"count": 24}))
    ragged = asked.get("ragged", False)
    tokens = asked.get("tokens", 24)
    sampling = [
        SamplingParams(
            temperature=0,
            max_tokens=1 + (7 * number) % tokens if ragged else tokens,
            ignore_eos=not ragged,
            stop_token_ids=list(range(100, 110)) if ragged else None,
            detokenize=False,
        )
        for number in range(len(given))
    ]
    answers = engine.generate(
        [{"prompt_token_ids": each} for each in given], sampling, use_tqdm=False
    )
    preempted = [
        metric.value
        for metric in engine.get_metrics()
        if metric.name == "vllm:num_preemptions"
    ]
    found = {
        "tokens": [list(each.outputs[0].token_ids) for each in answers],
        "preemptions": sum(preempted),
    }
    worker = engine.llm_engine.engine_core.engine_core.model_executor.driver_worker
    found |= _counted(worker.worker)
    engine.llm_engine.engine_core.shutdown()
    del engine, worker
    gc.collect()
    return found


def _counted(worker: Any) -> dict[str, Any]:  # noqa: ANN401
    """What the plugin counted; nothing of a plain worker."""
    if not hasattr(worker, "_pipeline"):
        return {"worker": type(worker).__name__}
    memory = worker._experts.memory()
    return {
        "worker": type(worker).__name__,
        "steps": worker._pipeline.steps,
        "moved_bytes": memory.moved_bytes,
        "late_pages": memory.late_pages,
        "streamed": len(memory.streamed_pages),
        "store": type(memory.store).__name__,
        "reused": getattr(memory.store, "reused", False),
    }


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    print(json.dumps([run(each) for each in asked]))
