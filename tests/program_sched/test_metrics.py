# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
import multiprocessing
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vllm_program_sched.metrics import (
    MAX_LEVELS,
    ProgramMetrics,
    ServiceUnit,
    TextfileExporter,
)
from vllm_program_sched.metrics_collector import (
    EngineMetricsCollector,
    register_collector,
)
from vllm_program_sched.metrics_textfile import (
    default_directory,
    file_name,
    open_directory,
    remove_stale_files,
)

LABELS = {"model_name": "m", "engine": "0"}


class ProgramServer(Protocol):
    """A running server, see the fixture ``program_server``."""

    base_url: str
    api_key: str
    client: httpx.Client


def filled(engine_index: int = 0, unit: ServiceUnit = "tokens") -> ProgramMetrics:
    """Metrics in which every method was called."""
    metrics = ProgramMetrics("m", engine_index, unit)
    metrics.program_finished(2.0, 1.0, 300.0, "end")
    metrics.call_finished(0.5, 100.0)
    metrics.preempted("slots")
    metrics.recomputed(64)
    metrics.promoted()
    metrics.identity_error()
    metrics.fault()
    metrics.set_live_programs(3)
    metrics.set_calls(0, "waiting", 5)
    return metrics


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, {**LABELS, **labels})


def served(directory: Path) -> str:
    """What ``/metrics`` of this process would show."""
    registry = CollectorRegistry()
    registry.register(EngineMetricsCollector(directory))
    return generate_latest(registry).decode()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the expected change did not come"
        time.sleep(0.01)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return open_directory(tmp_path / "metrics")


def test_every_event_is_counted() -> None:
    registry = filled().registry
    for name, expected in {
        "latency_seconds_sum": 2.0,
        "wait_seconds_sum": 1.0,
        "service_tokens_sum": 300.0,
        "call_wait_seconds_sum": 0.5,
        "call_service_tokens_sum": 100.0,
        "recomputed_tokens_total": 64.0,
        "promotions_total": 1.0,
        "identity_errors_total": 1.0,
        "scheduler_faults_total": 1.0,
        "live": 3.0,
    }.items():
        assert value(registry, f"vllm:program_{name}") == expected, name
    assert value(registry, "vllm:program_finished_total", reason="end") == 1
    assert value(registry, "vllm:program_preemptions_total", reason="slots") == 1
    assert value(registry, "vllm:program_calls", level="0", state="waiting") == 5


def test_time_as_service_is_exported_in_seconds() -> None:
    registry = filled(unit="time").registry
    assert value(registry, "vllm:program_service_seconds_sum") == pytest.approx(0.3)
    assert value(registry, "vllm:program_service_tokens_sum") is None


def test_levels_are_bounded() -> None:
    metrics = ProgramMetrics("m")
    for level in range(MAX_LEVELS):
        metrics.set_calls(level, "running", 1)
    for level in (-1, MAX_LEVELS):
        with pytest.raises(ValueError, match="configure fewer levels"):
            metrics.set_calls(level, "running", 1)


def test_labels_are_few_and_fixed() -> None:
    labels = {
        name
        for family in filled().registry.collect()
        for sample in family.samples
        for name in sample.labels
    }
    assert labels == {"model_name", "engine", "reason", "level", "state", "le"}


def test_what_is_written_is_what_is_served(directory: Path) -> None:
    metrics = filled()
    exporter = TextfileExporter(metrics.registry, directory=directory, interval_s=0.01)
    try:
        assert exporter.path is not None
        exporter.maybe_write(1.0)
        wait_for(exporter.path.exists)
        text = served(directory)
        expected = [
            line
            for line in generate_latest(metrics.registry).decode().splitlines()
            if "_created" not in line
        ]
        assert text.splitlines() == expected
        assert exporter.path.stat().st_mode & 0o777 & 0o022 == 0
    finally:
        exporter.close()
    assert list(directory.iterdir()) == []
    assert served(directory) == ""


def test_last_change_is_written_though_steps_stop(directory: Path) -> None:
    metrics = ProgramMetrics("m")
    exporter = TextfileExporter(metrics.registry, directory=directory, interval_s=0.05)
    try:
        for step in range(5):
            metrics.promoted()
            exporter.maybe_write(float(step))
        wait_for(lambda: "vllm:program_promotions_total" in served(directory))
        metrics.promoted()
        exporter.maybe_write(5.0)
        pattern = re.compile(r"^vllm:program_promotions_total\{.*\} 6\.0$", re.M)
        wait_for(lambda: pattern.search(served(directory)) is not None)
    finally:
        exporter.close()


def test_idle_engine_writes_nothing(directory: Path) -> None:
    exporter = TextfileExporter(
        ProgramMetrics("m").registry, directory=directory, interval_s=0.01
    )
    try:
        time.sleep(0.2)
        assert list(directory.iterdir()) == []
    finally:
        exporter.close()


def test_engines_are_merged_into_one_family(directory: Path) -> None:
    exporters = [
        TextfileExporter(
            filled(index).registry, index, directory=directory, interval_s=0.01
        )
        for index in range(2)
    ]
    try:
        for exporter in exporters:
            exporter.maybe_write(1.0)
        wait_for(lambda: len(list(directory.glob("*.prom"))) == 2)
        text = served(directory)
    finally:
        for exporter in exporters:
            exporter.close()
    assert text.count("# TYPE vllm:program_live gauge") == 1
    families = {f.name: f for f in text_string_to_metric_families(text)}
    engines = [s.labels["engine"] for s in families["vllm:program_live"].samples]
    assert engines == ["0", "1"]


def test_engine_core_is_a_child_of_the_server(directory: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        from vllm_program_sched.metrics import ProgramMetrics, TextfileExporter

        def engine_core(directory):
            metrics = ProgramMetrics("m")
            metrics.promoted()
            exporter = TextfileExporter(
                metrics.registry, directory=directory, interval_s=0.01)
            exporter.maybe_write(1.0)
            while not exporter.path.exists():
                time.sleep(0.01)
            print(exporter.path.name, flush=True)

        if __name__ == "__main__":
            import multiprocessing, os
            print(os.getpid(), flush=True)
            child = multiprocessing.get_context("spawn").Process(
                target=engine_core, args=(Path(sys.argv[1]),))
            child.start()
            child.join()
    """
    path = directory.parent / "parent.py"
    path.write_text(textwrap.dedent(script), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(path), str(directory)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    server, name = done.stdout.split()
    assert name == file_name(int(server), 0)
    assert list(directory.iterdir()) == [], "the file is removed at exit"


def test_file_of_an_earlier_process_is_not_shown(directory: Path) -> None:
    path = directory / file_name(os.getpid(), 0)
    path.write_bytes(generate_latest(filled().registry))
    os.utime(path, (0, 0))
    assert served(directory) == ""
    os.utime(path)
    assert "vllm:program_live" in served(directory)


def test_server_removes_what_killed_engines_left(directory: Path) -> None:
    own = directory / file_name(os.getpid(), 0)
    other = directory / file_name(os.getppid(), 0)
    for path in (own, other):
        path.touch()
    EngineMetricsCollector(directory).remove_files()
    assert list(directory.iterdir()) == [other]
    EngineMetricsCollector(directory / "absent").remove_files()


def test_files_of_dead_servers_are_removed(directory: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=os.getpid)
    child.start()
    child.join()
    assert child.pid is not None
    stale = directory / file_name(child.pid, 0)
    own = directory / file_name(os.getpid(), 0)
    foreign = directory / f"1-{child.pid}.0.prom"
    for path in (stale, own, foreign):
        path.touch()
    remove_stale_files(directory)
    assert set(directory.iterdir()) == {own, foreign}


@pytest.mark.parametrize("kind", ["open to others", "link", "file"])
def test_directory_that_others_may_write_is_not_used(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "d"
    if kind == "open to others":
        path.mkdir()
        path.chmod(0o777)
    elif kind == "link":
        (tmp_path / "real").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "real")
    else:
        path.touch()
    with pytest.raises(OSError):
        open_directory(path)
    exporter = TextfileExporter(ProgramMetrics("m").registry, directory=path)
    exporter.maybe_write(1.0)
    exporter.close()
    assert exporter.path is None
    assert served(path) == ""


def test_damaged_file_costs_metrics_only(directory: Path) -> None:
    (directory / file_name(os.getpid(), 0)).write_bytes(b'x{="1" \xff')
    assert served(directory) == ""


def test_collector_is_registered_once_and_shows_nothing_without_engines() -> None:
    registry = CollectorRegistry()
    before = generate_latest(registry)
    register_collector(registry)
    register_collector(registry)
    assert len(registry._collector_to_names) == 1
    assert generate_latest(registry) == before


def test_default_directory_is_the_users_own() -> None:
    assert str(os.getuid()) in default_directory().name


@pytest.mark.parametrize("processes", [2])
def test_multiprocess_mode_needs_no_file(tmp_path: Path, processes: int) -> None:
    """With several API servers prometheus_client shares the values itself."""
    shared = tmp_path / "shared"
    shared.mkdir()
    script = """
        import sys
        from pathlib import Path
        from vllm_program_sched.metrics import ProgramMetrics, TextfileExporter
        metrics = ProgramMetrics("m")
        metrics.set_live_programs(7)
        metrics.promoted()
        exporter = TextfileExporter(metrics.registry, directory=Path(sys.argv[1]))
        exporter.maybe_write(1.0)
        assert exporter.path is None
        exporter.close()
    """
    environment = {
        **os.environ,
        "PROMETHEUS_MULTIPROC_DIR": str(shared),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "none")]
    for _ in range(processes):
        subprocess.run(command, check=True, env=environment, timeout=60)
    from prometheus_client import multiprocess

    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(shared))  # type: ignore[no-untyped-call]
    assert value(registry, "vllm:program_live") == 7
    assert value(registry, "vllm:program_promotions_total") == processes
    assert not (tmp_path / "none").exists()


@pytest.mark.vllm
def test_metrics_cross_to_the_api_server(program_server: ProgramServer) -> None:
    model = program_server.client.get("/v1/models").json()["data"][0]["id"]

    def count(name: str) -> float:
        text = httpx.get(f"{program_server.base_url}/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"vllm:program_{name}"
        )

    before = count("call_wait_seconds_count")
    for _ in range(3):
        answer = program_server.client.post(
            "/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 2}
        )
        assert answer.status_code == 200, answer.text
    wait_for(lambda: count("call_wait_seconds_count") >= before + 3)
    wait_for(lambda: count("calls") == 0)  # an idle server shows no calls
    text = httpx.get(f"{program_server.base_url}/metrics").text
    assert text.count("# TYPE vllm:program_live gauge") == 1
