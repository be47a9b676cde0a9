# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""From a vLLM request to a call in the process table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from vllm_program_sched.compat import Request
from vllm_program_sched.core import ProgramCore
from vllm_program_sched.identity import CallIdentity, IdentityError, identify
from vllm_program_sched.process_table import Call


def arrive(
    core: ProgramCore,
    request: Request,
    now_s: float,
    on_error: Callable[[str], None],
) -> Call:
    """Enter a request into the process table as a call of its program.

    An identity that cannot be used makes the call a program of its own: the middleware
    answers bad ids with HTTP 400, and without it the call must still be served.

    Args:
        core: The scheduling core.
        request: The new request.
        now_s: Current time, monotonic clock.
        on_error: Told why an identity could not be used.
    """
    params = request.sampling_params
    xargs = params.extra_args if params is not None else None
    limit = core.config.max_id_length
    try:
        identity = identify(
            request.request_id, xargs, request.session_id, max_id_length=limit
        )
    except IdentityError as error:
        on_error(str(error))
        # The API key's name space is the middleware's word, not the client's: it stays.
        tenant = (xargs or {}).get("program_tenant")
        kept = {} if error.field == "program_tenant" else {"program_tenant": tenant}
        identity = identify(request.request_id, kept, None)
    return core.arrive(
        request.request_id,
        identity.program_id,
        now_s,
        explicit=identity.explicit,
        class_key=class_key(identity, request, core.config.class_prefix_tokens),
        tier=request.priority,
        thread_id=identity.thread_id,
        ends_program=identity.program_end,
        parent_call_ids=identity.parent_call_ids,
        oracle_remaining=identity.remaining_tokens,
        payload=request,
    )


def class_key(identity: CallIdentity, request: Request, prefix_tokens: int) -> str:
    """What the program's service distribution is learned under.

    The client's word if it gave one; otherwise the first tokens of the prompt, which in
    every chat template hold the system prompt and the tools.
    """
    if identity.program_class is not None:
        return identity.program_class
    tokens: Sequence[int] | None = request.prompt_token_ids
    if not tokens:
        return ""
    digest = hashlib.blake2b(digest_size=8)
    for token in tokens[:prefix_tokens]:
        digest.update(token.to_bytes(4, "little"))
    if request.lora_request is not None:
        digest.update(request.lora_request.lora_name.encode())
    return "prefix:" + digest.hexdigest()
