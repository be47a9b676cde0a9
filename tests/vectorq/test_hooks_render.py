# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the renderer notes about a prompt."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tests.vectorq.memory_cache import MemoryCache
from vllm_vectorq import hooks_render
from vllm_vectorq.engine_adapter import ATTRIBUTE
from vllm_vectorq.hooks_render import chat_annotation
from vllm_vectorq.partition import ANNOTATION_KEY, Annotation


def annotate(*messages: object, **changes: Any) -> Annotation:  # noqa: ANN401
    options = {"protocol": "chat", "has_tools": False, "tokenization": {}, **changes}
    return chat_annotation(messages, **options)


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def text(value: object) -> dict[str, object]:
    return {"type": "text", "text": value}


def test_the_last_user_turn_is_noted() -> None:
    found = annotate(user("first"), {"role": "assistant", "content": "a"}, user("last"))
    assert (found.user_texts, found.why_exact) == (("last",), "")


def test_turns_after_it_do_not_hide_it() -> None:
    found = annotate(user("question"), {"role": "tool", "content": "result"})
    assert found.user_texts == ("question",)


def test_one_part_of_text_is_text() -> None:
    assert annotate(user([text("hi")])).user_texts == ("hi",)
    assert annotate(user(["hi"])).user_texts == ("hi",)
    assert annotate(user([{"type": "input_text", "text": "hi"}])).user_texts == ("hi",)


def test_several_parts_may_be_joined_in_two_ways() -> None:
    assert annotate(user([text("a"), text("b")])).user_texts == ("ab", "a\nb")


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        " ",
        [],
        [text("look"), {"type": "image_url", "image_url": {"url": "x"}}],
        [text(None)],
        [{"type": "refusal", "text": "x"}],
        7,
    ],
)
def test_a_turn_that_is_not_all_text_allows_exact_matches_only(content: object) -> None:
    found = annotate(user("earlier"), user(content))
    assert found.user_texts == ()
    assert "not text" in found.why_exact


def test_without_a_user_turn_there_is_none() -> None:
    found = annotate({"role": "system", "content": "x"})
    assert found.user_texts == ()
    assert "no user turn" in found.why_exact


@pytest.mark.parametrize(
    "how",
    [{"truncate_prompt_tokens": 5}, {"pad_prompt_tokens": 5}, {"do_lower_case": 1}],
)
def test_a_prompt_that_is_reshaped_allows_exact_matches_only(
    how: dict[str, object],
) -> None:
    found = annotate(user("hi"), tokenization=how)
    assert found.user_texts == ()
    assert "truncated" in found.why_exact


def test_tokenization_is_noted_without_defaults() -> None:
    same = [annotate(user("hi"), tokenization=t) for t in ({}, {"a": None})]
    other = annotate(user("hi"), tokenization={"add_special_tokens": True})
    assert same[0].tokenization == same[1].tokenization != other.tokenization


class Renderer:
    """Has the methods that are wrapped, of both kinds of engine."""

    model_config = None

    def __init__(self, cache: MemoryCache | None) -> None:
        adapter = None if cache is None else SimpleNamespace(cache=cache)
        self.renderer = SimpleNamespace(**{ATTRIBUTE: adapter})

    async def online_chat(
        self,
        request: Any,  # noqa: ANN401
        messages: Any,  # noqa: ANN401
        tool_dicts: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        return messages, [{"type": "token"}]

    async def online_completion(self, request: Any, prompts: Any) -> Any:  # noqa: ANN401
        return [{"type": "token"} for _ in prompts]

    def offline_chat(
        self,
        conversations: Any,  # noqa: ANN401
        tools: Any = None,  # noqa: ANN401
        tokenization_kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        return [{"type": "token"} for _ in conversations]

    def offline_completion(self, prompts: Any, tokenization_kwargs: Any = None) -> Any:  # noqa: ANN401
        return [{"type": "token"} for _ in prompts]


class Annotating(Renderer):
    """The same with the hooks."""

    online_chat = hooks_render._online_chat(Renderer.online_chat)
    online_completion = hooks_render._online_completion(Renderer.online_completion)
    offline_chat = hooks_render._offline_chat(Renderer.offline_chat)
    offline_completion = hooks_render._offline_completion(Renderer.offline_completion)


class ResponsesRequest(SimpleNamespace):
    """Stands for vLLM's request of that name."""

    def build_tok_params(self, model_config: Any) -> Any:  # noqa: ANN401
        names = (*hooks_render._RESHAPING, "truncation_side", "add_special_tokens")
        return SimpleNamespace(**{**dict.fromkeys(names), **self.tok})


def request(**tok: object) -> ResponsesRequest:
    return ResponsesRequest(tools=None, tok=tok)


def test_online_chats_are_annotated() -> None:
    renderer = Annotating(MemoryCache())
    asked = request(add_special_tokens=False)
    _, [prompt] = asyncio.run(renderer.online_chat(asked, [user("hi")]))
    found = prompt[ANNOTATION_KEY]
    assert (found.protocol, found.user_texts) == ("responses", ("hi",))
    assert not found.has_tools
    asked.tools = [{"name": "search"}]
    _, [prompt] = asyncio.run(renderer.online_chat(asked, messages=[user("hi")]))
    assert prompt[ANNOTATION_KEY].has_tools


def test_online_completions_are_annotated() -> None:
    renderer = Annotating(MemoryCache())
    rendered = asyncio.run(renderer.online_completion(request(), ["hi", [1, 2]]))
    texts = [prompt[ANNOTATION_KEY].user_texts for prompt in rendered]
    assert texts == [("hi",), ()]
    assert {p[ANNOTATION_KEY].protocol for p in rendered} == {"completions"}


def test_offline_chats_and_completions_are_annotated() -> None:
    renderer = Annotating(MemoryCache())
    [prompt] = renderer.offline_chat([[user("hi")]], [{"name": "search"}])
    assert prompt[ANNOTATION_KEY].has_tools
    assert prompt[ANNOTATION_KEY].user_texts == ("hi",)
    rendered = renderer.offline_completion(["hi", {"prompt": "ho"}, [1], b"x"])
    texts = [prompt[ANNOTATION_KEY].user_texts for prompt in rendered]
    assert texts == [("hi",), ("ho",), (), ()]


def test_without_the_cache_nothing_is_annotated() -> None:
    renderer = Annotating(None)
    assert renderer.offline_chat([[user("hi")]]) == [{"type": "token"}]
    assert renderer.offline_completion(["hi"]) == [{"type": "token"}]
    _, [prompt] = asyncio.run(renderer.online_chat(request(), [user("hi")]))
    assert prompt == {"type": "token"}


def test_a_fault_leaves_the_prompt_as_it_was() -> None:
    cache = MemoryCache()
    renderer = Annotating(cache)
    _, [prompt] = asyncio.run(renderer.online_chat(object(), [user("hi")]))
    assert prompt == {"type": "token"}
    assert [where for where, _ in cache.faults] == ["annotate"]
