# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The coupling list, what a new vLLM release must still offer, and the patching."""

import asyncio
import gc
import inspect
import re
import sys
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.lora.request import LoRARequest
from vllm.sampling_params import (
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)

import vllm_vectorq
from tests.vectorq.memory_cache import MemoryCache
from vllm_vectorq import compat, hooks_lifecycle
from vllm_vectorq.cacheability import bypass_of_sampling
from vllm_vectorq.engine_adapter import ATTRIBUTE, EngineAdapter
from vllm_vectorq.fingerprint import sampling_fingerprint
from vllm_vectorq.model_version import ModelVersion, changes_weights

FACTS = compat.ModelFacts("model", "build", "tokenizer", 100, 1)


def resolve(symbol: str) -> Any:  # noqa: ANN401
    module, path = symbol.split(":")
    found = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("symbol", sorted(compat.COUPLED_SYMBOLS))
def test_vllm_has_the_parameters_we_use(symbol: str) -> None:
    parameters = inspect.signature(resolve(symbol)).parameters
    assert set(compat.COUPLED_SYMBOLS[symbol]) <= set(parameters)


@pytest.mark.parametrize("symbol", sorted(compat.COUPLED_FIELDS))
def test_vllm_has_the_fields_we_use(symbol: str) -> None:
    found = resolve(symbol)
    known = {*dir(found), *getattr(found, "__struct_fields__", ())}
    known |= set(getattr(found, "__dataclass_fields__", ()))
    assert set(compat.COUPLED_FIELDS[symbol]) <= known


def test_generate_hands_on_what_the_renderer_made() -> None:
    """Handlers pass the renderer's own dict to the engine, with our key in it."""
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion

    for handler in (
        OpenAIServingChat._create_chat_completion,
        OpenAIServingCompletion._create_completion,
    ):
        source = inspect.getsource(handler)
        assert "engine_client.generate(\n                    engine_input," in source


def test_the_app_is_built_with_the_name_that_we_wrap() -> None:
    from vllm.entrypoints.launchers import app

    assert "init_entrypoints_middleware(" in inspect.getsource(app.build_app)


def test_only_the_named_modules_import_vllm() -> None:
    folder = Path(compat.__file__).parent
    importing = {
        path.name
        for path in folder.glob("*.py")
        if re.search(r"^\s*(from|import) vllm[. ]", path.read_text(), re.MULTILINE)
    }
    ours = {
        *("partition.py", "fingerprint.py", "cacheability.py", "tightening.py"),
        *("single_flight.py", "http_identity.py", "engine_adapter.py"),
        *("model_version.py", "cache_protocol.py", "offline_batch.py"),
        *("hooks_lifecycle.py", "hooks.py"),
    }
    assert not importing & ours
    assert {"compat.py", "hit_output.py", "hooks_engine.py"} <= importing


# -- patching --------------------------------------------------------------------


def counting(calls: list[str], name: str) -> Any:  # noqa: ANN401
    def make(original: Any) -> Any:  # noqa: ANN401
        def replacement(*args: Any) -> Any:  # noqa: ANN401
            calls.append(name)
            return original(*args)

        return replacement

    return make


def test_a_function_is_wrapped_once_even_below_other_wrappers() -> None:
    class Owner:
        def method(self) -> str:
            """Its documentation."""
            return "original"

    calls: list[str] = []
    compat.wrap(Owner, "method", counting(calls, "ours"))
    compat.wrap(Owner, "method", counting(calls, "ours again"))
    ours = Owner.method

    @wraps(ours)
    def others(self: Owner) -> str:
        return ours(self)

    Owner.method = others  # type: ignore[method-assign]
    compat.wrap(Owner, "method", counting(calls, "ours above"))
    assert Owner().method() == "original"
    assert calls == ["ours"]
    assert Owner.method.__doc__ == "Its documentation."


def test_a_missing_function_is_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match=r"Owner\.method.*switch vectorq off"):
        compat.wrap(type("Owner", (), {}), "method", lambda original: original)


# -- reading vLLM's objects --------------------------------------------------------


def test_only_parameters_off_their_default_are_read() -> None:
    assert compat.sampling_fields(SamplingParams()) == {}
    params = SamplingParams(temperature=0.0, stop=["x"], seed=3, max_tokens=16)
    assert compat.sampling_fields(params) == {
        "temperature": 0.0,
        "stop": ["x"],
        "seed": 3,
    }


def test_derived_parameters_are_not_read() -> None:
    params = SamplingParams(temperature=0.0)
    before = compat.sampling_fields(params)
    params.update_from_generation_config({"eos_token_id": 2}, 2)
    assert compat.sampling_fields(params) == before


@pytest.mark.parametrize("name", sorted(SamplingParams.__struct_fields__))
def test_every_sampling_parameter_is_keyed_left_alone_or_known_not_to_matter(
    name: str,
) -> None:
    """A parameter of a later vLLM lands in the key as soon as it is used."""
    if name.startswith("_"):
        return
    params = SamplingParams(temperature=0.5)
    changed = SamplingParams(temperature=0.5)
    setattr(changed, name, ("other", 7) if name != "extra_args" else {"bias": 7})
    one, other = compat.sampling_fields(params), compat.sampling_fields(changed)
    if bypass_of_sampling(other, "semantic") is not None:
        return
    unkeyed = {"output_kind", "stream_interval", "skip_clone"}
    unkeyed |= {"output_text_buffer_length", "max_tokens"}
    differ = sampling_fingerprint(one, 5) != sampling_fingerprint(other, 5)
    assert differ == (name not in unkeyed)


def test_real_parameters_have_a_fingerprint() -> None:
    def fingerprint(**options: Any) -> str:  # noqa: ANN401
        params = SamplingParams(temperature=0.0, **options)
        return sampling_fingerprint(compat.sampling_fields(params), 5)

    schemas = [
        fingerprint(structured_outputs=StructuredOutputsParams(choice=choice))
        for choice in (["a"], ["a", "b"], ["b", "a"])
    ]
    others = [
        fingerprint(),
        fingerprint(logit_bias={1: 0.5}),
        fingerprint(logit_bias={1: 1.5}),
        fingerprint(allowed_token_ids=[1]),
        fingerprint(bad_words=["x"]),
    ]
    assert len({*schemas, *others}) == 8
    delta = fingerprint(output_kind=RequestOutputKind.DELTA)
    assert delta == fingerprint(output_kind=RequestOutputKind.FINAL_ONLY)


def test_special_tokens_are_found_and_words_are_not(model_path: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    pattern = compat.special_tokens(tokenizer)
    assert pattern is not None
    assert pattern.search(f"hello {tokenizer.eos_token} you")
    assert not pattern.search("What is <b>1 < 2</b>? [Yes] |no| ### ok")
    assert compat.special_tokens(None) is None


# -- versions of weights and adapters ----------------------------------------------


def lora(name: str, number: int) -> LoRARequest:
    return LoRARequest(name, number, f"/adapters/{name}")


def test_weights_give_new_keys_and_drop_the_old_answers() -> None:
    forgotten: list[dict[str, str]] = []
    version = ModelVersion(FACTS, lambda **facts: forgotten.append(facts))
    seen = [version.facts(None)["weights"]]
    for name in (None, None, "v2"):
        version.weights_changed(name)
        seen.append(version.facts(None)["weights"])
    assert len(set(seen)) == 4
    assert seen[-1] == "build@v2"
    assert forgotten == [{"model": "model"}] * 3


def test_an_adapter_loaded_again_is_another_one() -> None:
    forgotten: list[dict[str, str]] = []
    version = ModelVersion(FACTS, lambda **facts: forgotten.append(facts))
    one = lora("one", 1)
    first = version.facts(one)
    version.lora_loaded(one)
    assert version.facts(one) == first
    version.lora_loaded(lora("two", 2))
    assert forgotten == []
    version.lora_loaded(one)
    second = version.facts(one)
    assert forgotten == [{"lora": "one"}]
    assert second["lora"] == first["lora"] == "one"
    assert second["lora_source"] != first["lora_source"]
    version.lora_removed(1)
    version.lora_removed(99)
    assert version.facts(one) != second
    assert len(forgotten) == 2
    assert version.facts(None)["lora"] == ""


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("update_weights", True),
        ("reload_weights", True),
        ("update_weights_from_ipc", True),
        ("load_model", True),
        ("compute_weight_checksums", False),
        ("checkpoint_prepare", False),
        (lambda worker: None, False),
    ],
)
def test_calls_to_the_workers_that_change_weights_are_known(
    method: object, changes: bool
) -> None:
    assert changes_weights(method) == changes


class Changing:
    """Has the methods that are wrapped, of both kinds of engine."""

    async def finish_weight_update(self, weight_version: str | None = None) -> str:
        return "finished"

    async def collective_rpc(self, method: str) -> str:
        return method

    def add_lora(self, lora_request: LoRARequest) -> bool:
        if lora_request.lora_name == "broken":
            raise OSError("no such adapter")
        return True

    def remove_lora(self, lora_id: int) -> bool:
        return True


async def change(engine: Any) -> None:  # noqa: ANN401
    assert await engine.finish_weight_update(weight_version="v2") == "finished"
    assert await engine.collective_rpc("checkpoint_prepare") == "checkpoint_prepare"
    assert engine.add_lora(lora("one", 1))
    assert engine.remove_lora(1)
    with pytest.raises(OSError, match="no such adapter"):
        engine.add_lora(lora("broken", 2))


def test_changes_are_noticed_and_methods_answer_as_before() -> None:
    engine_class = type("Engine", (Changing,), {})
    hooks_lifecycle.wrap_changes(
        engine_class, {"finish_weight_update": "weight_version"}
    )
    asyncio.run(change(engine_class()))
    engine, cache = engine_class(), MemoryCache()
    adapter = EngineAdapter(cache, FACTS, None)
    setattr(engine, ATTRIBUTE, adapter)
    asyncio.run(change(engine))
    assert adapter.version.facts(None)["weights"] == "build@v2"
    assert cache.forgotten == [{"model": "model"}, {"model": "model"}, {"lora": "one"}]
    assert cache.faults == []


def test_an_engine_gets_its_cache_when_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = MemoryCache()
    model_config = SimpleNamespace(
        model="m",
        revision=None,
        dtype="bf16",
        quantization=None,
        tokenizer="t",
        tokenizer_revision=None,
        max_model_len=64,
    )
    scheduler_config = SimpleNamespace(stream_interval=2)
    asked = SimpleNamespace(
        parallel_config=SimpleNamespace(_api_process_count=1),
        model_config=model_config,
        scheduler_config=scheduler_config,
    )
    service: Any = SimpleNamespace(cache_for=lambda c: cache if c is asked else None)
    monkeypatch.setitem(sys.modules, "vllm_vectorq.service", service)
    monkeypatch.setattr(vllm_vectorq, "service", service, raising=False)

    class Engine:
        def __init__(self, vllm_config: Any, log_stats: bool = True) -> None:  # noqa: ANN401
            self.vllm_config = vllm_config
            self.renderer = SimpleNamespace(tokenizer=None)

    compat.wrap(Engine, "__init__", hooks_lifecycle.attaching)
    plain = Engine(SimpleNamespace())
    assert not hasattr(plain, ATTRIBUTE)
    engines = [Engine(asked), Engine(vllm_config=asked, log_stats=False)]
    for engine in engines:
        adapter = getattr(engine, ATTRIBUTE)
        assert adapter.cache is cache
        assert getattr(engine.renderer, ATTRIBUTE) is adapter
        assert adapter.model == compat.ModelFacts("m", "/bf16/", "t@", 64, 2)
    assert not cache.closed
    del engine, engines, adapter
    gc.collect()
    assert cache.closed
