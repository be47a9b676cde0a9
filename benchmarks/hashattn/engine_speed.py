# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Times one engine, in a process of its own: decoding steps, or prefill.

Decoding: vLLM's DecodeBenchConnector fills the cache with noise in place of a prefill
that would take hours at the longest contexts. Sparse attention then reads tokens at
random, which is the worst case for memory. Prefill: real text, nothing cached.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import LLM

WARM_STEPS = 3


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        context_tokens: Of each sequence.
        batch: Sequences that decode together.
        step_ms: Median time of a decoding step, or of the prefill.
        steps: How many were timed.
        read_share: Tokens that sparse layers read, of those in the contexts; None in
            stock vLLM.
    """

    context_tokens: int
    batch: int
    step_ms: float
    steps: int
    read_share: float | None


def make_engine(options: argparse.Namespace) -> LLM:
    """Start an engine in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM
    from vllm.config import KVTransferConfig

    hashattn = json.loads(options.hashattn)
    transfer = KVTransferConfig(
        kv_connector="DecodeBenchConnector",
        kv_role="kv_both",
        kv_connector_extra_config={"fill_mean": 0.0, "fill_std": 1.0},
    )
    decoding = options.what == "decode"
    return LLM(
        options.model,
        dtype="bfloat16",
        max_model_len=options.max_model_len,
        max_num_seqs=8,
        max_num_batched_tokens=2048,
        enable_prefix_caching=False,
        kv_transfer_config=transfer if decoding else None,
        additional_config={"hashattn": hashattn} if hashattn else {},
    )


def decode_point(llm: LLM, context_tokens: int, batch: int, steps: int) -> Point:
    """Time decoding steps of `batch` sequences."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    from vllm_hashattn.steps import STEPS

    engine = llm.llm_engine
    sampling = SamplingParams(
        temperature=0.0, max_tokens=steps + WARM_STEPS + 2, ignore_eos=True
    )
    for number in range(batch):
        # Sequences of their own, so none shares blocks with another.
        prompt = TokensPrompt(prompt_token_ids=[11 + number] * context_tokens)
        engine.add_request(f"{context_tokens}-{batch}-{number}", prompt, sampling)
    while True:  # until all have their first token
        outputs = engine.step()
        if len(outputs) == batch and all(_has_token(each) for each in outputs):
            break
    for _ in range(WARM_STEPS):
        engine.step()
    before = STEPS.copy()
    times_ms = []
    for _ in range(steps):
        started_s = time.perf_counter()
        engine.step()
        times_ms.append(1e3 * (time.perf_counter() - started_s))
    held = STEPS.tokens_held - before.tokens_held
    share = (STEPS.tokens_read - before.tokens_read) / held if held else None
    while engine.has_unfinished_requests():
        engine.step()
    return Point(context_tokens, batch, statistics.median(times_ms), steps, share)


def _has_token(output: Any) -> bool:  # noqa: ANN401
    return bool(output.outputs[0].token_ids)


def prefill_point(llm: LLM, context_tokens: int, token_ids: list[int]) -> Point:
    """Time one prompt of real text up to its first token."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    prompt = TokensPrompt(prompt_token_ids=token_ids[:context_tokens])
    started_s = time.perf_counter()
    llm.generate(prompt, SamplingParams(temperature=0.0, max_tokens=1), use_tqdm=False)
    spent_ms = 1e3 * (time.perf_counter() - started_s)
    return Point(context_tokens, 1, spent_ms, 1, None)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all points on one engine."""
    llm = make_engine(options)
    cache = llm.llm_engine.vllm_config.cache_config
    points = []
    contexts = [int(each) for each in options.contexts.split(",")]
    if options.what == "decode":
        for batch in (int(each) for each in options.batches.split(",")):
            for context_tokens in contexts:
                points.append(decode_point(llm, context_tokens, batch, options.steps))
                print(points[-1], file=sys.stderr, flush=True)
    else:
        text = Path(options.text).read_text("utf-8")
        token_ids = llm.get_tokenizer().encode(text)
        prefill_point(llm, min(contexts), token_ids[-min(contexts) :])  # warms up
        for context_tokens in contexts:
            points.append(prefill_point(llm, context_tokens, token_ids))
            print(points[-1], file=sys.stderr, flush=True)
    return {
        "points": [vars(point) for point in points],
        "cache_tokens": (cache.num_gpu_blocks or 0) * cache.block_size,
    }


def main() -> int:
    """Print what was measured as JSON, on the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("decode", "prefill"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--contexts", required=True)
    parser.add_argument("--batches", default="1")
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--text", default="")
    parser.add_argument("--hashattn", default="{}")
    print(json.dumps(measure(parser.parse_args())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
