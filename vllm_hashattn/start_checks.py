# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What is refused before a server that asks for the plugin loads anything."""

from __future__ import annotations

import logging
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from .activation import check_vllm_version
from .config import KEY, HashAttnConfig
from .hash_file import HashFile, model_fingerprint
from .kernels import DTYPES, HEAD_DIMS, MAX_BITS, MAX_GROUP
from .layer_codes import code_bytes, hashes
from .native import NoKernelsError, library

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

    from .paper_file import PaperFile

logger = logging.getLogger("vllm.plugins.hashattn")


# vLLM's own benchmark of decoding fills the cache with noise.
_CONNECTORS = ("DecodeBenchConnector",)
_WITHOUT_DRAFT_MODEL = ("ngram", "ngram_gpu", "suffix")
# Kernels for GPUs make codes in pieces of so many bits.
_GPU_BITS = 128


class UnsupportedError(ValueError):
    """A server that cannot run with hash attention, and why."""


def check(vllm_config: VllmConfig, options: HashAttnConfig) -> None:
    """Refuse what cannot work.

    Raises:
        ValueError: Says what, why and what to do.
    """
    from vllm.platforms import current_platform

    check_vllm_version(KEY)
    on_cpu, on_cuda = current_platform.is_cpu(), current_platform.is_cuda()
    transfer = vllm_config.kv_transfer_config
    connector = None if transfer is None else transfer.kv_connector
    proposing = vllm_config.speculative_config
    speculative = None if proposing is None else proposing.method
    reasons = {
        "there are backends for CPUs and CUDA only": not on_cpu and not on_cuda,
        "a quantised KV cache (--kv-cache-dtype) has another layout": (
            vllm_config.cache_config.cache_dtype != "auto"
        ),
        f"speculative decoding by {speculative} has a draft model, whose layers have "
        "no hash (ngram and suffix have none)": (
            speculative not in (None, *_WITHOUT_DRAFT_MODEL)
        ),
        f"the KV connector {connector} may bring codes of another hash, or take the "
        "cache apart": connector not in (None, *_CONNECTORS),
    }
    _refuse(reasons)
    model = vllm_config.model_config
    _check_model(model)
    if on_cuda:
        check_for_gpu(vllm_config, hashes(options.weights))
        logger.warning(
            "hashattn: the backend for GPUs was tested in an interpreter and has not "
            "run on hardware yet. Compare its answers before you rely on it."
        )
    else:
        _look_for_kernels()
    _check_weights(options, model)


def check_for_gpu(vllm_config: VllmConfig, file: HashFile | PaperFile) -> None:
    """Refuse what the backend for GPUs cannot do.

    Raises:
        UnsupportedError: Says what and why.
    """
    bits = 8 * code_bytes(file)
    _refuse(
        {
            "on a GPU it has to be asked for: add --attention-backend CUSTOM": (
                _named(vllm_config.attention_config.backend) != "CUSTOM"
            ),
            "on a GPU the paper's networks have no kernel: train a hash with "
            "vllm-hashattn train": not isinstance(file, HashFile),
            f"on a GPU codes of {bits} bits have no kernel (multiples of {_GPU_BITS} "
            "have)": bits % _GPU_BITS > 0,
            "on a GPU speculative decoding asks for several tokens at once": (
                vllm_config.speculative_config is not None
            ),
            "on a GPU two micro-batches at once would share buffers": (
                vllm_config.parallel_config.use_ubatching
            ),
        }
    )


def _look_for_kernels() -> None:
    try:
        library()
    except NoKernelsError as error:
        logger.warning(
            "hashattn: %s. Attention runs in torch, which is slower than vLLM's own.",
            error,
        )


def _named(backend: Enum | None) -> str | None:
    return None if backend is None else backend.name


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
    found = hashes(options.weights)
    found.check_model(model_fingerprint(model_folder(model)))
    layers = range(options.dense_layers, model.hf_text_config.num_hidden_layers)
    missing = [layer for layer in layers if layer not in found.layers]
    if missing:
        raise UnsupportedError(
            f"hashattn: {options.weights} lacks the layers {missing}; train the whole "
            "model with: vllm-hashattn train"
        )
    bits = 8 * code_bytes(found)
    if bits > MAX_BITS or bits % 32:
        raise UnsupportedError(
            f"hashattn: {options.weights} has codes of {bits} bits; they must be a "
            f"multiple of 32, up to {MAX_BITS}."
        )


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
