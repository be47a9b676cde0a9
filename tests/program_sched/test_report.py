# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The benchmark's numbers, tables and result file."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.program_sched import bench_programs, demo
from benchmarks.program_sched.control import machine_ratio
from benchmarks.program_sched.plot import plot_latency_cdf
from benchmarks.program_sched.policies import POLICIES, policy_named
from benchmarks.program_sched.records import CallRecord, ProgramRecord
from benchmarks.program_sched.report import (
    Cell,
    load_line,
    load_ratio,
    over_seeds,
    ratios,
    summarize,
    tables,
)
from benchmarks.program_sched.results import ResultFile
from benchmarks.program_sched.server import (
    ServerError,
    VllmServer,
    fast_dtype,
    growth,
    parse_counters,
)


def _cell(
    policy: str, latencies_s: list[float], *, seed: int = 1, load: float = 1.0
) -> Cell:
    rows = [
        ProgramRecord(
            f"chat-{seed}-{index:03d}",
            "chat",
            arrival_s=float(index),
            finish_s=index + latency_s,
            calls=[CallRecord("c0", index, index + latency_s, 50, 32, 10)],
        )
        for index, latency_s in enumerate(latencies_s)
    ]
    counters = {
        "preemptions": 3.0,
        "prefix_queries_tokens": 200.0,
        "prefix_hits_tokens": 128.0,
    }
    return Cell(policy, load, load / 4, seed, tuple(rows), counters, ("vllm", "serve"))


def test_summary_of_known_rows() -> None:
    summary = summarize(_cell("fcfs", [1.0, 2.0, 3.0, 10.0]))
    assert summary.mean_s == pytest.approx(4.0)
    assert summary.p50_s == pytest.approx(2.5)
    assert summary.token_mean_ms == pytest.approx(400.0)
    assert summary.makespan_s == pytest.approx(13.0)
    assert summary.throughput_tok_s == pytest.approx(40 / 13)
    assert summary.hit_rate == pytest.approx(0.64)
    assert (summary.preemptions, summary.programs, summary.failures) == (3, 4, 0)


def test_failures_are_counted_and_kept_out_of_latencies() -> None:
    cell = _cell("fcfs", [1.0, 2.0, 99.0])
    cell.programs[2].error = "HTTP 500"
    summary = summarize(cell)
    assert summary.failures == 1
    assert summary.programs == 3
    assert summary.mean_s == pytest.approx(1.5)


def test_no_finished_program_is_an_error_with_the_reasons() -> None:
    cell = _cell("fcfs", [1.0])
    cell.programs[0].error = "HTTP 401: no key"
    with pytest.raises(ValueError, match="HTTP 401: no key"):
        summarize(cell)


def test_ratios_are_paired_by_seed() -> None:
    base = {1: summarize(_cell("fcfs", [10.0])), 2: summarize(_cell("fcfs", [100.0]))}
    mine = {1: summarize(_cell("ours", [5.0])), 2: summarize(_cell("ours", [80.0]))}
    mean = ratios(mine, base)["mean_s"]
    assert (mean.low, mean.median, mean.high) == pytest.approx((0.5, 0.65, 0.8))
    assert "preemptions" not in ratios(mine, base)
    assert over_seeds(base.values())["mean_s"].median == pytest.approx(55.0)


def test_tables_hold_values_and_ratios_for_every_load() -> None:
    cells = [
        _cell(policy, [scale * load, 2 * scale], seed=seed, load=load)
        for load in (0.5, 1.0)
        for seed in (1, 2)
        for policy, scale in (("srpt", 1.0), ("fcfs", 4.0))
    ]
    text = tables(cells)
    assert "0.5 x capacity (0.12 program arrivals/s), 2 programs, median of 2" in text
    assert text.count("SRPT oracle") == 6
    assert text.index("vLLM default") < text.index("SRPT oracle")
    assert "0.25-0.25" in text


def test_load_ratio_compares_the_same_programs() -> None:
    loaded = _cell("fcfs", [8.0, 100.0, 4.0])
    alone = _cell("fcfs", [2.0, 1.0, 1.0])
    kept = tuple(
        dataclasses.replace(row, program_id=f"{row.program_id}@alone")
        for index, row in enumerate(alone.programs)
        if index != 1
    )
    alone = dataclasses.replace(alone, programs=kept)
    assert load_ratio(loaded, alone) == pytest.approx(12 / 3)
    assert load_ratio(loaded, dataclasses.replace(alone, programs=())) is None


def test_a_result_file_resumes_and_refuses_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "out" / "results.json"
    cell = _cell("fcfs", [1.0, 2.0])
    first = ResultFile(path, {"model": "m", "mix": (0.6, 0.4)})
    first.add(cell)
    first.add(_cell("fcfs", [0.5]), unloaded=True)
    again = ResultFile(path, {"model": "m", "mix": (0.6, 0.4)})
    assert again.cells == [cell]
    assert len(again.unloaded) == 1
    assert again.has("fcfs", 1.0, 1)
    assert not again.has("fcfs", 1.0, 2)
    with pytest.raises(ValueError, match="measured with another mix"):
        ResultFile(path, {"model": "m", "mix": (0.5, 0.5)})
    data = json.loads(path.read_text())
    assert data["summaries"][0]["mean_s"] == 1.5
    assert {"cpu", "cores", "commit", "versions"} <= data["environment"].keys()


def test_a_result_file_of_another_machine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    ResultFile(path, {"model": "m"}).add(_cell("fcfs", [1.0]))
    data = json.loads(path.read_text())
    data["environment"]["cpu"] = "Z80"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"another machine \(cpu: Z80"):
        ResultFile(path, {"model": "m"})


def test_a_broken_result_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="is not a result file"):
        ResultFile(path, {})
    assert path.read_text() == "{"


def test_the_plot_is_written_as_png_and_svg(tmp_path: Path) -> None:
    cells = [_cell(name, [1.0, 3.0]) for name in ("fcfs", "srpt")]
    png, svg = plot_latency_cdf(cells, tmp_path / "latency_cdf")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()


def test_counters_are_summed_over_engines_and_subtracted() -> None:
    text = (
        "# TYPE vllm:num_preemptions_total counter\n"
        'vllm:num_preemptions_total{engine="0"} 3.0\n'
        'vllm:num_preemptions_total{engine="1"} 4.0\n'
        'vllm:num_preemptions_created{engine="0"} 1.7e9\n'
    )
    values = parse_counters(text)
    assert values["preemptions"] == 7
    assert values["generation_tokens"] == 0
    assert growth({**values, "preemptions": 5.0}, values)["preemptions"] == 2


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx2": True, "avx512_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({}, "float32"),
    ],
)
def test_servers_use_the_type_that_the_cpu_computes(
    capabilities: dict[str, object], dtype: str
) -> None:
    assert fast_dtype(capabilities) == dtype


def test_calls_that_ran_alone_tell_how_fast_the_machine_was() -> None:
    def cell(call_s: float, overlapping: bool) -> Cell:
        rows = [
            ProgramRecord(
                f"chat-1-{index:03d}",
                "chat",
                arrival_s=10.0 * index,
                calls=[CallRecord("c0", 10.0 * index, 10.0 * index + call_s)],
            )
            for index in range(12)
        ]
        if overlapping:
            # Starts in the middle of the last call, so that one does not count.
            rows[0].calls.append(CallRecord("c1", 110.5, 400.0))
        return Cell("fcfs", 0.3, 0.1, 1, tuple(rows), {})

    assert machine_ratio(cell(3.0, False), cell(2.0, False)) == pytest.approx(1.5)
    assert machine_ratio(cell(3.0, True), cell(2.0, False)) == pytest.approx(1.5)
    few = dataclasses.replace(cell(2.0, False), programs=cell(2.0, False).programs[:5])
    assert machine_ratio(few, few) is None


def test_load_line_needs_the_unloaded_runs() -> None:
    cells = [_cell("fcfs", [8.0, 4.0], load=3.0)]
    assert load_line(3.0, cells, []) is None
    line = load_line(3.0, cells, [_cell("fcfs", [2.0, 1.0], load=0.0)])
    assert line is not None
    assert "4.0 (4.0 to 4.0) times" in line


def test_every_policy_is_one_server_and_one_hint() -> None:
    assert policy_named("fcfs").server_flags == ()
    assert policy_named("srpt").hints == "oracle"
    assert (
        "--additional-config.program_sched.policy" not in POLICIES["ours"].server_flags
    )
    with pytest.raises(ValueError, match="'lottery' is not known; choose from fcfs"):
        policy_named("lottery")


@pytest.mark.parametrize("command", [demo.main, bench_programs.main])
def test_a_missing_model_ends_with_one_sentence(
    command: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MODEL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert callable(command)
    assert command(["--out", str(tmp_path / "out")]) == 1
    assert "Run `make setup`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.vllm
def test_a_server_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with (
        pytest.raises(ServerError, match="ended with exit status") as caught,
        VllmServer(str(tmp_path / "no-model"), log),
    ):
        pytest.fail("the server started without a model")
    assert "no-model" in str(caught.value)
