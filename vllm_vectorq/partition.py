# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which requests may share answers: builds the keys of a request from facts.

The rendered prompt is cut at the last place where the last user turn occurs. What is
left - system prompt, tools, earlier turns, template, dates - goes into the partition
as it is, so nothing of it has to be understood. Putting the turn back into the hole
gives the whole prompt again, hence two requests of one partition differ in that turn
and in nothing else.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .fingerprint import digest_of, encoded, hashed
from .request import CacheRequest, Mode, Partition
from .tightening import Tightening, tightest, tightest_mode

# Where an annotation travels in vLLM's rendered prompt, which is a dict.
ANNOTATION_KEY = "vectorq"


@dataclass(frozen=True, slots=True)
class Annotation:
    """What the renderer knew about a prompt.

    Attributes:
        protocol: ``chat``, ``completions``, ``responses``, ``messages`` or ``tokens``.
        user_texts: Forms in which the last user turn may occur in the prompt, most
            likely first; empty when there is none.
        why_exact: Why there is none.
        has_tools: Whether the request offers tools.
        tokenization: What beside the text decides about the tokens.
    """

    protocol: str
    user_texts: tuple[str, ...] = ()
    why_exact: str = ""
    has_tools: bool = False
    tokenization: str = ""


UNANNOTATED = Annotation("tokens", why_exact="the prompt came as tokens")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        text: The whole of it; None when it was given as tokens.
        token_ids: Its tokens.
        cache_salt: vLLM's own field for keeping callers apart.
    """

    text: str | None
    token_ids: Sequence[int]
    annotation: Annotation = UNANNOTATED
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Scope:
    """Facts about the server and the caller.

    Attributes:
        facts: Readable facts that must be equal: ``model``, ``weights``, ``lora`` ...
        mode: Widest stage the operator allows.
        delta: The operator's error budget.
        ttl_s: The operator's lifetime of answers, in seconds.
        secret: Key for hashing what others must not see.
        special_tokens: Matches tokens with which a user turn could leave its place.
        semantic_tools: Whether offering tools still allows semantic matches.
        principal: Who asks, hashed; None when unknown.
    """

    facts: Mapping[str, str]
    mode: Mode
    delta: float
    ttl_s: float
    secret: bytes
    special_tokens: re.Pattern[str] | None
    semantic_tools: bool
    principal: bytes | None = None


def build_request(
    scope: Scope, prompt: Prompt, sampling: str, asked: Tightening, why_exact: str = ""
) -> CacheRequest:
    """Return the request as the cache sees it.

    Args:
        scope: Facts about the server and the caller.
        prompt: The rendered prompt.
        sampling: From :func:`~vllm_vectorq.fingerprint.sampling_fingerprint`.
        asked: What the request asked of the cache; its mode must not be ``off``.
        why_exact: Why only exact matches are allowed, ``""`` when they are not.
    """
    salt = prompt.cache_salt
    facts = {
        **scope.facts,
        "protocol": prompt.annotation.protocol,
        "tokenization": prompt.annotation.tokenization,
        "sampling": sampling,
        "cache_salt": hashed(scope.secret, "salt", salt) if salt else "",
    }
    mode = tightest_mode(scope.mode, asked.mode)
    cut = None
    if not why_exact:
        cut, why_exact = _cut(scope, prompt)
    digest = partition_digest(facts, None if cut is None else (cut[0], cut[2]))
    text = None if cut is None else cut[1]
    exact_key = _exact_key(digest, text, prompt.token_ids)
    if mode == "exact" and text is not None:
        # After the key was made: both modes have the same exact answers.
        text, why_exact = None, "semantic matches are switched off"
    return CacheRequest(
        partition=Partition(digest, facts),
        exact_key=exact_key,
        text=text,
        mode=mode if text is not None else "exact",
        why_exact=why_exact,
        delta=tightest(scope.delta, asked.delta),
        ttl_s=tightest(scope.ttl_s, asked.ttl_s),
        store=asked.store,
        principal=scope.principal,
    )


def _cut(scope: Scope, prompt: Prompt) -> tuple[tuple[str, str, str] | None, str]:
    """Cut the user turn out of the prompt, or say why that cannot be done."""
    annotation = prompt.annotation
    if annotation.why_exact:
        return None, annotation.why_exact
    if prompt.text is None:
        return None, UNANNOTATED.why_exact
    if annotation.has_tools and not scope.semantic_tools:
        return None, "the request offers tools"
    cut = cut_last(prompt.text, annotation.user_texts)
    if cut is None:
        return None, "the last user turn does not occur in the prompt as it was given"
    if scope.special_tokens is not None and scope.special_tokens.search(cut[1]):
        return None, "the last user turn contains a special token"
    return cut, ""


def cut_last(text: str, parts: Sequence[str]) -> tuple[str, str, str] | None:
    """Split a text around the last occurrence of a part.

    Args:
        text: The rendered prompt.
        parts: Forms of the user turn; the first that occurs is taken, as it is or
            without white space around it, which templates may strip.

    Returns:
        What is before, the part, and what is after; None when nothing occurs.
    """
    for part in parts:
        for form in dict.fromkeys((part, part.strip())):
            if not form.strip():
                continue
            start = text.rfind(form)
            if start >= 0:
                return text[:start], form, text[start + len(form) :]
    return None


def partition_digest(facts: Mapping[str, str], around: tuple[str, str] | None) -> bytes:
    """Hash what must be equal.

    Args:
        facts: Readable facts.
        around: The prompt before and after the user turn; None for exact matches
            only, whose prompts are told apart by their own keys.
    """
    flat = [part for name in sorted(facts) for part in (name, facts[name])]
    kind = b"vectorq partition 1, " + (b"whole" if around is None else b"cut")
    return digest_of(kind, *map(encoded, flat), *map(encoded, around or ()))


def _exact_key(digest: bytes, text: str | None, token_ids: Sequence[int]) -> bytes:
    # The tokens are what the model sees; the text may have been truncated.
    tokens = array("q", token_ids).tobytes()
    return digest_of(b"vectorq request 1", digest, encoded(text or ""), tokens)
