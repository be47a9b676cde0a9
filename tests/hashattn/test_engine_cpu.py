# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A real engine with hash attention: dense equals vLLM, and sparse is really sparse."""

import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM, SamplingParams

from tests.hashattn.paged_cases import random_maps
from vllm_hashattn import serving
from vllm_hashattn.hash_file import HashFile, model_fingerprint
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
def hash_file(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hyperplanes that nobody trained: what is chosen does not matter here."""
    path = tmp_path_factory.mktemp("hash") / "hash.safetensors"
    layers = {layer: random_maps(9, 3, 64, 128, seed=layer) for layer in range(30)}
    HashFile(layers, model_fingerprint(Path(model_path)), {}).save(path)
    return path


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
    sampling = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
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


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights": "missing.safetensors"}, "cannot be read as a hash file"),
        ({"weights": 3}, "give the path of a hash file"),
        ({"density": 0.0}, "density=0.0 cannot be used"),
        ({"densty": 0.1}, "Did you mean 'density'"),
    ],
)
def test_options_that_cannot_work_are_refused_at_start(
    model_path: str, options: dict[str, Any], reason: str
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    arguments = EngineArgs(model_path, additional_config={"hashattn": options})
    with pytest.raises(ValueError, match=reason):
        arguments.create_engine_config()


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ({"kv_cache_dtype": "fp8"}, "quantised KV cache"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "several tokens at once",
        ),
    ],
)
def test_what_hash_attention_cannot_do_is_refused_by_name(
    model_path: str, hash_file: Path, engine: dict[str, Any], reason: str
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    arguments = EngineArgs(
        model_path,
        additional_config={"hashattn": {"weights": str(hash_file)}},
        **engine,
    )
    with pytest.raises(ValueError, match=reason):
        arguments.create_engine_config()
