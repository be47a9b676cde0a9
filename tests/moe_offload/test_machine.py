# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A machine survives its file, and a wrong one is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from moe_offload.machine import Machine, Tier
from tests.moe_offload.planner_cases import l4

WITH_DISK = replace(
    l4(),
    disk_bytes_per_s=3e9,
    disk_capacity_bytes=1e12,
    about={"hardware": "a test", "versions": {"torch": "2.13"}, "when": 1.5},
)


@pytest.mark.parametrize("machine", [l4(), WITH_DISK])
def test_a_machine_survives_its_file(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "machine.json"
    machine.write(file)
    assert Machine.read(file) == machine
    assert Machine.read(str(file)).about == machine.about


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "1", None])
@pytest.mark.parametrize(
    "name",
    [
        "up_bytes_per_s",
        "down_bytes_per_s",
        "host_attention_bytes_per_s",
        "expert_flops_per_s",
        "dense_flops_per_s",
    ],
)
def test_rates_are_positive_numbers(name: str, value: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=f"^moe_offload: .*{name}=.*positive"):
        replace(l4(), **{name: value})


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), True])
@pytest.mark.parametrize(
    "name", ["capacity_bytes", "bandwidth_bytes_per_s", "flops_per_s"]
)
def test_tiers_are_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^moe_offload: .*'L4'.*{name}="):
        replace(l4().device, **{name: value})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"launch_s": -1e-6}, "launch_s="),
        ({"launch_s": float("nan")}, "launch_s="),
        ({"disk_capacity_bytes": 1e12}, "disk_bytes_per_s=None"),
        ({"disk_capacity_bytes": None}, "disk_capacity_bytes=None"),
        ({"disk_bytes_per_s": 3e9}, "disk_capacity_bytes=0.0"),
        ({"disk_bytes_per_s": -3e9, "disk_capacity_bytes": 1.0}, "disk_bytes_per_s=-"),
    ],
)
def test_what_cannot_be_a_machine(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^moe_offload: .*{sentence}"):
        replace(l4(), **changes)


def test_a_tier_has_a_name() -> None:
    with pytest.raises(ValueError, match=r"^moe_offload: .*name=''"):
        Tier("", 1.0, 1.0, 1.0)


def test_peaks_stand_for_rates() -> None:
    measured = l4()
    found = Machine.from_datasheet(measured.device, measured.host, 16e9)
    assert found.up_bytes_per_s == found.down_bytes_per_s == 16e9
    assert found.host_attention_bytes_per_s == measured.host.bandwidth_bytes_per_s
    assert found.expert_flops_per_s == found.dense_flops_per_s == 104e12
    assert found.launch_s == 0.0
    assert not found.is_measured
    assert measured.is_measured
    other = Machine.from_datasheet(measured.device, measured.host, 16e9, 8e9, 3e9, 1e12)
    assert (other.down_bytes_per_s, other.disk_bytes_per_s) == (8e9, 3e9)


def test_numbers_are_multiplied() -> None:
    machine = l4()
    found = machine.scaled(2.0, "up_bytes_per_s", "device.capacity_bytes")
    assert found.up_bytes_per_s == 2 * machine.up_bytes_per_s
    assert found.device.capacity_bytes == 2 * machine.device.capacity_bytes
    back = found.scaled(0.5, "up_bytes_per_s", "device.capacity_bytes")
    assert back == machine


def _file(tmp_path: Path, change: dict[str, Any], without: str = "") -> Path:
    content = {"format": "moe_offload machine", "version": 1, **asdict(l4()), **change}
    content.pop(without, None)
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(content))
    return file


def test_the_file_is_what_the_other_tests_change(tmp_path: Path) -> None:
    assert Machine.read(_file(tmp_path, {})) == l4()


@pytest.mark.parametrize(
    ("change", "without", "sentence"),
    [
        ({"format": "else"}, "", "holds something else"),
        ({}, "format", "holds something else"),
        ({"version": 2}, "", "version 2.*reads version 1"),
        ({}, "version", "version None"),
        ({}, "up_bytes_per_s", r"lacks \['up_bytes_per_s'\]"),
        ({"speed": 1}, "", r"unknown \['speed'\]"),
        ({}, "device", "of tier it lacks"),
        ({"host": 3}, "", "of tier it lacks"),
        ({"host": {**asdict(l4().host), "flops_per_s": float("nan")}}, "", "flops_per"),
        ({"up_bytes_per_s": -5}, "", "up_bytes_per_s=-5"),
    ],
)
def test_wrong_files_are_refused(
    tmp_path: Path, change: dict[str, Any], without: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^moe_offload: (?s:.*){sentence}") as caught:
        Machine.read(_file(tmp_path, change, without))
    assert "machine.json" in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_files_of_no_machine_are_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "machine.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=r"^moe_offload: asked to read a machine"):
        Machine.read(file)
