# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How ``client`` reaches into HTTP clients: a request hook, and the end call.

Written against what ``httpx`` and its successors share, so neither is imported
and whichever one a user's SDK was built with works.
"""

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from .annotation import XARGS_OF_ROUTE

logger = logging.getLogger("vllm_program_sched.client")

END_TIMEOUT_S = 2.0
_KEY_HEADERS = ("authorization", "x-api-key")


class HttpClient(Protocol):
    """What is used of ``httpx.Client`` and ``httpx.AsyncClient``."""

    event_hooks: dict[str, list[Callable[..., Any]]]
    post: Callable[..., Any]
    send: Callable[..., Any]


class HttpRequest(Protocol):
    """What is used of ``httpx.Request``."""

    method: str
    url: Any
    headers: Any


@dataclass(frozen=True, slots=True)
class Server:
    """A server that received calls of a program, and how to reach it again.

    Attributes:
        client: The client the calls went through, with its proxies and TLS.
        root_url: Everything before the route, without a slash at the end.
        key_headers: The API key of the calls.
    """

    client: HttpClient
    root_url: str
    key_headers: Mapping[str, str]

    @property
    def is_async(self) -> bool:
        """Whether the client has to be awaited."""
        return is_async(self.client)

    def end(self, program_id: str) -> None:
        """Say that a program ended; never raises."""
        try:
            response = self.client.post(self._url(program_id), **self._options())
        except Exception as error:
            _report(program_id, error)
        else:
            _report(program_id, response.status_code)

    async def end_async(self, program_id: str) -> None:
        """Say that a program ended, with an async client; never raises."""
        try:
            response = await self.client.post(self._url(program_id), **self._options())
        except Exception as error:
            _report(program_id, error)
        else:
            _report(program_id, response.status_code)

    def _url(self, program_id: str) -> str:
        return f"{self.root_url}/v1/programs/{quote(program_id, safe='')}/end"

    def _options(self) -> dict[str, Any]:
        return {"headers": dict(self.key_headers), "timeout": END_TIMEOUT_S}


class RequestHook:
    """Adds the headers of the current program to calls that generate text."""

    def __init__(
        self,
        client: HttpClient,
        current_headers: Callable[[], Mapping[str, str]],
        on_call: Callable[[Server], None],
    ) -> None:
        """Bind the hook to its client.

        Args:
            client: Whose requests are seen.
            current_headers: Gives the headers; empty outside of a program.
            on_call: Told which server a call of a program goes to.
        """
        self._client = client
        self._current_headers = current_headers
        self._on_call = on_call

    def __call__(self, request: HttpRequest) -> None:
        """Annotate one request on its way out."""
        path: str = request.url.path
        route = next((r for r in XARGS_OF_ROUTE if path.endswith(r)), None)
        # Other requests of the client may go anywhere, for instance to a tool.
        if route is None or request.method != "POST":
            return
        headers = self._current_headers()
        if not headers:
            return
        for name, value in headers.items():
            request.headers.setdefault(name, value)
        root = request.url.copy_with(path=path.removesuffix(route) or "/", query=None)
        keys = {n: request.headers[n] for n in _KEY_HEADERS if n in request.headers}
        self._on_call(Server(self._client, str(root).rstrip("/"), keys))


class AsyncRequestHook(RequestHook):
    """The same for async clients, which await their hooks."""

    async def __call__(self, request: HttpRequest) -> None:  # type: ignore[override]
        """Annotate one request on its way out."""
        super().__call__(request)


def is_async(client: HttpClient) -> bool:
    """Say whether a client's calls have to be awaited."""
    return inspect.iscoroutinefunction(client.send)


def _report(program_id: str, outcome: Exception | int) -> None:
    """Log an end that did not arrive; the server's idle limit ends it then.

    404 is a server without the endpoint plugin, which is a normal way to run.
    """
    if outcome not in (200, 404):
        logger.info("Program %s could not be ended (%s).", program_id, outcome)
