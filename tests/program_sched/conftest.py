# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""One real server with everything switched on, shared by the end-to-end tests."""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from benchmarks.program_sched.server import VllmServer

API_KEY = "test-key"
OTHER_KEY = "other-key"


@dataclass(frozen=True)
class ProgramServer:
    """A running `vllm serve` with the program scheduler."""

    base_url: str
    api_key: str
    client: httpx.Client
    server: VllmServer

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of one series on ``/metrics``."""
        from prometheus_client.parser import text_string_to_metric_families

        text = httpx.get(f"{self.base_url}/metrics", timeout=30).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
            and all(sample.labels.get(k) == v for k, v in labels.items())
        )


@pytest.fixture(scope="session")
def program_server(
    model_path: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProgramServer]:
    log = tmp_path_factory.mktemp("server") / "server.log"
    flags = (
        "--scheduler-cls=vllm_program_sched.ProgramScheduler",
        "--middleware=vllm_program_sched.ProgramHeaders",
        "--additional-config.program_sched.log_interval_s=1",
        "--api-key",
        API_KEY,
        OTHER_KEY,
    )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_PLUGINS", "program_sched")
        with (
            VllmServer(model_path, log, flags) as server,
            httpx.Client(
                base_url=server.base_url,
                headers={"Authorization": f"Bearer {API_KEY}"},
                timeout=120,
            ) as client,
        ):
            yield ProgramServer(server.base_url, API_KEY, client, server)
