# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Where reading a part begins to pay."""

import json
from pathlib import Path

import pytest
import torch

from vllm_hashattn.budget import Budget
from vllm_hashattn.calibration import Geometry, Timing, crossover, timings
from vllm_hashattn.cli import main
from vllm_hashattn.huge_pages import ask_for_huge_pages


def timing(tokens: int, dense_ms: float) -> Timing:
    return Timing(tokens, 10, dense_ms, 1.0)


def test_crossover_is_where_it_is_faster_from_then_on() -> None:
    found = [timing(512, 2.0), timing(1024, 0.9), timing(2048, 1.5), timing(4096, 3.0)]
    assert crossover(found) == 2048
    assert crossover(found[:2]) is None
    assert crossover([]) is None


def test_both_are_really_timed() -> None:
    geometry = Geometry(4, 2, 64)
    budget = Budget(0.05, min_tokens=64, sink_tokens=16, recent_tokens=16)
    found = list(timings(geometry, budget, batch=2, contexts=(256, 2048)))
    assert [each.context_tokens for each in found] == [256, 2048]
    assert [each.read_tokens for each in found] == [64, 103]
    assert all(each.dense_ms > 0 and each.sparse_ms > 0 for each in found)


def test_geometry_is_that_of_the_model(model_path: str, tmp_path: Path) -> None:
    assert Geometry.of_model(Path(model_path)) == Geometry(9, 3, 64)
    with pytest.raises(ValueError, match="no folder of a model"):
        Geometry.of_model(tmp_path)


def test_the_command_prints_what_to_set(
    model_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    try:
        assert main(["calibrate", "--model", model_path, "--json"]) == 0
    finally:
        torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out)
    assert [row["context_tokens"] for row in found["timings"]][:2] == [512, 1024]
    lengths = {row["context_tokens"] for row in found["timings"]}
    assert found["dense_below"] is None or found["dense_below"] in lengths


def test_large_pages_leave_contents_alone() -> None:
    tensor = torch.arange(1 << 20)
    ask_for_huge_pages(tensor)
    assert torch.equal(tensor, torch.arange(1 << 20))
    assert not ask_for_huge_pages(torch.zeros(4))
