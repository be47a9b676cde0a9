# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What is said of a policy is what was calculated."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest

from moe_offload.estimate import Estimate, estimate
from moe_offload.machine import Machine
from moe_offload.policy import Policy, Workload
from moe_offload.policy_gains import gains, turning_points
from moe_offload.policy_search import best_policy
from moe_offload.policy_words import as_json, explain
from moe_offload.roofline import expert_intensity
from tests.moe_offload.planner_cases import GIB, MIXTRAL_8X7B, TINY, l4, streaming

WORKLOAD = Workload(77, 128)


def of(machine: Machine, policy: Policy) -> Estimate:
    return estimate(MIXTRAL_8X7B, machine, WORKLOAD, policy)


def words(machine: Machine, policy: Policy) -> str:
    found = of(machine, policy)
    return explain(MIXTRAL_8X7B, machine, WORKLOAD, policy, found)


@pytest.fixture(scope="module")
def best() -> tuple[Policy, Estimate]:
    return best_policy(MIXTRAL_8X7B, l4(), WORKLOAD)


def test_placement_in_words(best: tuple[Policy, Estimate]) -> None:
    policy, found = best
    text = explain(MIXTRAL_8X7B, l4(), WORKLOAD, policy, found)
    assert text.startswith(f"{policy.batch} requests decode together, in ")
    many, size = policy.micro_batches, policy.micro_batch
    assert f"in {many} micro-batches of up to {size}." in text
    assert "Attention is computed on the CPU, experts on the device." in text
    assert "12.5% stay on the device, 87.5% lie in host memory." in text
    for name, used, has in (
        ("L4", found.device_bytes, l4().device.capacity_bytes),
        ("its host", found.host_bytes, l4().host.capacity_bytes),
    ):
        line = re.search(
            rf"^{name}: ([0-9.]+) of ([0-9.]+) GiB \((.*)\)\.$", text, re.M
        )
        assert line is not None
        assert float(line[1]) == pytest.approx(sum(used.values()) / GIB, abs=0.005)
        assert float(line[2]) == pytest.approx(has / GIB, abs=0.005)
        for item, size_bytes in used.items():
            assert (f"{item} {size_bytes / GIB:.2f}" in line[3]) == bool(size_bytes)
    assert "disk:" not in text
    assert "one micro-batch." in words(l4(), streaming(16, 16))
    assert "2 micro-batches of up to 16." in words(l4(), streaming(31, 16))


def test_limits_in_words(best: tuple[Policy, Estimate]) -> None:
    policy, found = best
    text = explain(MIXTRAL_8X7B, l4(), WORKLOAD, policy, found)
    assert f"Expected are {found.throughput_tokens_per_s:,.0f} tokens/s" in text
    assert f"{found.prefill_s:.1f} s of prefill, limited by the device" in text
    assert "Decoding is limited by the link to the device" in text
    assert f"needs {found.lane_s['link up'] * 1e3:.2f} ms for a layer" in text
    second = found.lane_s["device"] / found.lane_s["link up"]
    assert f"Next comes the device, with {second:.0%} of that" in text
    exposed = found.exposed_s / found.step_s
    assert f"{exposed:.1%} of a step overlaps nothing." in text


@pytest.mark.parametrize(
    ("number", "factor", "limit"),
    [
        ("host_attention_bytes_per_s", 0.01, "the CPU"),
        ("device.bandwidth_bytes_per_s", 0.01, "the device"),
        ("down_bytes_per_s", 1e-4, "the link to the host"),
        ("host.bandwidth_bytes_per_s", 0.01, "host memory"),
        ("up_bytes_per_s", 0.1, "the link to the device"),
    ],
)
def test_every_limit_has_words(number: str, factor: float, limit: str) -> None:
    text = words(l4().scaled(factor, number), streaming(2624, 164))
    assert f"Decoding is limited by {limit}: it needs" in text


def test_few_pages_have_words() -> None:
    machine = l4().scaled(0.1, "up_bytes_per_s").scaled(0.2, "device.flops_per_s")
    text = words(
        machine.scaled(0.06, "host_attention_bytes_per_s"), streaming(1600, 16)
    )
    assert "limited by the wait for pages, of which there are few, and the " in text


def test_small_numbers_are_not_rounded_away() -> None:
    speed = of(l4(), streaming(8, 8)).throughput_tokens_per_s
    assert 1.0 < speed < 2.0
    assert f"Expected are {speed:.2f} tokens/s" in words(l4(), streaming(8, 8))


@pytest.mark.parametrize(
    ("batch", "size", "side"),
    [
        (64, 8, "64 is below the first: experts on the CPU"),
        (1640, 164, "1640 is between: moving experts pays, and limits them"),
        (4000, 40, "4000 is above the second: the device limits experts"),
    ],
)
def test_sides_of_the_turning_points(batch: int, size: int, side: str) -> None:
    policy = streaming(batch, size)
    assert side in words(l4(), policy)
    points = turning_points(MIXTRAL_8X7B, l4(), policy)
    assert f"pays from {points.host_tokens:,.0f} tokens per step (P1)" in words(
        l4(), policy
    )


def test_turning_points_are_where_two_limits_meet() -> None:
    machine, policy = l4(), streaming(1640, 164)
    points = turning_points(MIXTRAL_8X7B, machine, policy)
    link = machine.up_bytes_per_s
    first = expert_intensity(MIXTRAL_8X7B, points.host_tokens)
    assert first * link == pytest.approx(machine.host.flops_per_s)
    second = expert_intensity(MIXTRAL_8X7B, points.device_tokens)
    local = expert_intensity(MIXTRAL_8X7B, 164) * 229e9
    assert second * link == pytest.approx(min(local, machine.expert_flops_per_s))
    assert points.balance_tokens == pytest.approx(points.device_tokens)
    # With larger micro-batches the device computes longer than it reads.
    large = turning_points(MIXTRAL_8X7B, machine, streaming(8000, 8000))
    assert large.balance_tokens > large.device_tokens
    # A fast link, or a disk to wait for, leaves nothing to the CPU.
    fast = machine.scaled(100.0, "up_bytes_per_s")
    assert turning_points(MIXTRAL_8X7B, fast, policy).host_tokens == 0.0


def test_a_disk_takes_the_place_of_the_link() -> None:
    machine = replace(l4(), disk_bytes_per_s=3e9, disk_capacity_bytes=200 * GIB)
    policy = replace(streaming(1640, 164), host_share=0.5, disk_share=0.5)
    points = turning_points(MIXTRAL_8X7B, machine, policy)
    without = turning_points(MIXTRAL_8X7B, machine, streaming(1640, 164))
    assert points.host_tokens == 0.0
    # Half of the experts come at 3 GB/s, all of them as if at 6.
    intensity = expert_intensity(MIXTRAL_8X7B, points.device_tokens)
    other = expert_intensity(MIXTRAL_8X7B, without.device_tokens)
    assert intensity / other == pytest.approx(12.3 / 6.0)
    # With half of them on the device, all that is streamed comes at 3 GB/s.
    policy = replace(policy, device_share=0.5, host_share=0.0)
    points = turning_points(MIXTRAL_8X7B, machine, policy)
    intensity = expert_intensity(MIXTRAL_8X7B, points.device_tokens)
    assert intensity / other == pytest.approx(12.3 / 3.0)
    policy = replace(policy, device_share=0.0, host_share=0.5)
    text = words(machine, policy)
    assert "50.0% lie on the disk" in text
    assert "Decoding is limited by the disk" in text
    assert "disk: 42.00 of 200.00 GiB (experts 42.00)." in text
    assert "disk bandwidth" in gains(
        MIXTRAL_8X7B, machine, WORKLOAD, policy, of(machine, policy)
    )


def test_a_model_that_stays_has_no_turning_points() -> None:
    assert "(P1)" not in words(l4(200.0), streaming(500, 250, 1.0))


def test_gains_are_those_of_a_better_machine(best: tuple[Policy, Estimate]) -> None:
    policy, found = best
    gained = gains(MIXTRAL_8X7B, l4(), WORKLOAD, policy, found)
    faster = of(l4().scaled(1.1, "up_bytes_per_s", "down_bytes_per_s"), policy)
    expected = faster.throughput_tokens_per_s / found.throughput_tokens_per_s - 1
    assert gained["link bandwidth"] == pytest.approx(expected)
    assert 0.05 < gained["link bandwidth"] <= 0.1
    # The batch is as large as host memory allows, and the link brings the experts once.
    assert 0.1 < gained["host memory"] < 0.2
    assert gained["CPU speed"] < 0.01
    assert min(gained.values()) >= 0.0
    assert "disk bandwidth" not in gained
    text = explain(MIXTRAL_8X7B, l4(), WORKLOAD, policy, found)
    assert f"link bandwidth +{expected:.1%}" in text
    order = re.findall(r"\+([0-9.]+)%", text)
    assert order == sorted(order, key=float, reverse=True)


def test_a_gain_of_nothing_is_said() -> None:
    # One token for each of few requests: no resource but launches takes time.
    machine = replace(l4(200.0), launch_s=10.0)
    assert "10 % more of any one thing gives nothing." in words(
        machine, streaming(8, 8, 1.0)
    )


def test_a_policy_that_no_search_finds_has_gains_all_the_same() -> None:
    # Its prompts are read in shorter passes than are searched for, and that is why it
    # fits: the machine has no byte to spare.
    policy = replace(streaming(8, 8), prefill_tokens=16)
    used = sum(of(l4(), policy).device_bytes.values())
    tier = replace(l4().device, capacity_bytes=used)
    machine = replace(l4(), device=tier)
    with pytest.raises(ValueError, match="moe_offload: "):
        best_policy(MIXTRAL_8X7B, machine, WORKLOAD, micro_batch=8)
    found = of(machine, policy)
    gained = gains(MIXTRAL_8X7B, machine, WORKLOAD, policy, found)
    assert gained["host memory"] == 0.0
    assert gained["link bandwidth"] > 0.0


def test_what_does_not_fit_is_said() -> None:
    policy = streaming(2624, 164)
    machine = l4(device_gib=8.0, host_gib=100.0)
    text = words(machine, policy)
    assert re.search(
        r"lacks [0-9.]+ GiB of device memory and [0-9.]+ GiB of host", text
    )
    assert "10 % more" not in text
    found = of(machine, policy)
    content = as_json(MIXTRAL_8X7B, machine, WORKLOAD, policy, found)
    assert set(content["missing_bytes"]) == {"device memory", "host memory"}
    assert content["gains_of_ten_percent"] == {}


def test_peaks_are_called_peaks() -> None:
    sheet = Machine.from_datasheet(l4().device, l4().host, 16e9)
    assert "peaks of datasheets" in words(sheet, streaming(2624, 164))
    assert "datasheets" not in words(l4(), streaming(2624, 164))


def test_programs_read_the_same(best: tuple[Policy, Estimate]) -> None:
    policy, found = best
    content = as_json(MIXTRAL_8X7B, l4(), WORKLOAD, policy, found)
    again = json.loads(json.dumps(content, allow_nan=False))
    assert again == content
    assert Policy(
        **{k: v for k, v in again["policy"].items() if k != "micro_batches"}
    ) == (policy)
    assert again["policy"]["micro_batches"] == policy.micro_batches
    assert Estimate(**again["estimate"]) == found
    assert again["missing_bytes"] == {}
    assert again["gains_of_ten_percent"]["link bandwidth"] > 0.05
    assert again["turning_points"]["host_tokens"] > 0.0


def test_infinity_is_null_in_json() -> None:
    # So little computing for each byte that no batch makes the device the limit.
    machine = l4().scaled(1e-6, "up_bytes_per_s")
    policy = streaming(4, 2)
    assert turning_points(TINY, machine, policy).device_tokens == math.inf
    found = estimate(TINY, machine, WORKLOAD, policy)
    content = as_json(TINY, machine, WORKLOAD, policy, found)
    assert content["turning_points"]["device_tokens"] is None
    text = explain(TINY, machine, WORKLOAD, policy, found)
    assert "the device limits them from no number of tokens (P2)" in text
