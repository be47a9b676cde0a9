# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What is refused before a server that asks for the plugin loads anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .activation import check_vllm_version
from .config import KEY
from .stages import STAGES

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class UnsupportedError(ValueError):
    """A server that cannot run with offloaded experts, and why."""


def check(vllm_config: VllmConfig) -> None:
    """Refuse what cannot work.

    Raises:
        UnsupportedError: Says what, why and what to do.
    """
    from .compat import WORKERS

    check_vllm_version(KEY)
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    reasons = {
        "LoRA adapters change experts that are not there": (
            vllm_config.lora_config is not None
        ),
        "speculative decoding asks for several tokens at once": (
            vllm_config.speculative_config is not None
        ),
        "pipeline parallelism (--pipeline-parallel-size) divides the layers": (
            parallel.pipeline_parallel_size > 1
        ),
        "data parallelism (--data-parallel-size) divides the batch": (
            parallel.data_parallel_size > 1
        ),
        "expert parallelism (--enable-expert-parallel) divides the experts": (
            parallel.enable_expert_parallel or parallel.enable_eplb
        ),
        "tensor parallelism (--tensor-parallel-size) was not tested yet": (
            parallel.tensor_parallel_size > 1
        ),
        "prompts that are embeddings (--enable-prompt-embeds) have no tokens": (
            model.enable_prompt_embeds
        ),
        "models with latent attention (MLA) have another cache": model.use_mla,
        "a quantised KV cache (--kv-cache-dtype) has another layout": (
            vllm_config.cache_config.cache_dtype != "auto"
        ),
        "a KV connector takes the cache apart": (
            vllm_config.kv_transfer_config is not None
        ),
        "quantised checkpoints are not supported yet": model.quantization is not None,
        f"the worker {parallel.worker_cls} is not one that this plugin extends; it "
        "runs on CPUs": parallel.worker_cls not in WORKERS,
        **_of_model(model.hf_config, model.architectures),
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise UnsupportedError(
            f"moe_offload: cannot run here: {'; '.join(found)}. Remove "
            "--additional-config.moe_offload.enabled to serve without offloading."
        )


def _of_model(shape: Any, architectures: list[str]) -> dict[str, bool]:  # noqa: ANN401
    known = ", ".join(STAGES)
    named = ", ".join(architectures)
    return {
        f"{named} has no adapter ({known} have)": (
            not set(architectures) & set(STAGES)
        ),
        "layers without experts among those with experts": bool(
            getattr(shape, "mlp_only_layers", None)
            or getattr(shape, "decoder_sparse_step", 1) != 1
        ),
        "sliding windows (config.json: sliding_window) need another attention": bool(
            getattr(shape, "sliding_window", None)
        ),
        "shared experts need another adapter": bool(
            getattr(shape, "shared_expert_intermediate_size", 0)
        ),
    }
