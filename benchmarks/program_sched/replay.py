# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Closed-loop replay of programs against an OpenAI-compatible server.

Programs arrive by the clock; inside a program a call is sent when its parents have
finished and its pause is over. Prompts carry the text that the model really wrote.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TextIO

import aiohttp

from benchmarks.program_sched.progress import Progress
from benchmarks.program_sched.prose import system_prompt
from benchmarks.program_sched.records import (
    PREFILL_WEIGHT,
    CallRecord,
    ProgramRecord,
    attained_service,
)
from benchmarks.program_sched.workload import (
    KINDS,
    CallSpec,
    ProgramSpec,
    remaining_service,
)

# What the calls tell the server: only who they are, also the true remaining work,
# or also a priority that the client computes itself.
HintMode = Literal["identity", "oracle", "client_las"]


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """Where and how to replay.

    Attributes:
        base_url: Server root, for instance ``http://127.0.0.1:8000``.
        model: Served model name.
        hints: What the calls tell the server beyond their identity.
        api_key: Sent as a bearer token when given.
        call_timeout_s: A call that takes longer counts as a failure.
        one_at_a_time: Start a program only when the one before has finished,
            which measures latency on an unloaded server.
    """

    base_url: str
    model: str
    hints: HintMode = "identity"
    api_key: str | None = None
    call_timeout_s: float = 600.0
    one_at_a_time: bool = False

    def headers(self) -> dict[str, str]:
        """Return the headers of every call."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


class CallFailed(Exception):
    """The server refused a call, or did not answer it in time."""


def call_body(
    program: ProgramSpec,
    call: CallSpec,
    messages: list[dict[str, str]],
    finished: Sequence[CallRecord],
    options: ReplayOptions,
) -> dict[str, Any]:
    """Return the chat-completions request of one call.

    The output length is forced, so that every policy generates the same tokens.
    """
    done = {record.call_id for record in finished}
    open_calls = [other for other in program.calls if other.call_id not in done]
    xargs: dict[str, Any] = {"thread_id": call.thread}
    if call.parents:
        # Ids that the server gave its answers; it knows no others.
        answers = {record.call_id: record.answer_id for record in finished}
        xargs["parent_call_ids"] = [answers[parent] for parent in call.parents]
    if len(open_calls) == 1:
        xargs["program_end"] = 1
    body: dict[str, Any] = {
        "model": options.model,
        "messages": messages,
        "max_tokens": call.output_tokens,
        "min_tokens": call.output_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "vllm_xargs": xargs,
    }
    if options.hints == "oracle":
        xargs["program_remaining"] = remaining_service(open_calls, PREFILL_WEIGHT)
    elif options.hints == "client_las":
        body["priority"] = round(attained_service(finished))
    return body


def elapsed_s(start_s: float) -> float:
    """Return the time since `start_s` on the performance counter, rounded to 1 ms."""
    return round(time.perf_counter() - start_s, 3)


class _ProgramRun:
    """Follows the DAG of one program."""

    def __init__(
        self,
        program: ProgramSpec,
        record: ProgramRecord,
        http: aiohttp.ClientSession,
        options: ReplayOptions,
        progress: Progress,
        start: float,
    ) -> None:
        self._program = program
        self._record = record
        self._http = http
        self._options = options
        self._progress = progress
        self._start = start
        self._messages: dict[str | None, list[dict[str, str]]] = {
            None: [{"role": "system", "content": system_prompt(program.kind)}]
        }
        self._finished = {call.call_id: asyncio.Event() for call in program.calls}

    async def run(self) -> None:
        """Make all calls; the first failure ends the program."""
        try:
            async with asyncio.TaskGroup() as group:
                for call in self._program.calls:
                    group.create_task(self._make(call))
        except* CallFailed as failures:
            self._record.error = str(failures.exceptions[0])
        self._record.finish_s = elapsed_s(self._start)
        self._progress.program_finished(failed=self._record.error is not None)

    async def _make(self, call: CallSpec) -> None:
        for parent in call.parents:
            await self._finished[parent].wait()
        await asyncio.sleep(call.think_time_s)
        messages = [
            *self._messages[call.context],
            {"role": "user", "content": call.text},
        ]
        finished = [record for record in self._record.calls if record.error is None]
        body = call_body(self._program, call, messages, finished, self._options)
        record = CallRecord(call.call_id, elapsed_s(self._start), 0.0)
        try:
            text = await self._send(body, record)
        finally:
            record.finish_s = elapsed_s(self._start)
            self._record.calls.append(record)
        reply = {"role": "assistant", "content": text}
        self._messages[call.call_id] = [*messages, reply]
        self._finished[call.call_id].set()
        self._progress.call_finished()

    async def _send(self, body: dict[str, Any], record: CallRecord) -> str:
        url = f"{self._options.base_url}/v1/chat/completions"
        headers = {"X-Session-ID": self._program.program_id}
        try:
            async with self._http.post(url, json=body, headers=headers) as response:
                if response.status != 200:
                    reason = (await response.text())[:500]
                    raise CallFailed(f"HTTP {response.status}: {reason}")
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError) as problem:
            record.error = f"{type(problem).__name__}: {problem}"
            raise CallFailed(record.error) from problem
        except BaseException as problem:
            record.error = str(problem) or type(problem).__name__
            raise
        record.answer_id = answer["id"]
        usage = answer["usage"]
        details = usage.get("prompt_tokens_details") or {}
        record.prompt_tokens = usage["prompt_tokens"]
        record.cached_tokens = details.get("cached_tokens") or 0
        record.completion_tokens = usage["completion_tokens"]
        content: str = answer["choices"][0]["message"]["content"] or ""
        return content


async def replay(
    programs: Sequence[ProgramSpec],
    options: ReplayOptions,
    *,
    label: str = "replay",
    stream: TextIO | None = None,
) -> list[ProgramRecord]:
    """Run all programs and return their records, in order of arrival."""
    progress = Progress(label, len(programs), stream)
    timeout = aiohttp.ClientTimeout(total=options.call_timeout_s)
    # A connection per call: one that the server is just closing as idle would lose it.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    records: list[ProgramRecord] = []
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=options.headers()
    ) as http:
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            group.create_task(progress.follow())
            for program in programs:
                now_s = elapsed_s(start)
                if not options.one_at_a_time:
                    await asyncio.sleep(max(program.arrival_s - now_s, 0.0))
                    now_s = program.arrival_s
                record = ProgramRecord(program.program_id, program.kind, now_s)
                records.append(record)
                run = _ProgramRun(program, record, http, options, progress, start)
                task = group.create_task(run.run())
                if options.one_at_a_time:
                    await task
    return records


async def warm_up(options: ReplayOptions) -> None:
    """Make one call per kind: first-step costs and shared system prompts are paid.

    Raises:
        CallFailed: The server does not answer a plain chat request.
    """
    timeout = aiohttp.ClientTimeout(total=options.call_timeout_s)
    async with aiohttp.ClientSession(
        timeout=timeout, headers=options.headers()
    ) as http:
        for kind in KINDS:
            messages = [
                {"role": "system", "content": system_prompt(kind)},
                {"role": "user", "content": "Say hello."},
            ]
            body = {"model": options.model, "messages": messages, "max_tokens": 16}
            url = f"{options.base_url}/v1/chat/completions"
            async with http.post(url, json=body) as response:
                if response.status != 200:
                    reason = (await response.text())[:500]
                    raise CallFailed(
                        f"warm-up call: HTTP {response.status} from {url}: {reason}"
                    )
