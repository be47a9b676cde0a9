# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Engines whose experts do not fit answer as those whose experts do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.moe_offload.models import SHAPES, make_model

Run = dict[str, Any]


def gib_for(name: str, resident: int = 0) -> float:
    """Memory for two layers of a model's experts, and so many of each that stay."""
    shape = SHAPES[name]
    expert = 3 * 128 * shape["intermediate"] * 4
    slots = 2 * shape["experts"] + resident * (shape["layers"] - 2)
    return (slots * expert + 1) / 2**30


def cases(models: dict[str, str], disk: str) -> dict[str, Run]:
    """All runs; those of a model without options are what others are compared with."""
    found: dict[str, Run] = {}
    for name, model in models.items():
        on_disk = {"disk": disk} if name.endswith(("top1", "moe")) else {}
        # Without options it is vLLM alone.
        found[f"{name} plain"] = {"model": model}
        found[f"{name} offload"] = {
            "model": model,
            "options": {
                "enabled": True,
                "device_memory_gib": gib_for(name, SHAPES[name]["layers"] % 2),
                "micro_batches": 3,
                **on_disk,
            },
        }
    found["qwen3_moe again"] = found["qwen3_moe offload"]
    base = found["mixtral offload"]
    for schedule in ("s2", "s3", "no-prefetch"):
        options = {**base["options"], "schedule": schedule}
        found[f"mixtral {schedule}"] = {**base, "options": options}
    for many in (1, 2, 7, 16):
        options = {**base["options"], "micro_batches": many}
        found[f"mixtral {many} micro-batches"] = {**base, "options": options}
    harder = {
        "ragged": {"ragged": True, "prompts": {"count": 64}},
        # A prefix of several blocks, which requests of one step share.
        "prefix": {"prompts": {"count": 20, "shared": 150}, "tokens": 8},
        "chunks": {
            "engine": {"max_num_batched_tokens": 24, "max_num_seqs": 8},
            "prompts": {"count": 16, "shared": 40},
        },
        # Room for fewer tokens than the requests come to.
        "preempted": {
            "engine": {
                "block_size": 32,
                "num_gpu_blocks_override": 20,
                "max_num_seqs": 16,
            },
            "tokens": 60,
        },
    }
    for name, extra in harder.items():
        found[f"mixtral {name} plain"] = {"model": models["mixtral"], **extra}
        found[f"mixtral {name} offload"] = {**base, **extra}
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """What all engines answered."""
    folder = tmp_path_factory.mktemp("moe")
    models = {name: str(make_model(name, folder)) for name in SHAPES}
    asked = cases(models, str(folder / "disk"))
    file = folder / "runs.json"
    file.write_text(json.dumps(list(asked.values())), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.moe_offload.engine_runs", str(file)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(asked, found, strict=True))


def check_offloaded(result: Run) -> None:
    """It was the plugin that ran, and experts came and went."""
    assert result["worker"] == "OffloadCPUWorker"
    assert result["steps"] > 0
    assert result["streamed"] > 0
    # Pages of the first layer of the first step; nothing else was ever waited for.
    assert result["late_pages"] <= result["streamed"]
    assert result["moved_bytes"] > 0


@pytest.mark.vllm
@pytest.mark.parametrize("name", SHAPES)
def test_answers_are_those_of_plain_vllm(results: dict[str, Run], name: str) -> None:
    plain, offloaded = results[f"{name} plain"], results[f"{name} offload"]
    assert plain["worker"] == "CPUWorker"
    # Answers of a model that says the same whatever it is asked would prove little.
    assert len({token for answer in plain["tokens"] for token in answer}) > 50
    assert offloaded["tokens"] == plain["tokens"]
    check_offloaded(offloaded)
    kind = "DiskStore" if name.endswith(("top1", "moe")) else "MemoryStore"
    assert offloaded["store"] == kind


@pytest.mark.vllm
@pytest.mark.parametrize(
    "how", ["s2", "s3", "no-prefetch", *(f"{n} micro-batches" for n in (1, 2, 7, 16))]
)
def test_neither_schedule_nor_micro_batches_change_answers(
    results: dict[str, Run], how: str
) -> None:
    found = results[f"mixtral {how}"]
    assert found["tokens"] == results["mixtral plain"]["tokens"]
    assert found["streamed"] > 0


@pytest.mark.vllm
def test_a_second_start_uses_the_file_of_the_first(results: dict[str, Run]) -> None:
    first, second = results["qwen3_moe offload"], results["qwen3_moe again"]
    assert not first["reused"]
    assert second["reused"]
    assert second["tokens"] == first["tokens"]


@pytest.mark.vllm
@pytest.mark.parametrize("what", ["ragged", "prefix", "chunks", "preempted"])
def test_answers_stay_the_same_when(results: dict[str, Run], what: str) -> None:
    plain = results[f"mixtral {what} plain"]
    offloaded = results[f"mixtral {what} offload"]
    assert offloaded["tokens"] == plain["tokens"]
    check_offloaded(offloaded)
    if what == "preempted":
        assert offloaded["preemptions"] > 0
    if what == "ragged":
        assert len({len(answer) for answer in plain["tokens"]}) > 5
