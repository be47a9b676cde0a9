# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A real engine with hash attention: dense equals vLLM, and sparse is really sparse."""

import gc
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError

from tests.hashattn.paged_cases import random_maps
from tests.hashattn.test_layer_codes import networks
from vllm_hashattn import serving
from vllm_hashattn.hash_file import HashFile, model_fingerprint
from vllm_hashattn.paper_file import PaperFile
from vllm_hashattn.request_density import FIELD
from vllm_hashattn.steps import STEPS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

WORDS = ["time", "light", "river", "stone", "cloud", "garden", "number", "letter"]
SPARSE = {
    "density": 0.2,
    "min_tokens": 0,
    "sink_tokens": 4,
    "recent_tokens": 16,
    "dense_below": 0,
    "dense_layers": 1,
}


@dataclass(frozen=True)
class Run:
    """What an engine answered, and what the backend counted."""

    tokens: list[list[int]]
    sparse: int
    dense: int
    held: int
    read: int
    cached: int


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    draw = random.Random(3)
    shared = " ".join(draw.choices(WORDS, k=150))
    return [
        (shared + " " if i % 2 else "")
        + " ".join(draw.choices(WORDS, k=draw.randrange(5, 300)))
        for i in range(8)
    ]


def run(
    model: str,
    prompts: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any] | None,
    repeats: int = 1,
    densities: Sequence[float | None] | None = None,
    **engine: Any,  # noqa: ANN401
) -> Run:
    """Answer all prompts on an engine of this process."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    serving._CURRENT.clear()
    before = (STEPS.sparse, STEPS.dense, STEPS.tokens_held, STEPS.tokens_read)
    llm = LLM(
        model,
        enforce_eager=True,
        dtype="float32",
        max_model_len=1024,
        block_size=32,
        max_num_seqs=8,
        additional_config={} if options is None else {"hashattn": options},
        **engine,
    )
    sampling = [
        SamplingParams(
            temperature=0.0,
            max_tokens=12,
            ignore_eos=True,
            extra_args=None if density is None else {FIELD: density},
        )
        for density in densities or [None] * len(prompts)
    ]
    for _ in range(repeats):
        outputs = llm.generate(list(prompts), sampling, use_tqdm=False)
    result = Run(
        [list(output.outputs[0].token_ids) for output in outputs],
        STEPS.sparse - before[0],
        STEPS.dense - before[1],
        STEPS.tokens_held - before[2],
        STEPS.tokens_read - before[3],
        sum(output.num_cached_tokens or 0 for output in outputs),
    )
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    return result


@pytest.fixture(scope="module")
def plain(model_path: str, prompts: list[str]) -> Run:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run(model_path, prompts, monkeypatch, None)


def test_without_weights_vllm_is_left_alone(plain: Run) -> None:
    assert (plain.sparse, plain.dense) == (0, 0)


def test_density_one_answers_like_vllm(
    plain: Run,
    model_path: str,
    hash_file: Path,
    prompts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {**SPARSE, "weights": str(hash_file), "density": 1.0}
    found = run(model_path, prompts, monkeypatch, options)
    assert found.tokens == plain.tokens
    assert found.dense > 80 and found.sparse == 0
    assert found.read == found.held


@pytest.fixture(scope="module")
def sparse(model_path: str, hash_file: Path, prompts: list[str]) -> Run:
    with pytest.MonkeyPatch.context() as monkeypatch:
        options = {**SPARSE, "weights": str(hash_file)}
        return run(
            model_path, prompts, monkeypatch, options, enable_prefix_caching=False
        )


def test_sparse_decoding_reads_its_share_and_answers_otherwise(
    plain: Run, sparse: Run
) -> None:
    assert sparse.sparse > 80
    assert 0.2 <= sparse.read / sparse.held < 0.25
    assert sparse.tokens != plain.tokens


def test_prefix_caching_chunks_and_preemption_change_no_answer(
    sparse: Run,
    model_path: str,
    hash_file: Path,
    prompts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {**SPARSE, "weights": str(hash_file)}
    found = run(
        model_path,
        prompts,
        monkeypatch,
        options,
        repeats=2,
        enable_prefix_caching=True,
        max_num_batched_tokens=64,
        num_gpu_blocks_override=40,
    )
    assert found.cached > 300
    assert found.tokens == sparse.tokens


def test_single_requests_may_read_everything(
    plain: Run,
    sparse: Run,
    model_path: str,
    hash_file: Path,
    prompts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    densities = [1.0 if i % 3 == 0 else None for i in range(len(prompts))]
    found = run(
        *(model_path, prompts, monkeypatch, {**SPARSE, "weights": str(hash_file)}),
        densities=densities,
        enable_prefix_caching=False,
    )
    for i, density in enumerate(densities):
        assert found.tokens[i] == (plain if density else sparse).tokens[i]
    assert found.dense > 20 and found.sparse > 40


def test_what_is_no_density_fails_its_request(
    model_path: str, hash_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**SPARSE, "weights": str(hash_file)}
    with pytest.raises(VLLMValidationError, match="a number above 0 and at most 1"):
        run(model_path, ["a"], monkeypatch, options, densities=[3.0])


def test_tokens_that_are_verified_together_are_read_whole(
    plain: Run,
    model_path: str,
    hash_file: Path,
    prompts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In a process of its own: the proposer imports numba, after which vLLM starts no
    # second engine in the same process.
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    llm = LLM(
        model_path,
        enforce_eager=True,
        dtype="float32",
        max_model_len=1024,
        block_size=32,
        max_num_seqs=8,
        additional_config={
            "hashattn": {**SPARSE, "weights": str(hash_file), "density": 1.0}
        },
        speculative_config={
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_max": 2,
        },
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    outputs = llm.generate(list(prompts), sampling, use_tqdm=False)
    # More than were kept, because some were proposed in vain.
    wait_for_count("dense", len(prompts) * 11 + 1)
    llm.llm_engine.engine_core.shutdown()
    assert [list(each.outputs[0].token_ids) for each in outputs] == plain.tokens


def wait_for_count(read: str, least: float) -> None:
    """Wait for what the engine of another process hands over once a second."""
    name = "vllm:hashattn_decode_tokens_total"
    deadline_s, found = time.monotonic() + 20, 0.0
    while time.monotonic() < deadline_s:
        for family in REGISTRY.collect():
            for sample in family.samples:
                if sample.name == name and sample.labels["read"] == read:
                    found = float(sample.value)
        if found >= least:
            return
        time.sleep(0.5)
    raise AssertionError(f"{found} tokens were counted, not {least}")


@pytest.mark.parametrize("kind", ["signs", "paper"])
def test_codes_of_signs_serve_as_well(
    kind: str,
    plain: Run,
    model_path: str,
    prompts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "hash.safetensors"
    model = model_fingerprint(Path(model_path))
    if kind == "paper":
        layers = {layer: networks(9, 64, 32, seed=layer) for layer in range(30)}
        PaperFile(layers, model, {}).save(path)
    else:
        signs = {layer: random_maps(9, 3, 64, 128, seed=layer) for layer in range(30)}
        HashFile(signs, model, {}).save(path)
    options = {**SPARSE, "weights": str(path)}
    found = run(model_path, prompts, monkeypatch, options)
    assert found.sparse > 80 and found.read < 0.25 * found.held
    assert found.tokens != plain.tokens
