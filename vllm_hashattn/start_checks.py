# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What is refused before a server that asks for the plugin loads anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .activation import check_vllm_version
from .config import KEY, HashAttnConfig
from .hash_file import HashFile, load, model_fingerprint
from .kernels import DTYPES, HEAD_DIMS, MAX_BITS, MAX_GROUP
from .native import NoKernelsError, library

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


class UnsupportedError(ValueError):
    """A server that cannot run with hash attention, and why."""


def check(vllm_config: VllmConfig, options: HashAttnConfig) -> None:
    """Refuse what cannot work.

    Raises:
        ValueError: Says what, why and what to do.
    """
    from vllm.platforms import current_platform

    check_vllm_version(KEY)
    reasons = {
        "it runs on CPUs only in this version": not current_platform.is_cpu(),
        "a quantised KV cache (--kv-cache-dtype) has another layout": (
            vllm_config.cache_config.cache_dtype != "auto"
        ),
        "speculative decoding asks for several tokens at once": (
            vllm_config.speculative_config is not None
        ),
        "KV connectors and offloading were not tested with codes in the cache": (
            vllm_config.kv_transfer_config is not None
        ),
    }
    _refuse(reasons)
    model = vllm_config.model_config
    _check_model(model)
    try:
        library()
    except NoKernelsError as error:
        raise UnsupportedError(f"hashattn: no kernels: {error}.") from error
    _check_weights(options, model)


def _check_model(model: ModelConfig) -> None:
    from vllm.config import ParallelConfig

    alone = ParallelConfig()
    head_dim = model.get_head_size()
    heads = model.get_num_attention_heads(alone)
    kv_heads = model.get_num_kv_heads(alone)
    sizes = ", ".join(map(str, HEAD_DIMS))
    _refuse(
        {
            "models with latent attention (MLA) cache no keys": model.use_mla,
            "encoder-decoder models attend to an encoder": model.is_encoder_decoder,
            "sliding windows are short already, and their layers would need a cache "
            "of another shape": model.get_sliding_window() is not None,
            f"heads of {head_dim} have no kernel ({sizes} have)": (
                head_dim not in HEAD_DIMS
            ),
            f"{model.dtype} has no kernel": model.dtype not in DTYPES,
            f"more than {MAX_GROUP} query heads for each KV head have no kernel": (
                heads > MAX_GROUP * kv_heads
            ),
        }
    )


def _refuse(reasons: dict[str, bool]) -> None:
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise UnsupportedError(
            f"hashattn: cannot run here: {'; '.join(found)}. Remove "
            "--additional-config.hashattn.weights to serve with dense attention."
        )


def _check_weights(options: HashAttnConfig, model: ModelConfig) -> None:
    hashes = load(Path(options.weights))
    hashes.check_model(model_fingerprint(model_folder(model)))
    missing = _missing_layers(hashes, options, model)
    if missing:
        raise UnsupportedError(
            f"hashattn: {options.weights} lacks the layers {missing}; train the whole "
            "model with: vllm-hashattn train"
        )
    bits = {maps.key_map.shape[2] for maps in hashes.layers.values()}
    if len(bits) > 1 or max(bits) > MAX_BITS or max(bits) % 128:
        raise UnsupportedError(
            f"hashattn: {options.weights} has codes of {sorted(bits)} bits; all layers "
            f"need the same number, a multiple of 128 up to {MAX_BITS}."
        )


def _missing_layers(
    hashes: HashFile, options: HashAttnConfig, model: ModelConfig
) -> list[int]:
    layers = range(options.dense_layers, model.hf_text_config.num_hidden_layers)
    return [layer for layer in layers if layer not in hashes.layers]


def model_folder(model: ModelConfig) -> Path:
    """Return where a model's files lie: its folder, or the hub's cache.

    Raises:
        UnsupportedError: It is not there yet.
    """
    folder = Path(model.model)
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        model.model, "config.json", revision=model.revision or "main"
    )
    if not isinstance(found, str):
        raise UnsupportedError(
            f"hashattn: the files of {model.model} are not on this machine yet, so the "
            "hash cannot be compared with them. Download the model first."
        )
    return Path(found).parent
