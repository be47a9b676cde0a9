# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The demo: train a hash for the demo model, then read a long text dense and sparse.

Both answer the same questions about numbers hidden in the same long text; the same
engine settings, one process for each. The hash is small and trained in about a minute,
and kept for the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.command import run_command
from scripts.model_cache import cache_dir, resolve_model

TOKENS = 6000
STEPS = 150
TRAINING_TOKENS = 2048
DENSITY = 0.125
ANSWER_TOKENS = 24
SPARSE = {"density": DENSITY, "min_tokens": 0, "dense_below": 1024}


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="make demo ARGS=--hashattn", description=__doc__
    )
    parser.add_argument("--one", choices=("dense", "sparse"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    return run_command(
        "demo", lambda: _one(options.one) if options.one else _all(), (OSError,)
    )


def _all() -> int:
    _train()
    found = {arm: _in_process(arm) for arm in ("dense", "sparse")}
    dense, sparse = found["dense"], found["sparse"]
    print(f"\n{dense['prompt_tokens']:,} tokens of text, the same questions:\n")
    for before, after in zip(dense["answers"], sparse["answers"], strict=True):
        print(f"  asked for {', '.join(before['expected'])}")
        print(f"    dense:  {before['text'].strip()!r}")
        print(f"    sparse: {after['text'].strip()!r}")
    for name, run in found.items():
        right = sum(answer["right"] for answer in run["answers"])
        print(
            f"{name:>6}: {right} of {len(run['answers'])} right, "
            f"{run['prefill_s']:.1f} s to the first token, {run['step_ms']:.1f} ms for "
            f"each step of {len(run['answers'])} answers"
        )
    share = sparse["tokens_read"] / sparse["tokens_held"]
    print(
        f"\nsparse attention ran for {sparse['sparse_tokens']} tokens and read "
        f"{share:.0%} of their contexts; steps took "
        f"{sparse['step_ms'] / dense['step_ms']:.2f} times as long as dense ones."
    )
    return 0 if sparse["sparse_tokens"] else 1


def hash_path() -> Path:
    """Return where the demo's hash is kept."""
    name = f"demo-levels-{TRAINING_TOKENS}-{STEPS}.safetensors"
    return cache_dir() / "hashattn" / name


def _train() -> None:
    if hash_path().is_file():
        print(f"hash: {hash_path().name} is there already")
        return
    hash_path().parent.mkdir(parents=True, exist_ok=True)
    sources = [Path(os.__file__).parent / f"{n}.py" for n in ("argparse", "inspect")]
    command = [
        *(sys.executable, "-m", "vllm_hashattn.cli", "train"),
        *("--model", resolve_model(), "--out", str(hash_path())),
        *("--data", *map(str, sources), "--tokens", str(TRAINING_TOKENS)),
        *("--documents", "4", "--held-out", "1", "--steps", str(STEPS)),
    ]
    print("hash: training one for the demo model, about a minute", flush=True)
    started_s = time.perf_counter()
    subprocess.run(command, check=True)
    print(f"hash: trained in {time.perf_counter() - started_s:.0f} s")


def _in_process(arm: str) -> dict[str, Any]:
    print(f"{arm}: starting vLLM and reading the text", flush=True)
    environment = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    command = [sys.executable, "-m", "benchmarks.hashattn.demo", "--one", arm]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"the {arm} engine failed, see above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _one(arm: str) -> int:
    """Answer on one engine, and print what happened as JSON."""
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    from vllm_hashattn.long_context import chat_prompt, token_counter
    from vllm_hashattn.long_context_needles import NeedlePlan, build_needle_context
    from vllm_hashattn.long_context_score import score_answer
    from vllm_hashattn.steps import STEPS as COUNTED

    hashattn = {**SPARSE, "weights": str(hash_path())} if arm == "sparse" else None
    llm = LLM(
        resolve_model(),
        dtype="bfloat16",
        max_model_len=8192,
        enforce_eager=True,
        additional_config={} if hashattn is None else {"hashattn": hashattn},
    )
    tokenizer: Any = llm.get_tokenizer()
    plan = NeedlePlan(
        singles=3, multikeys=0, distractors=0, multivalues=0, multiqueries=0, chains=0
    )
    sample = build_needle_context(TOKENS, token_counter(tokenizer), None, 0, plan)
    prompts = []
    for each in sample.questions:
        prompt = chat_prompt(tokenizer, sample.context, each.text, each.answer_prefix)
        first, second = prompt.token_ids(tokenizer)
        prompts.append(TokensPrompt(prompt_token_ids=first + second))
    sampling = SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS)
    started_s = time.perf_counter()
    one = SamplingParams(temperature=0.0, max_tokens=1)
    llm.generate(prompts[:1], one, use_tqdm=False)
    prefill_s = time.perf_counter() - started_s
    texts, step_ms = _timed(llm, prompts, sampling)
    answers = [
        {
            "text": text,
            "expected": question.expected,
            "right": score_answer(question, text).exact,
        }
        for question, text in zip(sample.questions, texts, strict=True)
    ]
    result = {
        "answers": answers,
        "prompt_tokens": len(prompts[0]["prompt_token_ids"]),
        "prefill_s": prefill_s,
        "step_ms": step_ms,
        "sparse_tokens": COUNTED.sparse,
        "tokens_held": COUNTED.tokens_held,
        "tokens_read": COUNTED.tokens_read,
    }
    print(json.dumps(result))
    return 0


def _timed(llm: Any, prompts: list[Any], sampling: Any) -> tuple[list[str], float]:  # noqa: ANN401
    """Answer all prompts together; the median time of a step in which all decode."""
    engine = llm.llm_engine
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, sampling)
    texts = [""] * len(prompts)
    times_ms = []
    while engine.has_unfinished_requests():
        started_s = time.perf_counter()
        outputs = engine.step()
        spent_ms = 1e3 * (time.perf_counter() - started_s)
        lengths = [len(each.outputs[0].token_ids) for each in outputs]
        if len(outputs) == len(prompts) and min(lengths) > 1:
            times_ms.append(spent_ms)
        for each in outputs:
            texts[int(each.request_id)] = each.outputs[0].text
    return texts, statistics.median(times_ms)


if __name__ == "__main__":
    sys.exit(main())
