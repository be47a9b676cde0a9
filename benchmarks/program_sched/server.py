# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A real ``vllm serve`` process for the length of a ``with`` block."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import torch
from prometheus_client.parser import text_string_to_metric_families

COMMON_FLAGS: tuple[str, ...] = (
    "--max-num-seqs=8",
    "--block-size=32",
    "--max-model-len=4096",
    "--enforce-eager",
    "--enable-prefix-caching",
    "--enable-prompt-tokens-details",
    "--disable-uvicorn-access-log",
)
SERVED_NAME = "demo-model"

# Counters of vLLM whose growth during a replay is reported.
COUNTERS: dict[str, str] = {
    "preemptions": "vllm:num_preemptions",
    "prefix_queries_tokens": "vllm:prefix_cache_queries",
    "prefix_hits_tokens": "vllm:prefix_cache_hits",
    "generation_tokens": "vllm:generation_tokens",
    "prompt_tokens": "vllm:prompt_tokens",
}

# x86 (AMX, AVX-512) and Arm.
_BFLOAT16_CAPABILITIES = ("amx_bf16", "avx512_bf16", "bf16")

_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 20.0
_LOG_TAIL_LINES = 25


class ServerError(RuntimeError):
    """The server did not start, or ended by itself."""


class VllmServer:
    """Starts ``vllm serve``, waits until it is healthy, and ends it.

    The server's output goes to `log_path`; its last lines are part of the error
    when the server does not come up.
    """

    def __init__(
        self,
        model: str,
        log_path: Path,
        flags: Sequence[str] = (),
        *,
        port: int | None = None,
    ) -> None:
        """Describe the server; entering the ``with`` block starts it."""
        dtype = fast_dtype(torch.cpu.get_capabilities())
        self.model = model
        self.log_path = log_path
        self.flags = (*COMMON_FLAGS, f"--dtype={dtype}", *flags)
        self.port = port or free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        # The same number of tokens in either type.
        self._kv_cache_gib = 2 if dtype == "float32" else 1
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def command(self) -> list[str]:
        """Return the command line, runnable as it is."""
        return [
            *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", self.model),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--served-model-name", SERVED_NAME, *self.flags),
        ]

    def __enter__(self) -> Self:
        """Start the process and wait for its health check."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log = self.log_path.open("wb")
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(self._kv_cache_gib),
        }
        try:
            # A group of its own, so that the engine processes end with the server.
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            self._wait_until_healthy()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the server and everything that it started."""
        self._stop()

    def kill(self) -> None:
        """End the server and what it started at once, as a crash would."""
        assert self._process is not None
        _signal_group(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def check_alive(self) -> None:
        """Raise when the server has ended by itself.

        Raises:
            ServerError: With the end of the server's log.
        """
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            raise ServerError(
                f"vllm serve ended with exit status {code}; the end of "
                f"{self.log_path}:\n{self.log_tail()}"
            )

    def log_tail(self) -> str:
        """Return the last lines of the server's log."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    def counters(self) -> dict[str, float]:
        """Return the present values of `COUNTERS`, summed over engines."""
        with urllib.request.urlopen(f"{self.base_url}/metrics", timeout=30) as answer:
            return parse_counters(answer.read().decode())

    def _wait_until_healthy(self) -> None:
        started = reported = time.monotonic()
        print(f"starting vllm serve (log: {self.log_path})", file=sys.stderr)
        while True:
            self.check_alive()
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{self.base_url}/health", timeout=5).close()
                break
            now = time.monotonic()
            if now - started > _START_TIMEOUT_S:
                raise ServerError(
                    f"vllm serve was not healthy after {_START_TIMEOUT_S:.0f} s; the "
                    f"end of {self.log_path}:\n{self.log_tail()}"
                )
            if now - reported >= 10:
                reported = now
                print(f"  still loading, {now - started:.0f} s", file=sys.stderr)
            time.sleep(0.5)
        print(f"  ready after {time.monotonic() - started:.0f} s", file=sys.stderr)

    def _stop(self) -> None:
        process = self._process
        if process is not None:
            _signal_group(process.pid, signal.SIGTERM)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                print("vllm serve ignores SIGTERM; killing it", file=sys.stderr)
            # Also ends engine processes that outlived the server itself.
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def fast_dtype(capabilities: Mapping[str, object]) -> str:
    """Return the type that this CPU computes natively.

    Without bfloat16 instructions a prefill in bfloat16 takes about five times as long
    as one in float32, and the benchmark would measure the emulation.

    Args:
        capabilities: ``torch.cpu.get_capabilities()``.
    """
    native = any(capabilities.get(name) for name in _BFLOAT16_CAPABILITIES)
    return "bfloat16" if native else "float32"


def free_port() -> int:
    """Return a TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def parse_counters(exposition: str) -> dict[str, float]:
    """Return `COUNTERS` from Prometheus text, 0 for those that are absent."""
    names = {family: name for name, family in COUNTERS.items()}
    values = dict.fromkeys(COUNTERS, 0.0)
    for family in text_string_to_metric_families(exposition):
        if family.name in names:
            values[names[family.name]] += sum(
                sample.value
                for sample in family.samples
                if sample.name.endswith("_total")
            )
    return values


def growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return how much every counter grew."""
    return {name: after[name] - before[name] for name in after}
