# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which process serves ``/metrics``, asked in a worker.

Plugins of the suite that count in a worker carry this file unchanged; a test keeps the
copies equal.
"""

from __future__ import annotations

from pathlib import Path

from .metrics_textfile import serving_process_id


def server_process_id() -> int:
    """Return the process that serves ``/metrics``.

    A worker is the child of an engine core, whose title says so, or of the server.
    """
    found = serving_process_id()
    while _title(found).startswith("VLLM::EngineCore"):
        found = _parent(found)
    return found


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _parent(pid: int) -> int:
    # After the name, which may hold anything in its brackets: state and parent.
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return int(fields[1])
