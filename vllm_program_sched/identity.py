# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which program a call belongs to, read from what travels with the request.

What a client sends is data: checked, bounded, and never a metric label or a path.
Nothing of vLLM is imported, so servers and clients share one definition.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_ID_LENGTH = 256
MAX_CONTEXT_LENGTH = 16_384
MAX_PARENT_CALLS = 1_024
MAX_REMAINING_TOKENS = 1e15

TENANT_PATTERN = re.compile(r"[0-9a-f]{16}")
# The tenant is joined to the id with a slash. An id that already looks joined
# could reach into the programs of another API key, so clients may not send one.
_RESERVED_PREFIX = re.compile(r"[0-9a-f]{16}/")

# How vLLM derives the ids of its requests from the one that the client sees.
_ENGINE_SUFFIX = re.compile(r"-[0-9a-f]{8}$")
_ANSWER_PREFIX = re.compile(r"^\d+_")
_NUMBERED = re.compile(r"(cmpl-.+)-\d+|(chatcmpl-[0-9a-f]{32})_\d+")

_CONTEXT_FIELDS = (
    "program_id",
    "parent_program_id",
    "thread_id",
    "parent_call_ids",
    "program_end",
    "program_class",
)
_TRUE_WORDS = frozenset({"true", "1", "yes"})
_FALSE_WORDS = frozenset({"false", "0", "no", ""})


class IdentityError(ValueError):
    """A field that says where a call belongs cannot be used.

    Attributes:
        field: Name of the offending field, for error responses.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


@dataclass(frozen=True, slots=True)
class CallIdentity:
    """Where one call belongs.

    Attributes:
        program_id: Key of the program, prefixed with the tenant when known.
        explicit: False when the call named no program and is its own.
        thread_id: Line of calls inside the program, for fork and join.
        parent_call_ids: Calls of the program that had to finish before this one.
        program_end: The client announces this as the program's last call.
        program_class: Name under which similar programs are learned together.
        remaining_tokens: True remaining work; benchmarks only, for the oracle.
    """

    program_id: str
    explicit: bool
    thread_id: str | None
    parent_call_ids: tuple[str, ...]
    program_end: bool
    program_class: str | None
    remaining_tokens: float | None


def identify(
    request_id: str,
    xargs: Mapping[str, object] | None,
    session_id: str | None,
    *,
    max_id_length: int = MAX_ID_LENGTH,
) -> CallIdentity:
    """Decide which program a call belongs to.

    The first that is given wins: ``program_id``, ``agentic_context``, vLLM's own
    ``session_id``; otherwise the call is a program by itself.

    Args:
        request_id: vLLM's id of the call; without a program, all calls of one request
            (``n > 1``, several prompts) are one.
        xargs: The request's ``vllm_xargs`` (``SamplingParams.extra_args``).
        session_id: vLLM's own session id of the request.
        max_id_length: Longest id or class accepted, in characters.

    Raises:
        IdentityError: If a given field has the wrong type, is empty, too long,
            not printable, or out of range.
    """
    xargs = xargs or {}
    fields = _context_fields(xargs.get("agentic_context"))
    for name in _CONTEXT_FIELDS:
        if name != "parent_program_id" and xargs.get(name) is not None:
            fields[name] = xargs[name]

    named = _optional_id(fields, "program_id", max_id_length)
    if named is None and session_id is not None:
        named = check_id("session_id", session_id, max_id_length)
    own = f"call:{client_request_id(request_id)}"
    program_id = named if named is not None else own
    tenant = _tenant(xargs.get("program_tenant"))
    return CallIdentity(
        program_id=f"{tenant}/{program_id}" if tenant else program_id,
        explicit=named is not None,
        thread_id=_optional_id(fields, "thread_id", max_id_length),
        parent_call_ids=_parent_call_ids(fields.get("parent_call_ids"), max_id_length),
        program_end=_flag("program_end", fields.get("program_end")),
        program_class=_optional_id(fields, "program_class", max_id_length),
        remaining_tokens=_remaining_tokens(xargs.get("program_remaining")),
    )


def client_request_id(call_id: str) -> str:
    """Return the id that the client saw in its response.

    vLLM numbers the prompts of one request, puts the number of an answer (``n > 1``) in
    front, and appends eight random digits.
    """
    request_id = _ANSWER_PREFIX.sub("", _ENGINE_SUFFIX.sub("", call_id))
    numbered = _NUMBERED.fullmatch(request_id)
    return (numbered[1] or numbered[2]) if numbered else request_id


def check_id(field: str, value: object, max_length: int = MAX_ID_LENGTH) -> str:
    """Return ``value`` if it can serve as an id, else raise an IdentityError."""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise IdentityError(field, f"expected text, got {kind}; send a JSON string.")
    if not value.strip():
        raise IdentityError(field, "is empty; send an id or leave the field out.")
    if len(value) > max_length:
        raise IdentityError(
            field,
            f"has {len(value)} characters, at most {max_length} are accepted; "
            "send a shorter id, for instance a UUID.",
        )
    if not value.isprintable():
        raise IdentityError(
            field,
            "holds a control or other unprintable character; "
            "send letters, digits and punctuation.",
        )
    if _RESERVED_PREFIX.match(value):
        raise IdentityError(
            field,
            "starts with 16 hexadecimal digits and a slash, which is reserved; "
            "send an id that starts otherwise.",
        )
    return value


def tenant_of_program(program_id: str) -> str | None:
    """Return the tenant a program id was joined to, None if it has none."""
    return program_id[:16] if _RESERVED_PREFIX.match(program_id) else None


def _context_fields(context: object) -> dict[str, object]:
    """Read the fields we know from ``agentic_context`` (a JSON object as text)."""
    if context is None:
        return {}
    field = "agentic_context"
    if not isinstance(context, str):
        kind = type(context).__name__
        raise IdentityError(field, f"expected JSON text, got {kind}; send a string.")
    if len(context) > MAX_CONTEXT_LENGTH:
        raise IdentityError(
            field,
            f"has {len(context)} characters, at most {MAX_CONTEXT_LENGTH} are "
            "accepted; send only the ids.",
        )
    try:
        parsed = json.loads(context)
    except (ValueError, RecursionError) as error:
        raise IdentityError(
            field, f"is not valid JSON ({error}); send a JSON object as text."
        ) from error
    if not isinstance(parsed, dict):
        raise IdentityError(
            field, "is not a JSON object; send for instance {'program_id': 'p1'}."
        )
    fields = {k: parsed[k] for k in _CONTEXT_FIELDS if parsed.get(k) is not None}
    return _fold_into_parent(fields)


def _fold_into_parent(fields: dict[str, object]) -> dict[str, object]:
    """Make a sub-program a thread of its parent.

    The user waits for the parent: counting a sub-agent as a new program would
    let every fork start again at the best level. The end of a sub-program is
    not the end of its parent, so the flag is dropped.
    """
    parent = fields.pop("parent_program_id", None)
    if parent is None:
        return fields
    child = fields.get("program_id")
    if child is not None:
        fields.setdefault("thread_id", child)
    fields["program_id"] = parent
    fields.pop("program_end", None)
    return fields


def _optional_id(
    fields: Mapping[str, object], name: str, max_length: int
) -> str | None:
    value = fields.get(name)
    return None if value is None else check_id(name, value, max_length)


def _tenant(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not TENANT_PATTERN.fullmatch(value):
        raise IdentityError(
            "program_tenant",
            "is set by the server's ProgramHeaders middleware; leave it out.",
        )
    return value


def _parent_call_ids(value: object, max_length: int) -> tuple[str, ...]:
    field = "parent_call_ids"
    if value is None:
        return ()
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        kind = type(value).__name__
        raise IdentityError(field, f"expected a list, got {kind}; send a list of ids.")
    if len(value) > MAX_PARENT_CALLS:
        raise IdentityError(
            field,
            f"has {len(value)} entries, at most {MAX_PARENT_CALLS} are accepted; "
            "name only the calls this one waits for.",
        )
    return tuple(check_id(field, item, max_length) for item in value)


def _flag(field: str, value: object) -> bool:
    if value is None:
        return False
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUE_WORDS:
            return True
        if word in _FALSE_WORDS:
            return False
    raise IdentityError(field, "is not a yes or no; send true or false.")


def _remaining_tokens(value: object) -> float | None:
    if value is None:
        return None
    # True is a number to Python, but not a count of tokens.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        value = -1
    if 0 <= value <= MAX_REMAINING_TOKENS:
        return float(value)
    raise IdentityError(
        "program_remaining",
        "is not a number of at least 0; send the remaining tokens of the program.",
    )
