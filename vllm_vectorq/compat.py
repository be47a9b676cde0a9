# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Every vLLM symbol this plugin touches, and the only ways in which it patches one.

A new vLLM release is ported by making ``tests/vectorq/test_vectorq_compat.py`` pass: it
imports what is named here and compares parameters and fields.

``register()`` receives no configuration and vLLM offers plugins no hook that sees it
before the engine starts, so ``EngineArgs.create_engine_config`` is wrapped. The
wrapper reads ``additional_config`` and hands every argument and the result through
unchanged. Everything else is wrapped only once a server asks for the cache. Remove the
wrappers when vLLM offers a hook between its handlers and its engine.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Symbol -> parameters relied on; compared with the installed vLLM by a test.
COUPLED_SYMBOLS: dict[str, tuple[str, ...]] = {
    "vllm.engine.arg_utils:EngineArgs.create_engine_config": ("self",),
    # hooks_engine
    "vllm.v1.engine.async_llm:AsyncLLM.__init__": ("self", "vllm_config"),
    "vllm.v1.engine.async_llm:AsyncLLM.generate": (
        *("self", "prompt", "sampling_params", "request_id", "lora_request"),
        *("reasoning_ended", "reasoning_parser_kwargs"),
    ),
    "vllm.v1.engine.async_llm:AsyncLLM.update_weights": ("self",),
    "vllm.v1.engine.async_llm:AsyncLLM.finish_weight_update": (
        *("self", "weight_version"),
    ),
    "vllm.v1.engine.async_llm:AsyncLLM.update_weight_version": ("self", "new_version"),
    "vllm.v1.engine.async_llm:AsyncLLM.collective_rpc": ("self", "method"),
    "vllm.v1.engine.async_llm:AsyncLLM.add_lora": ("self", "lora_request"),
    "vllm.v1.engine.async_llm:AsyncLLM.remove_lora": ("self", "lora_id"),
    # hooks_offline
    "vllm.v1.engine.llm_engine:LLMEngine.__init__": ("self", "vllm_config"),
    "vllm.v1.engine.llm_engine:LLMEngine.add_request": (
        *("self", "request_id", "prompt", "params", "lora_request"),
    ),
    "vllm.v1.engine.llm_engine:LLMEngine.step": ("self",),
    "vllm.v1.engine.llm_engine:LLMEngine.has_unfinished_requests": ("self",),
    "vllm.v1.engine.llm_engine:LLMEngine.get_num_unfinished_requests": ("self",),
    "vllm.v1.engine.llm_engine:LLMEngine.abort_request": (
        *("self", "request_ids", "internal"),
    ),
    "vllm.v1.engine.llm_engine:LLMEngine.set_weight_version": (
        *("self", "weight_version"),
    ),
    "vllm.v1.engine.llm_engine:LLMEngine.collective_rpc": ("self", "method"),
    "vllm.v1.engine.llm_engine:LLMEngine.add_lora": ("self", "lora_request"),
    "vllm.v1.engine.llm_engine:LLMEngine.remove_lora": ("self", "lora_id"),
    "vllm.v1.engine.output_processor:OutputProcessor.has_unfinished_requests": (
        *("self",),
    ),
    # hooks_render
    "vllm.renderers.online_renderer:OnlineRenderer.preprocess_chat": (
        *("self", "request", "messages"),
    ),
    "vllm.renderers.online_renderer:OnlineRenderer.preprocess_cmpl": (
        *("self", "request", "prompts"),
    ),
    "vllm.entrypoints.common.offline:OfflineInferenceMixin._preprocess_chat": (
        *("self", "conversations", "tools", "tokenization_kwargs"),
    ),
    "vllm.entrypoints.common.offline:OfflineInferenceMixin._preprocess_cmpl": (
        *("self", "prompts", "tokenization_kwargs"),
    ),
    # http_identity
    "vllm.entrypoints.launchers.app:init_entrypoints_middleware": ("args", "app"),
    # admin_api
    "vllm.plugins.endpoint_plugins.interface:EndpointPlugin.attach_router": (
        *("self", "app"),
    ),
    "vllm.plugins.endpoint_plugins.interface:EndpointPlugin.init_state": (
        *("self", "engine_client", "state", "args"),
    ),
    # admin_rehearsal
    "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest": (
        *("model", "messages"),
    ),
    "vllm.entrypoints.openai.completion.protocol:CompletionRequest": (
        *("model", "prompt"),
    ),
    "vllm.entrypoints.openai.chat_completion.serving:"
    "OpenAIServingChat.create_chat_completion": ("self", "request"),
    "vllm.entrypoints.openai.completion.serving:"
    "OpenAIServingCompletion.create_completion": ("self", "request"),
    "vllm.entrypoints.serve.engine.protocol:ErrorResponse": ("error",),
    # hit_output
    "vllm.outputs:RequestOutput": (
        *("request_id", "prompt", "prompt_token_ids", "prompt_logprobs", "outputs"),
        *("finished", "lora_request", "num_cached_tokens"),
        "num_cache_creation_tokens",
    ),
    "vllm.outputs:CompletionOutput": (
        *("index", "text", "token_ids", "cumulative_logprob", "logprobs"),
        *("finish_reason", "stop_reason", "lora_request"),
    ),
    "vllm.v1.engine.detokenizer:IncrementalDetokenizer.from_new_request": (
        *("tokenizer", "request"),
    ),
    "vllm.v1.engine.detokenizer:IncrementalDetokenizer.update": (
        *("self", "new_token_ids", "stop_terminated"),
    ),
    "vllm.v1.engine.detokenizer:IncrementalDetokenizer.get_next_output_text": (
        *("self", "finished", "delta"),
    ),
}

# Class -> attributes that its instances must have.
COUPLED_FIELDS: dict[str, tuple[str, ...]] = {
    "vllm.sampling_params:SamplingParams": (
        *("n", "temperature", "seed", "stop", "max_tokens", "min_tokens"),
        *("ignore_eos", "logprobs", "prompt_logprobs", "logprob_token_ids"),
        *("prompt_logprob_token_ids", "prompt_logprob_start", "detokenize"),
        *("trace_decode_token_ids", "routed_experts_prompt_start", "output_kind"),
        *("stream_interval", "skip_clone", "output_text_buffer_length"),
        *("structured_outputs", "extra_args"),
    ),
    "vllm.lora.request:LoRARequest": ("lora_name", "lora_int_id", "lora_path"),
    "vllm.v1.engine:EngineCoreRequest": (
        *("request_id", "prompt_token_ids", "sampling_params", "prompt_embeds"),
    ),
    "vllm.renderers.params:TokenizeParams": (
        *("truncate_prompt_tokens", "pad_prompt_tokens", "add_special_tokens"),
        "do_lower_case",
    ),
}

_MARK = "_vectorq_wrapped"


def wrap(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace a function of a class or module, once however often it is asked.

    Args:
        owner: A class or module of vLLM; never an instance.
        name: The function's name.
        make: Receives the original and returns its replacement.

    Raises:
        RuntimeError: This vLLM has no such function.
    """
    original = getattr(owner, name, None)
    if original is None:
        raise RuntimeError(
            f"vectorq: asked for the semantic response cache, but this vLLM has no "
            f"{owner.__name__}.{name}; switch vectorq off or install a version of "
            "vLLM that vllm-vectorq supports."
        )
    # wraps() copies the mark outwards, so it is found below other plugins' wrappers.
    if hasattr(original, _MARK):
        return
    replacement = wraps(original)(make(original))
    setattr(replacement, _MARK, True)
    setattr(owner, name, replacement)


def check_before_start(check: Callable[[object, int], None]) -> None:
    """Call a check before vLLM builds its configuration.

    Args:
        check: Gets ``additional_config`` and the number of API server processes;
            raises to keep the server from starting.
    """
    from vllm.engine.arg_utils import EngineArgs

    def make(build: Callable[..., Any]) -> Callable[..., Any]:
        def checked(self: EngineArgs, *args: Any, **kwargs: Any) -> Any:
            check(self.additional_config, int(self._api_process_count))
            return build(self, *args, **kwargs)

        return checked

    wrap(EngineArgs, "create_engine_config", make)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the keys of requests need to know about the model.

    Attributes:
        name: Model name or path.
        build: Revision, data type and quantisation.
        tokenizer: Tokenizer name or path.
        max_model_len: Longest sequence, in tokens.
        stream_interval: Tokens per streamed chunk at least.
    """

    name: str
    build: str
    tokenizer: str
    max_model_len: int
    stream_interval: int


def model_facts(vllm_config: VllmConfig) -> ModelFacts:
    """Read the facts from the configuration of a started engine."""
    model = vllm_config.model_config
    build = (model.revision, model.dtype, model.quantization)
    return ModelFacts(
        name=str(model.model),
        build="/".join("" if part is None else str(part) for part in build),
        tokenizer=f"{model.tokenizer}@{model.tokenizer_revision or ''}",
        max_model_len=int(model.max_model_len),
        stream_interval=int(vllm_config.scheduler_config.stream_interval),
    )


@dataclass(frozen=True, slots=True)
class Deployment:
    """How a server is run, as far as it matters to a cache in its process.

    Attributes:
        api_servers: API server processes.
        rust_frontend: Whether vLLM's Rust frontend serves the requests.
        grpc: Whether requests come by gRPC.
    """

    api_servers: int
    rust_frontend: bool
    grpc: bool


def deployment_of(vllm_config: VllmConfig) -> Deployment:
    """Read how this server is run."""
    from vllm import envs

    return Deployment(
        api_servers=int(vllm_config.parallel_config._api_process_count),
        rust_frontend=bool(envs.VLLM_USE_RUST_FRONTEND),
        grpc="vllm.entrypoints.grpc_server" in sys.modules,
    )


def sampling_fields(params: Any) -> dict[str, object]:
    """Return the sampling parameters that are not at their default, by name.

    Fields that vLLM adds later are included as soon as somebody uses them.
    """
    found = {}
    for name, default in _sampling_defaults().items():
        value = getattr(params, name)
        if value is default or (default is not None and value == default):
            continue
        found[name] = value
    return found


@cache
def _sampling_defaults() -> Mapping[str, object]:
    from vllm.sampling_params import SamplingParams

    plain = SamplingParams()
    # Names with an underscore hold what vLLM derives from the others.
    names = [n for n in SamplingParams.__struct_fields__ if not n.startswith("_")]
    return {name: getattr(plain, name) for name in names}


def is_sampling(params: object) -> bool:
    """Say whether these are parameters of generation, not of pooling."""
    from vllm.sampling_params import SamplingParams

    return isinstance(params, SamplingParams)


def special_tokens(tokenizer: object) -> re.Pattern[str] | None:
    """Return a pattern that finds tokens which are more than text.

    Some templates mark turns with added tokens that are not declared special, hence
    everything that looks like markup counts, too.
    """
    found = {str(token) for token in getattr(tokenizer, "all_special_tokens", ())}
    for token in getattr(tokenizer, "added_tokens_decoder", {}).values():
        text = str(getattr(token, "content", token))
        if getattr(token, "special", False) or text.startswith(("<", "[")):
            found.add(text)
    marks = sorted((text for text in found if text.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, marks))) if marks else None
