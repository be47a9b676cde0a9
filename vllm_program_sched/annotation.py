# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Turns headers and a request body into the ``vllm_xargs`` the scheduler reads.

Pure functions without HTTP or vLLM: ``middleware`` does the transport.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from .identity import MAX_ID_LENGTH, identify

# The first header that is present names the program or the thread.
PROGRAM_HEADERS = (
    "x-program-id",
    "x-claude-code-session-id",
    "session-id",
    "x-session-id",
)
THREAD_HEADERS = ("x-thread-id", "x-claude-code-agent-id", "thread-id")
CLASS_HEADER = "x-program-class"
END_HEADER = "x-program-end"

TENANT_LENGTH = 16
AUTO_CLASS_LENGTH = 12

# Where each route of vLLM that generates text takes per-request arguments.
_XARGS = ("vllm_xargs",)
XARGS_OF_ROUTE: Mapping[str, tuple[str, ...]] = {
    "/v1/chat/completions": _XARGS,
    "/v1/chat/completions/batch": _XARGS,
    "/v1/completions": _XARGS,
    "/v1/responses": _XARGS,
    "/v1/messages": _XARGS,
    "/invocations": _XARGS,
    "/inference/v1/generate": ("sampling_params", "extra_args"),
}

# Claude Code puts a line that changes with every request first; vLLM drops it.
_BILLING_LINE = "x-anthropic-billing-header"


def header_values(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return header values by lower-case name; of a repeated one, the first.

    Values are read as UTF-8, like ids in bodies. Bytes that are not UTF-8 turn
    into surrogates: harmless in other headers, and refused in ids because they
    are not printable.
    """
    values: dict[str, str] = {}
    for name, value in raw:
        text = value.decode("utf-8", "surrogateescape")
        values.setdefault(name.decode("latin-1").lower(), text)
    return values


def bearer_token(headers: Mapping[str, str]) -> str | None:
    """Return the token of the Authorization header, None without one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" and token else None


def key_digest(key: str) -> bytes:
    """Return the hash by which keys are compared and told apart."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def tenant_of(headers: Mapping[str, str]) -> str | None:
    """Return what stands for the caller's API key, None without a key.

    Only the start of a hash is kept, so the key itself never reaches the
    engine, its logs or ``/v1/programs``.
    """
    key = bearer_token(headers) or headers.get("x-api-key")
    return key_digest(key).hex()[:TENANT_LENGTH] if key else None


def annotate(
    raw: bytes,
    headers: Mapping[str, str],
    route: str,
    max_id_length: int = MAX_ID_LENGTH,
) -> bytes:
    """Return the body with the call's identity written into it.

    What the client put into the body wins over its headers. A body that is not
    a JSON object of the expected shape comes back unchanged: vLLM answers it.

    Args:
        raw: The request body.
        headers: Header values by lower-case name.
        route: The request's path, a key of ``XARGS_OF_ROUTE``.
        max_id_length: Longest id accepted, in characters.

    Raises:
        IdentityError: If an id in the body or the headers cannot be used.
    """
    body = _json_object(raw)
    holder = XARGS_OF_ROUTE[route]
    given = _existing_xargs(body, holder) if body is not None else None
    if body is None or given is None:
        return raw
    xargs = _annotated(given, body, headers, max_id_length)
    if xargs == given:
        return raw
    return _with_xargs(raw, body, holder, xargs)


def workload_class(body: Mapping[str, Any]) -> str | None:
    """Name programs of one kind alike: a hash of system prompt and tools.

    Returns:
        ``auto:`` and a short hash, or None when the body has neither.
    """
    parts = [
        _without_billing_line(body.get("system")),
        body.get("instructions"),
        _leading_instructions(body.get("messages")),
        _leading_instructions(body.get("input")),
        body.get("tools"),
    ]
    if not any(parts):
        return None
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return f"auto:{hashlib.sha256(text.encode()).hexdigest()[:AUTO_CLASS_LENGTH]}"


def _annotated(
    given: Mapping[str, Any],
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    max_id_length: int,
) -> dict[str, Any]:
    xargs = dict(given)
    # Only this server may say which API key a call came with.
    xargs.pop("program_tenant", None)
    tenant = tenant_of(headers)
    if tenant is not None:
        xargs["program_tenant"] = tenant
    session = _text(body.get("session_id")) or _text(xargs.get("session_id"))
    in_body = identify("", xargs, session, max_id_length=max_id_length)
    for field, value in _header_fields(headers).items():
        named_in_body = field == "program_id" and in_body.explicit
        if xargs.get(field) is None and not named_in_body:
            xargs[field] = value
    complete = identify("", xargs, session, max_id_length=max_id_length)
    if complete.program_class is None and (kind := workload_class(body)):
        xargs["program_class"] = kind
    return xargs


def _header_fields(headers: Mapping[str, str]) -> dict[str, str]:
    sources = {
        "program_id": PROGRAM_HEADERS,
        "thread_id": THREAD_HEADERS,
        "program_class": (CLASS_HEADER,),
        "program_end": (END_HEADER,),
    }
    fields = {}
    for field, names in sources.items():
        name = next((name for name in names if name in headers), None)
        if name is not None:
            fields[field] = headers[name]
    return fields


def _json_object(raw: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _existing_xargs(
    body: Mapping[str, Any], holder: tuple[str, ...]
) -> Mapping[str, Any] | None:
    """Return the arguments already in the body, None when the shape is wrong."""
    value: Any = body
    for key in holder:
        value = value.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            return None
    return dict(value)


def _with_xargs(
    raw: bytes,
    body: dict[str, Any],
    holder: tuple[str, ...],
    xargs: Mapping[str, Any],
) -> bytes:
    """Write the arguments into the body.

    Usually the client sent none: then they are appended to the bytes as they
    came, which keeps every number and image of the client exactly and costs
    nothing for large bodies.
    """
    appendable = json.detect_encoding(raw) in ("utf-8", "utf-8-sig")
    if len(holder) == 1 and holder[0] not in body and appendable:
        separator = b"," if body else b""
        field = json.dumps({holder[0]: xargs}).encode()[1:]
        return raw.rstrip()[:-1] + separator + field
    target = body
    for key in holder[:-1]:
        target[key] = dict(target.get(key) or {})
        target = target[key]
    target[holder[-1]] = xargs
    return json.dumps(body).encode()


def _leading_instructions(messages: object) -> list[Any]:
    """Return the contents of the system and developer messages at the start."""
    leading = []
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            break
        if message.get("role") not in ("system", "developer"):
            break
        leading.append(_without_billing_line(message.get("content")))
    return leading


def _without_billing_line(content: object) -> object:
    if isinstance(content, str):
        return None if content.startswith(_BILLING_LINE) else content
    if isinstance(content, list):
        return [block for block in content if not _is_billing_line(block)]
    return content


def _is_billing_line(block: object) -> bool:
    text = block.get("text") if isinstance(block, dict) else None
    return isinstance(text, str) and text.startswith(_BILLING_LINE)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
