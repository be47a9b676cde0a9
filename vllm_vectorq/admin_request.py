# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the admin routes are asked, checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.requests import Request

FACTS = ("namespace", "model", "lora", "protocol")

_ENTRY_ID = re.compile("[0-9]{1,19}")
_WHICH = (
    f"say which entries to drop: any of {', '.join(FACTS)}, prefix with the beginning "
    'of their text, or {"everything": true}.'
)


class RefusedError(Exception):
    """A request that cannot be done; becomes an answer in the shape of vLLM's."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


async def read_body(request: Request) -> dict[str, Any]:
    """Read a JSON object.

    The type is checked as vLLM does: pages of other sites can make a browser send
    anything else without asking.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0]
    if media_type.strip().lower() != "application/json":
        raise RefusedError(
            f"Content-Type: {media_type!r} is not application/json.", "content-type"
        )
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise RefusedError("the body is not a JSON object.")
    return body


def check_explainable(body: Mapping[str, Any]) -> None:
    """Refuse what is no request for one answer."""
    if ("messages" in body) == ("prompt" in body):
        raise RefusedError(
            "give a chat completion request with messages, or a completion request "
            "with a prompt."
        )
    prompt = body.get("prompt")
    # Several texts or several lists of tokens; a list of numbers is one prompt.
    if (
        isinstance(prompt, list)
        and len(prompt) > 1
        and not all(isinstance(token, int) for token in prompt)
    ):
        raise RefusedError("prompt: give one prompt at a time.", "prompt")


def selection_of(body: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Return the facts and the beginning of the text that entries must have."""
    if not body:
        raise RefusedError(f"the body is empty: {_WHICH}")
    for name, value in body.items():
        if name not in (*FACTS, "prefix", "everything"):
            raise RefusedError(f"{name}: unknown; {_WHICH}", name)
        if name == "everything" and (value is not True or len(body) > 1):
            raise RefusedError("everything: give it alone, and true.", name)
        if name != "everything" and not isinstance(value, str):
            raise RefusedError(f"{name}: {value!r} is not a string.", name)
    if body.get("prefix") == "":
        raise RefusedError(f"prefix: it is empty; {_WHICH}", "prefix")
    facts = {name: body[name] for name in FACTS if name in body}
    return facts, body.get("prefix", "")


def entry_id_of(given: object) -> int:
    """Read the number of an entry."""
    # As a string, too: JavaScript's numbers are too short for it, and the header that
    # names it is text.
    if isinstance(given, str) and _ENTRY_ID.fullmatch(given):
        return int(given)
    if isinstance(given, bool) or not isinstance(given, int):
        raise RefusedError(
            f"entry_id: {given!r} is no number; the response header x-vectorq-entry "
            "has it.",
            "entry_id",
        )
    return given
