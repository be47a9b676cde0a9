# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Carries program headers into the request body.

Enabled with ``--middleware vllm_program_sched.ProgramHeaders``. vLLM carries
no header of its own but ``X-Session-ID`` to the scheduler; per-request
arguments in the body do get there, so the headers are written into the body.
"""

import logging
import os
import secrets
from dataclasses import dataclass
from http import HTTPStatus

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .annotation import (
    XARGS_OF_ROUTE,
    annotate,
    bearer_token,
    header_values,
    key_digest,
)
from .identity import MAX_ID_LENGTH, IdentityError

logger = logging.getLogger("vllm.plugins.program_sched")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the middleware needs to know about the server it runs in.

    Attributes:
        key_hashes: Hashes of the API keys; empty when the server has none.
        max_id_length: Longest id accepted, in characters.
        scheduler: What the user gave as ``--scheduler-cls``.
    """

    key_hashes: tuple[bytes, ...]
    max_id_length: int
    scheduler: str

    @classmethod
    def of(cls, scope: Scope) -> "ServerSettings":
        """Read the settings from the arguments that vLLM leaves on the app."""
        args = getattr(getattr(scope.get("app"), "state", None), "args", None)
        keys = getattr(args, "api_key", None) or [os.environ.get("VLLM_API_KEY")]
        keys = [keys] if isinstance(keys, str) else keys
        config = getattr(args, "additional_config", None)
        options = config.get("program_sched") if isinstance(config, dict) else None
        limit = options.get("max_id_length") if isinstance(options, dict) else None
        return cls(
            key_hashes=tuple(key_digest(key) for key in keys if key),
            max_id_length=limit if isinstance(limit, int) else MAX_ID_LENGTH,
            scheduler=str(getattr(args, "scheduler_cls", None) or ""),
        )

    def admits(self, headers: dict[str, str]) -> bool:
        """Say whether vLLM's authentication will let the request through."""
        if not self.key_hashes:
            return True
        token = bearer_token(headers)
        if token is None:
            return False
        digest = key_digest(token)
        # Every key is compared, so the time taken tells nothing about them.
        return any([secrets.compare_digest(digest, known) for known in self.key_hashes])


class ProgramHeaders:
    """ASGI middleware that annotates calls with the program they belong to.

    It runs before authentication. A request whose key vLLM will reject passes
    untouched and unread, so a stranger costs no more than without it.
    Responses are not touched at all, streaming ones included.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wrap ``app``; vLLM passes no options, they are read from the scope."""
        self._app = app
        self._settings: ServerSettings | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Annotate one request and hand it on."""
        route = _route(scope)
        if route is None:
            await self._app(scope, receive, send)
            return
        settings = self._settings or self._first_request(scope)
        headers = header_values(scope["headers"])
        if not (_is_json(headers) and settings.admits(headers)):
            await self._app(scope, receive, send)
            return
        messages, complete = await _read_body(receive)
        if complete:
            raw = b"".join(message.get("body", b"") for message in messages)
            try:
                body = annotate(raw, headers, route, settings.max_id_length)
            except IdentityError as error:
                await _refuse(error, route)(scope, receive, send)
                return
            if body is not raw:
                scope = _with_length(scope, len(body))
                messages = [{"type": "http.request", "body": body, "more_body": False}]
        await self._app(scope, _replay(messages, receive), send)

    def _first_request(self, scope: Scope) -> ServerSettings:
        self._settings = settings = ServerSettings.of(scope)
        if not settings.scheduler.startswith("vllm_program_sched."):
            logger.warning(
                "program_sched: ProgramHeaders annotates requests, but the "
                "scheduler is %s, which ignores programs. Start the server with "
                "--scheduler-cls vllm_program_sched.ProgramScheduler, or remove "
                "--middleware vllm_program_sched.ProgramHeaders.",
                settings.scheduler or "vLLM's own",
            )
        return settings


def _route(scope: Scope) -> str | None:
    """Return the path if the request may generate text, else None."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path if path in XARGS_OF_ROUTE else None


def _is_json(headers: dict[str, str]) -> bool:
    media_type = headers.get("content-type", "").partition(";")[0]
    return media_type.strip().lower() == "application/json"


async def _read_body(receive: Receive) -> tuple[list[Message], bool]:
    """Collect the body's messages; False when the client left in between."""
    messages = []
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            return messages, False
        if not message.get("more_body", False):
            return messages, True


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """Return a channel that gives ``messages`` first, then what comes later."""
    pending = iter(messages)

    async def receive_again() -> Message:
        message = next(pending, None)
        return message if message is not None else await receive()

    return receive_again


def _with_length(scope: Scope, length_bytes: int) -> Scope:
    """Return a scope whose Content-Length, if it has one, fits the new body."""
    headers = [
        (name, str(length_bytes).encode() if name == b"content-length" else value)
        for name, value in scope["headers"]
    ]
    return {**scope, "headers": headers}


def _refuse(error: IdentityError, route: str) -> JSONResponse:
    """Answer in the shape of vLLM's own errors."""
    content: dict[str, object] = {
        "error": {
            "message": str(error),
            "type": "BadRequestError",
            "param": error.field,
            "code": HTTPStatus.BAD_REQUEST.value,
        }
    }
    if route == "/v1/messages":
        content = {"type": "error", **content}
    return JSONResponse(content, status_code=HTTPStatus.BAD_REQUEST)
