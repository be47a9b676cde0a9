# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Plugins that cannot run as asked keep a server from starting, and no others do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Builds the configuration as a server or LLM() does, once per additional_config
# given, and prints the outcome; no engine is started.
CONFIGURE = r"""
import json, re, sys
from vllm.engine.arg_utils import EngineArgs
outcomes = []
for additional in json.loads(sys.argv[2]):
    arguments = EngineArgs(
        model=sys.argv[1], enforce_eager=True, additional_config=additional
    )
    try:
        config = arguments.create_engine_config()
        config.instance_id = ""  # made from the time
        # Addresses of objects differ from process to process.
        text = re.sub(r"0x[0-9a-f]+", "0x", repr(config))
        outcomes.append([config.compute_hash(), text])
    except ValueError as error:
        outcomes.append(str(error))
print(json.dumps(outcomes))
"""

Outcome = str | list[str]


def _configure(
    model: str, *additional: dict[str, object], plugins: str | None = None
) -> list[Outcome]:
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_PLUGINS"}
    if plugins is not None:
        environment["VLLM_PLUGINS"] = plugins
    result = subprocess.run(
        [sys.executable, "-c", CONFIGURE, model, json.dumps(additional)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    outcomes: list[Outcome] = json.loads(result.stdout.splitlines()[-1])
    return outcomes


@pytest.fixture(scope="module")
def outcomes(model_path: str) -> dict[str, Outcome]:
    """What each way of asking, or not asking, leads to."""
    cases: dict[str, dict[str, object]] = {
        "nothing": {},
        "moe_offload": {"moe_offload": {"enabled": True, "device_memory_gib": 1}},
        "no memory": {"moe_offload": {"enabled": True}},
        "hashattn": {"hashattn": {"weights": "codes.safetensors"}},
        "misspelt": {"vectorq": {"enable": True}},
        "malformed": {"moe_offload": {"enabled": "yes"}},
        "disabled": {"vectorq": {"enabled": False}, "moe_offload": {}},
        "foreign": {"someone_else": {"enabled": True}},
    }
    return dict(zip(cases, _configure(model_path, *cases.values()), strict=True))


@pytest.mark.vllm
def test_a_model_without_experts_is_refused(outcomes: dict[str, Outcome]) -> None:
    outcome = str(outcomes["moe_offload"])
    assert outcome.startswith("moe_offload: cannot run here: ")
    assert "LlamaForCausalLM has no adapter (MixtralForCausalLM, " in outcome
    assert "Remove --additional-config.moe_offload.enabled" in outcome


@pytest.mark.vllm
def test_asking_without_what_is_needed_is_refused(
    outcomes: dict[str, Outcome],
) -> None:
    assert "codes.safetensors cannot be read" in str(outcomes["hashattn"])
    assert "device_memory_gib=0.0 cannot be used: say how many GiB" in str(
        outcomes["no memory"]
    )


@pytest.mark.vllm
def test_mistakes_are_named(outcomes: dict[str, Outcome]) -> None:
    assert "Did you mean 'enabled'?" in outcomes["misspelt"]
    assert "enabled='yes' cannot be used: give true or false" in outcomes["malformed"]


@pytest.mark.vllm
@pytest.mark.parametrize("case", ["nothing", "disabled", "foreign"])
def test_not_asking_is_not_refused(outcomes: dict[str, Outcome], case: str) -> None:
    assert isinstance(outcomes[case], list)


@pytest.mark.vllm
def test_installed_plugins_leave_the_configuration_alone(
    outcomes: dict[str, Outcome], model_path: str
) -> None:
    [without_plugins] = _configure(model_path, {}, plugins="")
    assert isinstance(without_plugins, list)
    assert outcomes["nothing"] == without_plugins


@pytest.mark.vllm
def test_vllm_serve_ends_with_the_sentence(
    model_path: str, free_port: Callable[[], int], tmp_path: Path
) -> None:
    command = [
        str(Path(sys.executable).parent / "vllm"),
        *("serve", model_path, "--enforce-eager", "--port", str(free_port())),
        "--additional-config.moe_offload.enabled",
        "true",
    ]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode != 0
    sentence = "moe_offload.device_memory_gib=0.0 cannot be used"
    assert sentence in result.stdout + result.stderr
