# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What one engine has of this plugin: its cache, its keys, its requests in flight.

The hooks ask it two things: what a call looks like to the cache, and what the cache
says. It raises nothing of its own; a fault of ours is a miss.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .cache_protocol import Cache
from .cacheability import Bypass, bypass_of_prompt, bypass_of_sampling, exact_only
from .compat import ModelFacts, is_sampling, sampling_fields
from .fingerprint import TO_CONTEXT_END, UnkeyableError, sampling_fingerprint
from .http_identity import HttpCall, Outcome, current_call
from .model_version import ModelVersion
from .partition import ANNOTATION_KEY, UNANNOTATED, Prompt, Scope, build_request
from .request import Answer, CacheRequest, Hit
from .single_flight import Lead, SingleFlight
from .tightening import MalformedControlError, parse_controls, tightest_mode

# Attribute of engines and renderers that have the cache.
ATTRIBUTE = "_vectorq_adapter"

# Longest wait for an identical request in flight. Most answers take less; a request
# that waited in vain has lost this much.
COALESCE_WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """One call of the engine.

    Attributes:
        prompt: As vLLM's handler gave it.
        params: Sampling or pooling parameters.
        lora: The adapter asked for, None for the base model.
        reasoning: Further arguments that steer reasoning and grammars.
    """

    prompt: Any
    params: Any
    lora: Any = None
    reasoning: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> GenerateCall:
        """Read the arguments of ``generate``, by name."""
        steering = ("reasoning_ended", "reasoning_parser_kwargs")
        return cls(
            prompt=given["prompt"],
            params=given["sampling_params"],
            lora=given.get("lora_request"),
            reasoning={n: given[n] for n in steering if given.get(n) is not None},
        )


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """A call that the cache does not answer.

    Attributes:
        reason: Why.
        detail: What was wrong in particular; may be empty.
    """

    reason: Bypass
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Planned:
    """A call that the cache may answer.

    Attributes:
        request: As the cache sees it.
        most_tokens: Longest answer that the call allows.
        http: The HTTP request it belongs to, None outside of a server.
    """

    request: CacheRequest
    most_tokens: int
    http: HttpCall | None

    def fits(self, hit: Hit) -> bool:
        """Say whether the call allows an answer of this length."""
        return len(hit.answer.token_ids) <= self.most_tokens

    def note(self, hit: Hit | None) -> None:
        """Tell the HTTP layer what the cache said."""
        if self.http is not None:
            outcome = Outcome("hit", hit=hit) if hit is not None else Outcome("miss")
            self.http.outcomes.append(outcome)


class EngineAdapter:
    """One per engine.

    Args:
        cache: The process's cache.
        model: Facts about the model.
        special_tokens: From :func:`~vllm_vectorq.compat.special_tokens`.
    """

    def __init__(
        self, cache: Cache, model: ModelFacts, special_tokens: re.Pattern[str] | None
    ) -> None:
        self.cache = cache
        self.model = model
        self.version = ModelVersion(model, self._forget)
        self.flights: SingleFlight[Hit] = SingleFlight(
            COALESCE_WAIT_S if cache.config.coalesce else 0.0
        )
        self._special_tokens = special_tokens

    def plan(self, call: GenerateCall) -> Planned | None:
        """Return what the cache may do for a call; None to leave it alone."""
        planned = self.consider(call)
        if isinstance(planned, Planned):
            return planned
        self.cache.metrics.bypass(planned.reason.value)
        http = current_call.get()
        if http is not None:
            http.outcomes.append(Outcome("bypass", reason=planned.reason.value))
        return None

    def consider(self, call: GenerateCall) -> Planned | LeftAlone:
        """The same, for somebody who only wants to know: nothing is counted."""
        try:
            planned = self._plan(call, current_call.get())
        except MalformedControlError as error:
            return LeftAlone(Bypass.MALFORMED_CONTROL, str(error))
        except UnkeyableError as error:
            return LeftAlone(Bypass.UNKEYABLE, str(error))
        except Exception as error:
            self.cache.fault("plan", error)
            return LeftAlone(Bypass.FAULT)
        return planned if isinstance(planned, Planned) else LeftAlone(planned)

    def _plan(self, call: GenerateCall, http: HttpCall | None) -> Planned | Bypass:
        if not is_sampling(call.params):
            return Bypass.NOT_GENERATION
        if isinstance(call.prompt, AsyncGenerator):
            return Bypass.STREAMING_INPUT
        sampled = self.cache.config.sampled
        form, prompt = _read_prompt(call.prompt, http)
        room = self.model.max_model_len - len(prompt.token_ids)
        reason = bypass_of_prompt(form, len(prompt.token_ids), self.model.max_model_len)
        fields = sampling_fields(call.params)
        reason = reason or bypass_of_sampling(fields, sampled)
        if reason is None and http is not None and http.tenant_missing:
            reason = Bypass.NO_TENANT
        if reason is not None:
            return reason
        asked = parse_controls(call.params.extra_args or {})
        scope = self._scope(call.lora, http)
        if tightest_mode(scope.mode, asked.mode) == "off":
            return Bypass.SWITCHED_OFF
        limit = call.params.max_tokens
        to_end = limit is None or limit >= room
        sampling = sampling_fingerprint(
            fields, TO_CONTEXT_END if to_end else limit, call.reasoning
        )
        why_exact = exact_only(fields, sampled)
        request = build_request(scope, prompt, sampling, asked, why_exact)
        return Planned(request, room if to_end else limit, http)

    def _scope(self, lora: Any, http: HttpCall | None) -> Scope:
        config = self.cache.config
        return Scope(
            facts={
                "namespace": config.namespace,
                "embedding": self.cache.embedding_name,
                "tenant": "" if http is None else http.tenant,
                **self.version.facts(lora),
            },
            mode="exact" if config.policy == "exact" else "semantic",
            delta=config.delta,
            ttl_s=config.ttl_s,
            secret=self.cache.secret,
            special_tokens=self._special_tokens,
            semantic_tools=config.semantic_tools,
            principal=None if http is None else http.principal,
        )

    async def enter(self, planned: Planned) -> Lead[Hit] | Hit | None:
        """Look for the same request, stored or in flight.

        Returns:
            A hit; or the lead, which must be settled; or None to go ahead alone.
        """
        request = planned.request
        try:
            hit = self.cache.lookup_exact(request)
            if hit is not None:
                return hit if planned.fits(hit) else None
            found = await self.flights.enter(request.exact_key, request.store)
            if isinstance(found, Hit):
                self.cache.metrics.hit(found.stage)
            return found
        except Exception as error:
            self.cache.fault("enter", error)
            return None

    async def lookup(self, planned: Planned) -> tuple[Hit | None, Any]:
        """Ask the cache; a miss has a ticket unless nothing is to be learned."""
        try:
            hit, ticket = await self.cache.lookup(planned.request)
        except Exception as error:
            self.cache.fault("lookup", error)
            return None, None
        return (hit, ticket) if hit is None or planned.fits(hit) else (None, None)

    def lookup_sync(self, planned: Planned) -> tuple[Hit | None, Any]:
        """Ask the cache from a thread that may wait."""
        try:
            hit, ticket = self.cache.lookup_sync(planned.request)
        except Exception as error:
            self.cache.fault("lookup", error)
            return None, None
        return (hit, ticket) if hit is None or planned.fits(hit) else (None, None)

    def collected(
        self, collect: Callable[[Any], Answer | None], output: Any
    ) -> Answer | None:
        """Have an output of a miss taken note of; the answer if it completes one."""
        try:
            return collect(output)
        except Exception as error:
            self.cache.fault("collect", error)
            return None

    def conclude(self, ticket: Any, answer: Answer | None) -> None:
        """Hand over the answer to a miss; None when it cannot be kept."""
        if ticket is None:
            return
        try:
            if answer is None:
                self.cache.abandon(ticket)
            else:
                self.cache.complete(ticket, answer)
        except Exception as error:
            self.cache.fault("conclude", error)

    def _forget(self, **facts: str) -> None:
        try:
            self.cache.invalidate(**facts)
        except Exception as error:
            self.cache.fault("invalidate", error)


def coalesced(answer: Answer) -> Hit:
    """Return the model's own answer as a hit for requests that waited for it."""
    return Hit(answer, "coalesced", 0, 1.0, 1.0, 0.0)


def _read_prompt(prompt: Any, http: HttpCall | None) -> tuple[str | None, Prompt]:
    """Return a rendered prompt's form and parts; the form is None if it has none."""
    if not isinstance(prompt, dict) or "type" not in prompt:
        return None, Prompt(None, ())
    annotation = prompt.get(ANNOTATION_KEY, UNANNOTATED)
    if http is not None and http.protocol:
        annotation = replace(annotation, protocol=http.protocol)
    return prompt["type"], Prompt(
        text=prompt.get("prompt"),
        token_ids=prompt.get("prompt_token_ids") or (),
        annotation=annotation,
        cache_salt=prompt.get("cache_salt") or "",
    )
