# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What ``/metrics`` says: that hash attention runs, and what it spares.

Workers count, the API server shows; ``metrics_textfile`` and ``metrics_collector``
carry the values across.
"""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter

from .metrics_process import server_process_id
from .metrics_textfile import TextfileExporter
from .steps import StepCounts

_LABELS = ("model_name",)


class StepMetrics:
    """Publishes what the steps of a worker did.

    Args:
        counts: Of this process.
        model_name: The name vLLM serves the model under.
        row_bytes: Of a key and its value in all sparse layers and KV heads of this
            rank.
        code_bytes: Of its codes.
    """

    def __init__(
        self,
        counts: StepCounts,
        model_name: str,
        row_bytes: int,
        code_bytes: int,
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._counts = counts
        self._bytes = row_bytes, code_bytes
        self._decoded = self._counter(
            "decode_tokens",
            "Decoded tokens by how their context was read.",
            model_name,
            read=("sparse", "dense"),
        )
        self._context = self._counter(
            "context_tokens",
            "Tokens of contexts of decoded tokens: held in the cache, and read.",
            model_name,
            tokens=("held", "read"),
        )
        self._saved = self._counter(
            "saved_bytes",
            "Bytes of keys and values that were not read, less those of codes.",
            model_name,
            kind=("kv",),
        )
        self._exporter = TextfileExporter(self.registry, server_pid=server_process_id())
        self._before = StepCounts()

    def publish(self) -> None:
        """Add what was counted since the last call."""
        now, before = self._counts, self._before
        sparse_held = now.tokens_scanned - before.tokens_scanned
        spared = (now.tokens_held - now.tokens_read) - (
            before.tokens_held - before.tokens_read
        )
        row_bytes, code_bytes = self._bytes
        self._decoded["sparse"].inc(now.sparse - before.sparse)
        self._decoded["dense"].inc(now.dense - before.dense)
        self._context["held"].inc(now.tokens_held - before.tokens_held)
        self._context["read"].inc(now.tokens_read - before.tokens_read)
        saved = spared * row_bytes - sparse_held * code_bytes
        self._saved["kv"].inc(max(saved, 0))
        self._before = now.copy()
        self._exporter.maybe_write(time.monotonic())

    def _counter(
        self, name: str, text: str, model_name: str, **label: tuple[str, ...]
    ) -> dict[str, Counter]:
        [(key, values)] = label.items()
        counter = Counter(
            f"vllm:hashattn_{name}", text, (*_LABELS, key), registry=self.registry
        )
        return {value: counter.labels(model_name, value) for value in values}
