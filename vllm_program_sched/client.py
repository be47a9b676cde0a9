# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Names the program in a client's own code.

    client = instrument(OpenAI(base_url="http://localhost:8000/v1"))
    with program("research") as p:
        client.chat.completions.create(...)      # belongs to the program
        with p.thread("critic"):
            client.chat.completions.create(...)  # a fork of it

Works with clients of ``openai`` and with plain ``httpx``, sync and async; only
clients given to ``instrument`` change. The server needs the middleware
``vllm_program_sched.ProgramHeaders``; without it use ``Program.extra_body``.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

from .client_hooks import AsyncRequestHook, RequestHook, Server, is_async
from .identity import MAX_ID_LENGTH, check_id

logger = logging.getLogger("vllm_program_sched.client")

_UUID_LENGTH = 37  # with the hyphen before it

ClientT = TypeVar("ClientT")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in which program the running code is."""

    program: "Program"
    thread_id: str | None = None


_place: ContextVar[_Place | None] = ContextVar("program_place", default=None)
# An event loop keeps only weak references to its tasks.
_background: set[asyncio.Task[None]] = set()


class Program:
    """One program: the calls made inside its ``with`` block.

    A program opened inside another one is a thread of the outer one, because
    whoever waits, waits for the outer one.

    Attributes:
        id: The name and a random part, so every run is a program of its own.
        program_class: Name under which the server learns similar programs.
    """

    def __init__(
        self, name: str, program_class: str | None = None, end_on_exit: bool = True
    ) -> None:
        """See ``program``."""
        check_id("name", name, MAX_ID_LENGTH - _UUID_LENGTH)
        if program_class is not None:
            check_id("program_class", program_class)
        self.id = f"{name}-{uuid4()}"
        self.program_class = program_class
        self._end_on_exit = end_on_exit
        self._root: Program = self
        self._servers: dict[str, Server] = {}
        self._token: Token[_Place | None] | None = None

    def __enter__(self) -> Self:
        """Make this the program of the calls that follow.

        Raises:
            RuntimeError: If the program is open already.
        """
        if self._token is not None:
            raise RuntimeError(
                f"program {self.id} is open already; open a new program() per run."
            )
        outer = _place.get()
        if outer is None:
            self._token = _place.set(_Place(self))
        else:
            self._root = outer.program
            self._token = _place.set(_Place(outer.program, self.id))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the program and tell the servers that it ended.

        Calls made with async clients are ended in the background if an event
        loop runs, else the server's idle limit ends them.
        """
        for server in self._leave():
            if not server.is_async:
                server.end(self.id)
                continue
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                continue
            task = loop.create_task(server.end_async(self.id))
            _background.add(task)
            task.add_done_callback(_background.discard)

    async def __aenter__(self) -> Self:
        """Like ``with``, for async code."""
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Like ``with``, but never blocks the event loop."""
        for server in self._leave():
            if server.is_async:
                await server.end_async(self.id)
            else:
                await asyncio.to_thread(server.end, self.id)

    @contextmanager
    def thread(self, thread_id: str) -> Iterator[None]:
        """Mark the calls inside as one line of a fork.

        Raises:
            IdentityError: If the id cannot be used.
        """
        check_id("thread_id", thread_id)
        token = _place.set(_Place(self._root, thread_id))
        try:
            yield
        finally:
            _put_back(token)

    def headers(self) -> dict[str, str]:
        """Return the headers that name this program, for other HTTP clients."""
        headers = {"X-Program-ID": self._root.id}
        if (thread_id := self._thread_id()) is not None:
            headers["X-Thread-ID"] = thread_id
        if self._root.program_class is not None:
            headers["X-Program-Class"] = self._root.program_class
        return headers

    def extra_body(self, *, end: bool = False) -> dict[str, dict[str, Any]]:
        """Return ``extra_body`` for servers without the middleware.

        Args:
            end: This is the program's last call.
        """
        xargs: dict[str, Any] = {"program_id": self._root.id}
        if (thread_id := self._thread_id()) is not None:
            xargs["thread_id"] = thread_id
        if self._root.program_class is not None:
            xargs["program_class"] = self._root.program_class
        if end:
            xargs["program_end"] = 1
        return {"vllm_xargs": xargs}

    def _thread_id(self) -> str | None:
        place = _place.get()
        return place.thread_id if place and place.program is self._root else None

    def _leave(self) -> list[Server]:
        if self._token is not None:
            _put_back(self._token)
        self._token = None
        self._root = self
        servers = list(self._servers.values()) if self._end_on_exit else []
        self._servers.clear()
        return servers


def program(
    name: str, program_class: str | None = None, end_on_exit: bool = True
) -> Program:
    """Open a program for the calls of a ``with`` or ``async with`` block.

    The program follows the context: tasks and ``asyncio.to_thread`` inherit it,
    threads of a pool only through ``contextvars.copy_context().run``.

    Args:
        name: Start of the program's id; a random part is added.
        program_class: Name under which the server learns similar programs.
        end_on_exit: Tell the server at the end of the block, so it need not
            wait for its idle limit.

    Raises:
        IdentityError: If the name or class cannot be used.
    """
    return Program(name, program_class, end_on_exit)


def instrument(client: ClientT) -> ClientT:
    """Let a client's calls carry the program they are made in.

    Args:
        client: A client of ``openai``, or an HTTP client with ``event_hooks``
            such as ``httpx.Client`` and ``httpx.AsyncClient``.

    Returns:
        The same client. Doing it twice changes nothing.

    Raises:
        TypeError: If the client is of neither kind.
    """
    direct = hasattr(client, "event_hooks")
    http: Any = client if direct else getattr(client, "_client", None)
    if not hasattr(http, "event_hooks"):
        raise TypeError(
            f"instrument: {type(client).__name__} is not supported; give a client of "
            "openai or httpx, or send the headers of Program.headers() yourself."
        )
    hooks = http.event_hooks
    requests = hooks.setdefault("request", [])
    if not any(isinstance(hook, RequestHook) for hook in requests):
        kind = AsyncRequestHook if is_async(http) else RequestHook
        requests.append(kind(http, _current_headers, _note_server))
        http.event_hooks = hooks
    return client


def _current_headers() -> dict[str, str]:
    place = _place.get()
    return place.program.headers() if place is not None else {}


def _note_server(server: Server) -> None:
    place = _place.get()
    if place is not None:
        place.program._servers.setdefault(server.root_url, server)


def _put_back(token: Token[_Place | None]) -> None:
    try:
        _place.reset(token)
    except ValueError:
        # Left in another context than entered, as an async generator may be
        # that somebody else closes: there is nothing to put back here.
        logger.debug("A program was left in another context than entered.")
