# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Every vLLM symbol this plugin touches, and the one that it wraps.

``register()`` receives no configuration and vLLM offers plugins no hook that sees it
before the engine starts, so ``EngineArgs.create_engine_config`` is wrapped. For a
server that does not ask for the plugin it hands every argument and the result through
unchanged. For one that does it refuses what cannot work, switches compilation off,
because the layers run in pieces, and names this plugin's worker.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from .config import MoeOffloadConfig

# Symbol -> parameters relied on; compared with the installed vLLM by a test.
COUPLED_SYMBOLS: dict[str, tuple[str, ...]] = {
    "vllm.engine.arg_utils:EngineArgs.create_engine_config": ("self",),
    "vllm.model_executor.custom_op:PluggableLayer.register_oot": (
        "_decorated_layer_cls",
    ),
    "vllm.model_executor.layers.fused_moe.routed_experts:RoutedExperts.__init__": (
        *("layer_name", "params_dtype", "moe_config", "quant_config"),
        *("ckpt_gate_proj_name", "ckpt_down_proj_name", "ckpt_up_proj_name"),
    ),
    "vllm.model_executor.layers.fused_moe.routed_experts:RoutedExperts.load_weights": (
        *("self", "weights"),
    ),
    "vllm.model_executor.layers.fused_moe.routed_experts:"
    "RoutedExperts._get_quant_method": (
        *("self", "prefix", "quant_config", "moe_config"),
    ),
    "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method:"
    "UnquantizedFusedMoEMethod.apply": (
        *("self", "layer", "x", "topk_weights", "topk_ids", "shared_experts"),
        "shared_experts_input",
    ),
    "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method:"
    "UnquantizedFusedMoEMethod._init_moe_kernel": ("self", "layer"),
    "vllm.model_executor.layers.fused_moe.oracle.unquantized:"
    "convert_to_unquantized_kernel_format": (
        *("unquantized_backend", "moe_config", "w13_weight", "w2_weight", "layer"),
    ),
    "vllm.model_executor.layers.fused_moe.modular_kernel:FusedMoEKernel.apply": (
        *("hidden_states", "w1", "w2", "topk_weights", "topk_ids", "activation"),
        *("apply_router_weight_on_input", "global_num_experts", "expert_map"),
        *("shared_experts", "shared_experts_input"),
    ),
    "vllm.model_executor.models.utils:extract_layer_index": ("layer_name",),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._model_forward": (
        *("self", "input_ids", "positions", "intermediate_tensors", "inputs_embeds"),
    ),
    "vllm.v1.worker.cpu_worker:CPUWorker.init_device": ("self",),
    "vllm.v1.worker.gpu_worker:Worker.load_model": ("self",),
    "vllm.v1.worker.gpu_worker:Worker.initialize_from_config": ("self",),
    "vllm.v1.worker.gpu_worker:Worker.shutdown": ("self",),
}

_MARK = "_moe_offload_checks"
# vLLM's own worker for each platform, and the one that takes its place.
WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "moe_offload.worker.OffloadCPUWorker",
}


def options_of(additional_config: object) -> MoeOffloadConfig | None:
    """Return the options, or None for a server that does not ask for the plugin.

    Raises:
        ValueError: An option is unknown, malformed or out of range.
    """
    from .config import MoeOffloadConfig

    config = MoeOffloadConfig.from_additional_config(additional_config)
    return config if config.enabled else None


def check_at_start() -> None:
    """Have every engine configuration checked before and after it is built."""
    from vllm.engine.arg_utils import EngineArgs

    build = EngineArgs.create_engine_config
    # wraps() copies the mark outwards, so it is found below other plugins' wrappers.
    if hasattr(build, _MARK):
        return

    @wraps(build)
    def checked(self: EngineArgs, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        options = options_of(self.additional_config)
        if options is None:
            return build(self, *args, **kwargs)
        self.enforce_eager = True
        built: VllmConfig = build(self, *args, **kwargs)
        from .start_checks import check

        check(built)
        parallel = built.parallel_config
        parallel.worker_cls = WORKERS[parallel.worker_cls]
        return built

    setattr(checked, _MARK, True)
    EngineArgs.create_engine_config = checked  # type: ignore[method-assign]
