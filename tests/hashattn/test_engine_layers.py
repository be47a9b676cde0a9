# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Models whose layers hash attention must not touch, on a real engine."""

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig
from vllm import LLM, SamplingParams

from tests.hashattn.paged_cases import random_level_maps
from vllm_hashattn import serving
from vllm_hashattn.hash_file import HashFile, model_fingerprint
from vllm_hashattn.steps import STEPS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

_SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
}
_SOFT_CAP = Gemma2Config(**_SMALL, sliding_window=64, attn_logit_softcapping=20.0)
_WINDOWS = Gemma3TextConfig(
    **_SMALL,
    sliding_window=64,
    layer_types=["sliding_attention", "full_attention"] * 2,
)


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield


def answers(model: Path, options: dict[str, Any] | None) -> list[list[int]]:
    serving._CURRENT.clear()
    llm = LLM(
        str(model),
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=512,
        additional_config={} if options is None else {"hashattn": options},
    )
    sampling = SamplingParams(
        temperature=0.0, max_tokens=10, ignore_eos=True, detokenize=False
    )
    random = torch.Generator().manual_seed(1)
    prompts = [
        {"prompt_token_ids": torch.randint(5, 500, (n,), generator=random).tolist()}
        for n in (30, 150, 301)
    ]
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    return [list(output.outputs[0].token_ids) for output in outputs]


def made(config: Any, folder: Path) -> Path:  # noqa: ANN401
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    layers = {layer: random_level_maps(4, 2, 64, 128, seed=layer) for layer in range(4)}
    fingerprint = model_fingerprint(folder)
    # Beside the model's folder: vLLM loads every safetensors file in it.
    HashFile(layers, fingerprint, {}).save(folder.with_suffix(".hash"))
    return folder


@pytest.mark.parametrize(
    ("config", "named", "own_layers"),
    [(_SOFT_CAP, "a soft cap", False), (_WINDOWS, "a sliding window", True)],
    ids=["soft cap", "windows"],
)
def test_they_are_left_to_vllm(
    config: Any,  # noqa: ANN401
    named: str,
    own_layers: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = made(config, tmp_path / "model")
    plain = answers(model, None)
    # vLLM's loggers do not hand on to the root.
    logging.getLogger("vllm.plugins.hashattn").addHandler(caplog.handler)
    before = STEPS.copy()
    options = {"weights": str(model.with_suffix(".hash")), "dense_below": 0}
    whole = answers(model, {**options, "density": 1.0})
    assert whole == plain
    assert STEPS.dense > before.dense
    assert f"layers with {named} are left to vLLM's attention" in caplog.text
    sparse = {
        "density": 0.1,
        "min_tokens": 0,
        "sink_tokens": 4,
        "recent_tokens": 8,
        "dense_layers": 0,
    }
    found = answers(model, {**options, **sparse})
    # Where every layer is vLLM's, there is nothing left to be sparse.
    assert (found != plain) == own_layers
