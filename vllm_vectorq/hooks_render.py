# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Annotates rendered prompts with the last user turn, which only the renderer knows.

vLLM hands the dict of a rendered prompt from its renderer to its engine untouched, and
reads the keys that it knows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .compat import wrap
from .engine_adapter import ATTRIBUTE, EngineAdapter
from .fingerprint import canonical
from .partition import ANNOTATION_KEY, Annotation

# Ways in which a prompt's tokens can fail to be those of its text.
_RESHAPING = ("truncate_prompt_tokens", "pad_prompt_tokens", "do_lower_case")

_TEXT_PARTS = frozenset({"text", "input_text"})


def install() -> None:
    """Wrap the renderers of both kinds of engine.

    Raises:
        RuntimeError: This vLLM lacks one of their methods.
    """
    from vllm.entrypoints.common.offline import OfflineInferenceMixin

    wrap(OfflineInferenceMixin, "_preprocess_chat", _offline_chat)
    wrap(OfflineInferenceMixin, "_preprocess_cmpl", _offline_completion)
    from vllm.renderers.online_renderer import OnlineRenderer

    wrap(OnlineRenderer, "preprocess_chat", _online_chat)
    wrap(OnlineRenderer, "preprocess_cmpl", _online_completion)


# Given who renders, the call's arguments and its result, annotates the prompts in it.
Annotate = Callable[[Any, Mapping[str, Any], Any], None]


def _annotating(annotate: Annotate) -> Callable[[Callable[..., Any]], Any]:
    """Make of it what wraps a renderer and annotates what that returns."""

    def make(render: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(render)

        def noted(self: Any, args: Any, kwargs: Any, result: Any) -> Any:
            adapter: EngineAdapter | None = getattr(self.renderer, ATTRIBUTE, None)
            if adapter is not None:
                try:
                    given = signature.bind(self, *args, **kwargs).arguments
                    annotate(self, given, result)
                except Exception as error:
                    adapter.cache.fault("annotate", error)
            return result

        async def render_async(self: Any, *args: Any, **kwargs: Any) -> Any:
            return noted(self, args, kwargs, await render(self, *args, **kwargs))

        def render_now(self: Any, *args: Any, **kwargs: Any) -> Any:
            return noted(self, args, kwargs, render(self, *args, **kwargs))

        return render_async if inspect.iscoroutinefunction(render) else render_now

    return make


# Chat, batches of chats, Responses and Anthropic messages all end here.
@_annotating
def _online_chat(owner: Any, given: Mapping[str, Any], result: Any) -> None:
    request = given["request"]
    conversation, prompts = result
    # Responses requests have a name of their own for the same fields.
    responses = "Responses" in type(request).__name__
    annotation = chat_annotation(
        conversation,
        protocol="responses" if responses else "chat",
        has_tools=bool(getattr(request, "tools", None)),
        tokenization=_tokenization_of(request, owner.model_config),
    )
    for prompt in prompts:
        prompt[ANNOTATION_KEY] = annotation


@_annotating
def _online_completion(owner: Any, given: Mapping[str, Any], result: Any) -> None:
    how = _tokenization_of(given["request"], owner.model_config)
    _annotate_completions(result, given["prompts"], how)


@_annotating
def _offline_chat(owner: Any, given: Mapping[str, Any], result: Any) -> None:
    how = given.get("tokenization_kwargs") or {}
    for messages, prompt in zip(given["conversations"], result, strict=True):
        prompt[ANNOTATION_KEY] = chat_annotation(
            messages, "chat", bool(given.get("tools")), how
        )


@_annotating
def _offline_completion(owner: Any, given: Mapping[str, Any], result: Any) -> None:
    how = given.get("tokenization_kwargs") or {}
    _annotate_completions(result, given["prompts"], how)


def _annotate_completions(
    rendered: Sequence[dict[str, Any]],
    prompts: Iterable[Any],
    tokenization: Mapping[str, object],
) -> None:
    for prompt, given in zip(rendered, prompts, strict=True):
        text = given.get("prompt") if isinstance(given, dict) else given
        text = text if isinstance(text, str) else ""
        prompt[ANNOTATION_KEY] = _annotation(
            "completions",
            (text,) if text else (),
            "" if text else "the prompt came as tokens",
            False,
            tokenization,
        )


def chat_annotation(
    messages: Sequence[Any],
    protocol: str,
    has_tools: bool,
    tokenization: Mapping[str, object],
) -> Annotation:
    """Find the last user turn of a conversation.

    Args:
        messages: As the client gave them, or as the template gets them.
        protocol: Kind of API.
        has_tools: Whether the request offers tools.
        tokenization: What beside the text decides about the tokens.
    """
    texts: tuple[str, ...] = ()
    why_exact = "the conversation has no user turn"
    for message in reversed(messages):
        if isinstance(message, Mapping) and message.get("role") == "user":
            texts = _texts(message.get("content"))
            why_exact = "" if texts else "the last user turn is not text"
            break
    return _annotation(protocol, texts, why_exact, has_tools, tokenization)


def _texts(content: object) -> tuple[str, ...]:
    """Return the forms that a turn's text may take; none unless it is all text."""
    if isinstance(content, str):
        return (content,) if content.strip() else ()
    if not isinstance(content, Iterable):
        return ()
    parts = []
    for part in content:
        is_text = isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS
        text = part.get("text") if is_text else part
        if not isinstance(text, str):
            return ()
        parts.append(text)
    # Templates put several parts one after the other, or a line each.
    joined = dict.fromkeys(("".join(parts), "\n".join(parts)))
    return tuple(text for text in joined if text.strip())


def _annotation(
    protocol: str,
    texts: tuple[str, ...],
    why_exact: str,
    has_tools: bool,
    tokenization: Mapping[str, object],
) -> Annotation:
    if any(tokenization.get(name) for name in _RESHAPING):
        texts, why_exact = (), "the prompt is truncated or changed before it is read"
    kept = {name: value for name, value in tokenization.items() if value is not None}
    return Annotation(protocol, texts, why_exact, has_tools, str(canonical(kept)))


def _tokenization_of(request: Any, model_config: Any) -> dict[str, object]:
    """Return what decides about the tokens of an online request."""
    params = request.build_tok_params(model_config)
    names = (*_RESHAPING, "truncation_side", "add_special_tokens")
    return {name: getattr(params, name) for name in names}
