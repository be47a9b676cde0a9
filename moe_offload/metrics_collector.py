# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Shows the engine cores' metrics on the API server's own ``/metrics``.

Registered in every process that loads the plugin. A process whose engine
cores do not use it has no files, and its ``/metrics`` stays as it was.
"""

import atexit
import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import REGISTRY, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from .metrics_textfile import PLUGIN, default_directory, file_prefix, open_directory

logger = logging.getLogger(f"vllm.plugins.{PLUGIN}")

# Clocks of file systems are coarser than the system's.
FILE_TIME_SLACK_S = 1.0


class EngineMetricsCollector(Collector):
    """Yields what this process's engine cores wrote last."""

    def __init__(self, directory: Path | None = None) -> None:
        """Remember where to look.

        Args:
            directory: Where the engine cores write; the shared default if None.
        """
        self._directory = directory
        # Plugins load before engines start: an older file was left over by an
        # earlier process that had the same number.
        self._since_s = time.time() - FILE_TIME_SLACK_S
        self._reported = False

    def describe(self) -> Iterable[Metric]:
        """Name no metric up front: without engine files there are none."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Merge the families of all engine cores of this process."""
        families: dict[str, Metric] = {}
        try:
            for text in self._texts():
                for family in text_string_to_metric_families(text):
                    _merge(families, family)
        except (OSError, ValueError) as error:
            self._report(error)
            return
        yield from families.values()

    def remove_files(self) -> None:
        """Remove what this process's engine cores left.

        At shutdown vLLM kills engine cores unless it was given a time to wait,
        so most of them cannot do it themselves.
        """
        try:
            for path in self._files():
                path.unlink(missing_ok=True)
        except OSError as error:
            self._report(error)

    def _files(self) -> list[Path]:
        directory = self._directory or default_directory()
        if not directory.exists():
            return []
        open_directory(directory, create=False)
        return sorted(directory.glob(f"{file_prefix(os.getpid())}*.prom"))

    def _texts(self) -> Iterator[str]:
        for path in self._files():
            try:
                if path.stat().st_mtime >= self._since_s:
                    yield path.read_text(encoding="utf-8")
            except FileNotFoundError:
                continue  # the engine core shut down in between

    def _report(self, error: Exception) -> None:
        if not self._reported:
            self._reported = True
            logger.warning(
                "%s: the engine core's metrics cannot be read (%s); /metrics lacks "
                "them until that is mended.",
                PLUGIN,
                error,
            )


def register_collector(registry: CollectorRegistry = REGISTRY) -> None:
    """Add the collector to ``registry`` unless it has one already."""
    known = registry._collector_to_names
    if not any(isinstance(collector, EngineMetricsCollector) for collector in known):
        collector = EngineMetricsCollector()
        registry.register(collector)
        atexit.register(collector.remove_files)


def _merge(families: dict[str, Metric], family: Metric) -> None:
    """Join a family to the one of the same name, so each is declared once."""
    # Creation times are a separate family each in this text format; vLLM's
    # own series do not need them and neither do ours.
    if family.name.endswith("_created"):
        return
    known = families.setdefault(family.name, family)
    if known is not family:
        known.samples.extend(family.samples)
