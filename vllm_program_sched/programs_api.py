# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""``/v1/programs``: the live process table, and the end of a program.

An endpoint plugin of vLLM, on when ``VLLM_PLUGINS`` names ``program_sched``.
The paths start with ``/v1``, so vLLM's API key guards them.
"""

import asyncio
from argparse import Namespace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from .annotation import header_values, tenant_of
from .identity import MAX_ID_LENGTH, IdentityError, check_id

if TYPE_CHECKING:
    from starlette.datastructures import State
    from vllm.engine.protocol import EngineClient
    from vllm.tasks import SupportedTask

ENGINE_TIMEOUT_S = 30.0
DEFAULT_LIMIT = 20
MAX_LIMIT = 1_000
SORT_FIELDS = {
    "wait": "wait_s",
    "service": "service",
    "age": "age_s",
    "calls": "active_calls",
}

_NOT_OURS = (
    "this server does not run the program scheduler; start it with "
    "--scheduler-cls vllm_program_sched.ProgramScheduler."
)


class EngineUnavailableError(RuntimeError):
    """The engine cores did not answer; the message says why."""


class ProgramsEndpoint:
    """Adds the routes to vLLM's API server.

    Attributes:
        name: Plugin name, the one ``VLLM_PLUGINS`` has to list.
        required_tasks: Only servers that generate text have programs.
    """

    name = "program_sched"
    required_tasks: "tuple[SupportedTask, ...] | None" = ("generate",)

    def __init__(self) -> None:
        """Start without an engine; vLLM provides it in ``init_state``."""
        self._engine: EngineClient | None = None
        self._runs_program_scheduler = False
        self._separates_keys = False

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes."""
        # Ids may hold slashes, hence the path convertor.
        app.add_api_route("/v1/programs", self.list_programs, methods=["GET"])
        app.add_api_route(
            "/v1/programs/{program_id:path}/end", self.end_program, methods=["POST"]
        )

    async def init_state(
        self, engine_client: "EngineClient | None", state: "State", args: Namespace
    ) -> None:
        """Remember the engine and how the server was started."""
        self._engine = engine_client
        scheduler = str(getattr(args, "scheduler_cls", None) or "")
        self._runs_program_scheduler = scheduler.startswith("vllm_program_sched.")
        self._separates_keys = any(
            name.startswith("vllm_program_sched.")
            for name in getattr(args, "middleware", None) or ()
        )

    async def list_programs(
        self, request: Request, limit: int = DEFAULT_LIMIT, sort: str = "wait"
    ) -> JSONResponse:
        """Show the caller's live programs, the highest of ``sort`` first."""
        if not self._runs_program_scheduler:
            return _error(HTTPStatus.CONFLICT, _NOT_OURS)
        if sort not in SORT_FIELDS:
            known = ", ".join(SORT_FIELDS)
            return _error(
                HTTPStatus.BAD_REQUEST,
                f"sort: {sort!r} is unknown; use {known}.",
                "sort",
            )
        if not 1 <= limit <= MAX_LIMIT:
            return _error(
                HTTPStatus.BAD_REQUEST,
                f"limit: {limit} is out of range; use 1 to {MAX_LIMIT}.",
                "limit",
            )
        tenant = self._tenant(request)
        argument = {"limit": limit, "sort": sort, "tenant": tenant}
        try:
            snapshots = await self._ask("snapshot", argument)
        except EngineUnavailableError as error:
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        return JSONResponse(merge_snapshots(snapshots, limit, sort, tenant))

    async def end_program(self, request: Request, program_id: str) -> JSONResponse:
        """End one of the caller's programs; one that is not known has ended."""
        if not self._runs_program_scheduler:
            return _error(HTTPStatus.CONFLICT, _NOT_OURS)
        try:
            check_id("program_id", program_id, MAX_ID_LENGTH)
        except IdentityError as error:
            return _error(HTTPStatus.BAD_REQUEST, str(error), error.field)
        tenant = self._tenant(request)
        key = f"{tenant}/{program_id}" if tenant else program_id
        try:
            answers = await self._ask("end", {"program_id": key})
        except EngineUnavailableError as error:
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        ended = any(answer.get("ended") for answer in answers)
        return JSONResponse({"program_id": program_id, "ended": ended})

    def _tenant(self, request: Request) -> str | None:
        """Return whose programs the caller may see.

        Without the middleware no program carries a tenant, and all callers
        share one table.
        """
        if not self._separates_keys:
            return None
        return tenant_of(header_values(request.scope["headers"]))

    async def _ask(
        self, command: str, argument: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Call every engine core's scheduler and return their answers."""
        core = getattr(self._engine, "engine_core", None)
        if core is None:
            raise EngineUnavailableError("this server has no engine to ask.")
        # The engine core looks the name up on itself and calls what it finds:
        # its scheduler, which answers commands when called.
        call = core.call_utility_all_async("scheduler", command, argument)
        try:
            answers = await asyncio.wait_for(call, ENGINE_TIMEOUT_S)
        except TimeoutError as error:
            raise EngineUnavailableError(
                f"the engine did not answer within {ENGINE_TIMEOUT_S:.0f} s; try again."
            ) from error
        except Exception as error:
            raise EngineUnavailableError(f"the engine refused: {error}") from error
        return list(answers)


def merge_snapshots(
    snapshots: list[dict[str, Any]], limit: int, sort: str, tenant: str | None
) -> dict[str, Any]:
    """Join the tables of all engine cores into one answer.

    Args:
        snapshots: One per engine core: ``programs`` (a list), and facts about
            the scheduler such as ``live_programs``, ``calls`` and ``config``.
        limit: Programs to keep.
        sort: A key of ``SORT_FIELDS``.
        tenant: Left out of the ids again; callers know their own key.
    """
    programs = []
    engines = []
    for index, snapshot in enumerate(snapshots):
        for entry in snapshot.get("programs", ()):
            own_id = str(entry["program_id"])
            own_id = own_id.removeprefix(f"{tenant}/") if tenant else own_id
            programs.append({**entry, "program_id": own_id, "engine": index})
        facts = {key: value for key, value in snapshot.items() if key != "programs"}
        engines.append({"engine": index, **facts})
    field = SORT_FIELDS[sort]
    programs.sort(key=lambda entry: -float(entry.get(field) or 0.0))
    return {"object": "list", "data": programs[:limit], "engines": engines}


def _error(status: HTTPStatus, message: str, param: str | None = None) -> JSONResponse:
    """Answer in the shape of vLLM's own errors."""
    kind = f"{status.phrase.replace(' ', '')}Error"
    error = {"message": message, "type": kind, "param": param, "code": status.value}
    return JSONResponse({"error": error}, status_code=status)
