# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
from typing import Any

import pytest

from vllm_program_sched.annotation import XARGS_OF_ROUTE, workload_class


def test_class_groups_calls_of_one_kind() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    system = {"role": "system", "content": "You solve tasks."}

    def chat(*messages: dict[str, str], **more: object) -> str | None:
        return workload_class({"messages": list(messages), **more})

    first = chat(system, {"role": "user", "content": "a"}, tools=tools)
    assert first is not None
    assert first.startswith("auto:")
    assert first == chat(system, {"role": "user", "content": "b"}, tools=tools)
    assert first != chat(system, {"role": "user", "content": "a"})
    assert first != chat({"role": "user", "content": "a"}, tools=tools)
    later = ({"role": "user", "content": "a"}, system)
    assert chat(*later) is None, "only leading messages are instructions"
    assert workload_class({"prompt": "text"}) is None
    assert workload_class({"instructions": "x"}) != workload_class({"system": "x"})


def test_class_ignores_the_line_that_vllm_drops() -> None:
    def system(line: str) -> dict[str, Any]:
        blocks = [{"type": "text", "text": line}, {"type": "text", "text": "Be good."}]
        return {"system": blocks}

    one = workload_class(system("x-anthropic-billing-header: cch=1"))
    assert one == workload_class(system("x-anthropic-billing-header: cch=2"))
    assert one != workload_class(system("x"))


def test_routes_exist_in_vllm() -> None:
    fastapi = pytest.importorskip("fastapi")
    pytest.importorskip("vllm")
    from vllm.entrypoints.anthropic.api_router import router as anthropic
    from vllm.entrypoints.openai.chat_completion.api_router import router as chat
    from vllm.entrypoints.openai.completion.api_router import router as completion
    from vllm.entrypoints.openai.responses.api_router import router as responses
    from vllm.entrypoints.scale_out.token_in_token_out.api_router import (
        router as generate,
    )

    app = fastapi.FastAPI()
    for router in (anthropic, chat, completion, responses, generate):
        app.include_router(router)
    served = set(app.openapi()["paths"])
    assert set(XARGS_OF_ROUTE) - {"/invocations"} <= served
