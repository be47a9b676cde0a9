# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How an engine gets its cache, and what makes its stored answers wrong.

Shared by the hooks of the online and the offline engine, whose methods differ in
being coroutines or not.
"""

from __future__ import annotations

import inspect
import logging
import sys
import weakref
from collections.abc import Callable
from typing import Any

from .cacheability import deployment_warnings
from .compat import deployment_of, model_facts, special_tokens, wrap
from .engine_adapter import ATTRIBUTE, EngineAdapter
from .engine_questions import questions_to
from .http_identity import APP_MODULE, INSTALLER, add_first
from .judge_model import ModelJudge
from .model_version import ModelVersion, changes_weights

# Called with the version, the call's arguments, and whether the call is over.
Reaction = Callable[[ModelVersion, dict[str, Any], bool], None]


def attaching(init: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor that gives an engine the cache it is configured to have."""

    def init_with_cache(self: Any, *args: Any, **kwargs: Any) -> None:
        from . import service

        vllm_config: Any = kwargs.get("vllm_config", args[0] if args else None)
        # First, so that a server that cannot have its cache does not start.
        cache = service.cache_for(vllm_config)
        if cache is not None:
            _surround_app(cache)
        try:
            init(self, *args, **kwargs)
        except BaseException:
            if cache is not None:
                cache.close()
            raise
        if cache is not None:
            try:
                attach(self, cache)
            except Exception:
                self.shutdown()
                cache.close()
                raise

    return init_with_cache


def attach(engine: Any, cache: Any) -> None:
    """Give a started engine its cache, and its renderer the reason to annotate."""
    tokens = special_tokens(engine.renderer.tokenizer)
    adapter = EngineAdapter(cache, model_facts(engine.vllm_config), tokens)
    setattr(engine, ATTRIBUTE, adapter)
    setattr(engine.renderer, ATTRIBUTE, adapter)
    cache.metrics.register()
    if "model" in cache.config.judges:
        cache.learner.add_judge(ModelJudge(*questions_to(engine)))
    deployment = deployment_of(engine.vllm_config)
    for warning in deployment_warnings(
        api_servers=deployment.api_servers,
        rust_frontend=deployment.rust_frontend,
        grpc=deployment.grpc,
        shared_store=cache.config.store.startswith("postgres"),
        separates_tenants=bool(
            cache.config.tenants == "api_key" or cache.config.tenant_header
        ),
    ):
        logging.getLogger("vllm.plugins.vectorq").warning(warning)
    weakref.finalize(engine, cache.close)


def _surround_app(cache: Any) -> None:
    """Have the HTTP server tell callers apart; vLLM builds it after its engine."""
    launcher = sys.modules.get(APP_MODULE)
    if launcher is not None:
        wrap(launcher, INSTALLER, add_first(cache.config, cache.secret))


def wrap_changes(engine_class: type, versioned: dict[str, str]) -> None:
    """Wrap the methods that change weights or adapters.

    Args:
        engine_class: ``AsyncLLM`` or ``LLMEngine``.
        versioned: Methods that change weights, with the parameter that names the new
            ones; empty for those that give no name.
    """
    for method, parameter in versioned.items():
        wrap(engine_class, method, _reacting(_renamed(parameter)))
    wrap(engine_class, "collective_rpc", _reacting(_on_collective_rpc))
    wrap(engine_class, "add_lora", _reacting(_on_add_lora))
    wrap(engine_class, "remove_lora", _reacting(_on_remove_lora))


def _reacting(react: Reaction) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a wrapper maker that calls ``react`` around each call.

    Before, so that nothing old is served meanwhile; after, so that nothing computed
    meanwhile is taken for new.
    """

    def make(method: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(method)

        def noted(self: Any, args: Any, kwargs: Any, over: bool) -> None:
            adapter: EngineAdapter | None = getattr(self, ATTRIBUTE, None)
            if adapter is None:
                return
            try:
                given = signature.bind(self, *args, **kwargs).arguments
                react(adapter.version, given, over)
            except Exception as error:
                adapter.cache.fault("invalidate", error)

        async def call_async(self: Any, *args: Any, **kwargs: Any) -> Any:
            noted(self, args, kwargs, False)
            try:
                return await method(self, *args, **kwargs)
            finally:
                noted(self, args, kwargs, True)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            noted(self, args, kwargs, False)
            try:
                return method(self, *args, **kwargs)
            finally:
                noted(self, args, kwargs, True)

        return call_async if inspect.iscoroutinefunction(method) else call

    return make


def _renamed(parameter: str) -> Reaction:
    def react(version: ModelVersion, given: dict[str, Any], over: bool) -> None:
        version.weights_changed(given.get(parameter) if over and parameter else None)

    return react


def _on_collective_rpc(
    version: ModelVersion, given: dict[str, Any], over: bool
) -> None:
    if changes_weights(given["method"]):
        version.weights_changed()


def _on_add_lora(version: ModelVersion, given: dict[str, Any], over: bool) -> None:
    if over:
        version.lora_loaded(given["lora_request"])


def _on_remove_lora(version: ModelVersion, given: dict[str, Any], over: bool) -> None:
    if not over:
        version.lora_removed(given["lora_id"])
