# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Every vLLM symbol this plugin touches, and those that it wraps.

``register()`` receives no configuration, so two methods are wrapped, and hand every
argument and result through unchanged unless a server asks for the plugin:

* ``EngineArgs.create_engine_config``, to refuse what cannot work before anything loads;
* the platform's ``get_attn_backend_cls``, to put the backend into vLLM's own registry:
  on GPUs as ``CUSTOM``, on CPUs in place of ``CPU_ATTN``, because vLLM ignores
  ``--attention-backend`` there. Remove the latter when the CPU platform honours it.

Two more are wrapped when a server does ask: ``SamplingParams.verify`` and the runner's
``_build_attention_metadata``, for the density that a request may ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from .config import HashAttnConfig

# Symbol -> parameters relied on; compared with the installed vLLM by a test.
COUPLED_SYMBOLS: dict[str, tuple[str, ...]] = {
    "vllm.engine.arg_utils:EngineArgs.create_engine_config": ("self",),
    "vllm.platforms.cpu:CpuPlatform.get_attn_backend_cls": (
        *("selected_backend", "attn_selector_config"),
    ),
    "vllm.v1.attention.selector:_cached_get_attn_backend": (),
    "vllm.v1.attention.backends.registry:register_backend": ("backend", "class_path"),
    "vllm.config:get_current_vllm_config_or_none": (),
    "vllm.sampling_params:SamplingParams.verify": ("self",),
    "vllm.exceptions:VLLMValidationError": ("message", "parameter"),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._build_attention_metadata": (
        "self",
    ),
    "vllm.v1.kv_cache_interface:SlidingWindowSpec": (
        *("block_size", "num_kv_heads", "head_size", "dtype", "state_content_bytes"),
    ),
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackend.customize_spec": ("spec",),
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.__init__": (
        *("num_heads", "head_size", "scale", "num_kv_heads", "alibi_slopes"),
        *("sliding_window", "kv_cache_dtype", "logits_soft_cap", "attn_type"),
        *("kv_sharing_target_layer_name", "sinks"),
    ),
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.forward": (
        *("self", "layer", "query", "key", "value", "kv_cache", "attn_metadata"),
        "output",
    ),
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.do_kv_cache_update": (
        *("self", "layer", "key", "value", "kv_cache", "slot_mapping"),
    ),
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadataBuilder.build": (
        *("self", "common_prefix_len", "common_attn_metadata", "fast_build"),
    ),
    "vllm.v1.kv_cache_interface:FullAttentionSpec": (
        *("block_size", "num_kv_heads", "head_size", "dtype", "state_content_bytes"),
    ),
    "vllm.v1.attention.backends.triton_attn:TritonAttentionBackend.customize_spec": (
        "spec",
    ),
    "vllm.v1.attention.backends.triton_attn:TritonAttentionImpl.forward": (
        *("self", "layer", "query", "key", "value", "kv_cache", "attn_metadata"),
        "output",
    ),
    "vllm.v1.attention.backends.triton_attn:TritonAttentionImpl.do_kv_cache_update": (
        *("self", "layer", "key", "value", "kv_cache", "slot_mapping"),
    ),
    "vllm.v1.attention.backends.triton_attn:TritonAttentionMetadataBuilder.build": (
        *("self", "common_prefix_len", "common_attn_metadata", "fast_build"),
    ),
    "vllm.v1.attention.backends.utils:split_decodes_and_prefills": (
        *("common_attn_metadata", "decode_threshold"),
    ),
    "vllm.model_executor.models.utils:extract_layer_index": ("layer_name",),
    "vllm.distributed:get_tensor_model_parallel_rank": (),
}

_MARK = "_hashattn_wraps"
# Options of the engine that was configured last in this process.
_LAST: list[HashAttnConfig | None] = [None]
_CPU_BACKEND = "vllm_hashattn.backend_cpu.HashAttnBackend"
_CUDA_BACKEND = "vllm_hashattn.backend_cuda.HashAttnCudaBackend"


def options_of(additional_config: object) -> HashAttnConfig | None:
    """Return the options, or None for a server that does not ask for the plugin.

    Raises:
        ValueError: An option is unknown, malformed or out of range.
    """
    from .config import HashAttnConfig

    config = HashAttnConfig.from_additional_config(additional_config)
    return config if config.weights else None


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
        built = build(self, *args, **kwargs)
        if options is not None:
            from .start_checks import check

            check(built, options)
            check_densities()
        if options != _LAST[0]:
            forget_choice()
            _LAST[0] = options
        return built

    setattr(checked, _MARK, True)
    EngineArgs.create_engine_config = checked  # type: ignore[method-assign]


def ask_for_backend() -> None:
    """Have the platform use this plugin's backend where it is asked for."""
    from vllm.platforms import current_platform

    if not (current_platform.is_cpu() or current_platform.is_cuda()):
        return
    platform = type(current_platform)
    choose: Callable[..., str] = platform.get_attn_backend_cls
    if hasattr(choose, _MARK):
        return
    original = choose.__func__  # type: ignore[attr-defined]

    @wraps(original)
    def chosen(cls: type, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        config = current_config()
        asked = config and options_of(config.additional_config)
        use_backend(asked=bool(asked), on_cpu=current_platform.is_cpu())
        if asked and current_platform.is_cpu():
            note_densities()
        return original(cls, *args, **kwargs)

    setattr(chosen, _MARK, True)
    platform.get_attn_backend_cls = classmethod(chosen)  # type: ignore[assignment]


def check_densities() -> None:
    """Have the API server check what requests ask for."""
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import SamplingParams

    from .request_density import FIELD, density_of

    verify = SamplingParams.verify
    if hasattr(verify, _MARK):
        return

    @wraps(verify)
    def verified(self: SamplingParams, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if _LAST[0] is not None:
            try:
                asked = density_of(self.extra_args)
            except ValueError as error:
                raise VLLMValidationError(str(error), parameter=FIELD) from error
            if asked is not None:
                _check_platform()
        return verify(self, *args, **kwargs)

    setattr(verified, _MARK, True)
    SamplingParams.verify = verified  # type: ignore[method-assign]


def _check_platform() -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        raise VLLMValidationError(
            "hashattn: a density for one request was asked for, which only the backend "
            "for CPUs can do; leave hashattn_density out."
        )


def note_densities() -> None:
    """Have the worker note what the requests of a batch ask for.

    A batch's metadata is built without its requests; vLLM's runner has both.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from .request_density import density_of, note_batch

    build = GPUModelRunner._build_attention_metadata
    if hasattr(build, _MARK):
        return

    @wraps(build)
    def noting(self: GPUModelRunner, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        asked = [
            density_of(_extra_args(self.requests.get(name)))
            for name in self.input_batch.req_ids
        ]
        note_batch(asked if any(asked) else None)
        return build(self, *args, **kwargs)

    setattr(noting, _MARK, True)
    GPUModelRunner._build_attention_metadata = noting  # type: ignore[method-assign]


def _extra_args(request: Any) -> dict[str, Any] | None:  # noqa: ANN401
    sampling = None if request is None else request.sampling_params
    found: dict[str, Any] | None = None if sampling is None else sampling.extra_args
    return found


def current_config() -> VllmConfig | None:
    """Return the configuration that a model is being built with, if any."""
    from vllm.config import get_current_vllm_config_or_none

    found: VllmConfig | None = get_current_vllm_config_or_none()
    return found


def use_backend(*, asked: bool, on_cpu: bool) -> None:
    """Put this plugin's backend into vLLM's registry, or take it out again.

    On a GPU the slot is ``CUSTOM``, which vLLM honours there.
    """
    from vllm.v1.attention.backends import registry

    slots = registry.AttentionBackendEnum
    slot, backend = (
        (slots.CPU_ATTN, _CPU_BACKEND) if on_cpu else (slots.CUSTOM, _CUDA_BACKEND)
    )
    if asked:
        registry.register_backend(slot, backend)
    elif registry._ATTN_OVERRIDES.get(slot) == backend:
        # An engine before this one, in the same process, asked for it.
        del registry._ATTN_OVERRIDES[slot]


def forget_choice() -> None:
    """Have vLLM choose a backend anew; it remembers its choice for a process."""
    from vllm.v1.attention.selector import _cached_get_attn_backend

    _cached_get_attn_backend.cache_clear()
