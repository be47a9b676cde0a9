# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The command plans and simulates from files, and says what is wrong with them."""

import json
from pathlib import Path

import pytest

from moe_offload.cli import main
from moe_offload.machine import Machine, Tier
from moe_offload.model_shape import ModelShape
from moe_offload.operation_times import timed_schedules
from moe_offload.operations import Kind
from moe_offload.policy import Policy
from moe_offload.simulation import simulate

MIXTRAL = {
    "model_type": "mixtral",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
MACHINE = Machine(
    device=Tier("some GPU", 20e9, 250e9, 60e12),
    host=Tier("some CPU", 180e9, 80e9, 1e12),
    up_bytes_per_s=12e9,
    down_bytes_per_s=12e9,
    host_attention_bytes_per_s=50e9,
    expert_flops_per_s=50e12,
    dense_flops_per_s=50e12,
    launch_s=50e-6,
)


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    """Arguments about a model and a machine."""
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL), "utf-8")
    machine = tmp_path / "machine.json"
    MACHINE.write(machine)
    return [
        *("--model", str(tmp_path), "--machine", str(machine)),
        *("--prompt-tokens", "77", "--generated-tokens", "128"),
    ]


def test_a_plan_in_words_and_for_programs(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *asked]) == 0
    words = capsys.readouterr().out
    assert main(["plan", *asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["missing_bytes"] == {}
    assert str(found["policy"]["batch"]) in words.replace(",", "")
    assert found["estimate"]["throughput_tokens_per_s"] > 0
    assert main(["plan", *asked, "--json", "--batch", "96"]) == 0
    fixed = json.loads(capsys.readouterr().out)
    assert fixed["policy"]["batch"] == 96
    speeds = [each["estimate"]["throughput_tokens_per_s"] for each in (found, fixed)]
    assert speeds[0] > speeds[1]


def test_schedules_are_compared(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traces = tmp_path / "traces"
    sizes = ["--batch", "504", "--micro-batch", "36"]
    assert main(["simulate", *asked, *sizes, "--json", "--trace", str(traces)]) == 0
    rows = {row["schedule"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ["cgopipe", "s2", "s3", "s4", "no-prefetch"]
    fastest = min(row["step_s"] for row in rows.values())
    assert rows["cgopipe"]["step_s"] <= 1.001 * fastest
    for name, row in rows.items():
        assert row["bound_s"] <= row["step_s"] * 1.000001
        trace = json.loads((traces / f"{name}.json").read_text("utf-8"))
        assert trace["traceEvents"]
    assert main(["simulate", *asked, *sizes]) == 0
    table = capsys.readouterr().out
    assert "504 requests in 14 micro-batches" in table
    assert table.count("x\n") == len(rows)


def test_simulated_pages_take_as_long_as_all_bytes_together() -> None:
    shape = ModelShape.from_config(MIXTRAL)
    policy = Policy(504, 36, False, True, 0.0, 1.0, 0.0, 0.0)
    order, seconds = timed_schedules(shape, MACHINE, policy, 141.0, 1)["cgopipe"]
    pages = [each for each in order.operations if each.kind is Kind.LOAD_PAGES]
    moved_s = sum(seconds(each) for each in pages)
    expected = shape.layers * shape.layer_expert_bytes / MACHINE.up_bytes_per_s
    launches = len(pages) * MACHINE.launch_s
    assert moved_s == pytest.approx(expected + launches)
    assert simulate(order, seconds).makespan_s >= moved_s


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--machine", "nowhere.json"], "nowhere.json"),
        (["--batch", "9", "--micro-batch", "10"], "micro-batches of 10"),
        (["--prompt-tokens", "0"], "prompt_tokens=0.0"),
    ],
)
def test_mistakes_end_with_a_sentence(
    asked: list[str],
    change: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", *asked, *change]) == 1
    error = capsys.readouterr().err
    assert error.startswith("vllm-moe-offload: ")
    assert sentence in error
    assert "Traceback" not in error


def test_bad_usage_is_another_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["plan"])
    assert left.value.code == 2
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    assert "simulate" in capsys.readouterr().out
