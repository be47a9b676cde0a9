# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How vLLM finds and calls the plugins, each case in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

from tests.packaging.conftest import PLUGINS

NAMES = {plugin.entry_point for plugin in PLUGINS}

# Loads the plugins as every vLLM process does and prints which of them ran, whether
# loading them again changed anything, and what a configuration then looks like.
LOAD = """
import json, sys
import vllm.plugins
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from prometheus_client import REGISTRY

def state():
    layers, layer = [], EngineArgs.create_engine_config
    while layer is not None:
        layers.append(layer.__module__)
        layer = getattr(layer, "__wrapped__", None)
    return layers, len(REGISTRY._collector_to_names)

before = state()
vllm.plugins.load_general_plugins()
once = state()
for register in vllm.plugins.load_plugins_by_group("vllm.general_plugins").values():
    if register.__module__.startswith(("vllm_", "moe_")):
        register()
found = vllm.plugins.load_plugins_by_group("vllm.general_plugins")
print(json.dumps({
    "loaded": sorted(found),
    "before": before,
    "once": once,
    "twice": state(),
    "platform": type(current_platform).__name__,
}))
"""


def _load(vllm_plugins: str | None) -> dict[str, list[object]]:
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_PLUGINS"}
    if vllm_plugins is not None:
        environment["VLLM_PLUGINS"] = vllm_plugins
    result = subprocess.run(
        [sys.executable, "-c", LOAD],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    report: dict[str, list[object]] = json.loads(result.stdout.splitlines()[-1])
    return report


@pytest.mark.parametrize(
    ("vllm_plugins", "expected"),
    [
        (None, NAMES),
        ("vectorq,program_sched", {"vectorq", "program_sched"}),
        ("", set()),
    ],
    ids=["unset", "set", "empty"],
)
def test_vllm_loads_what_vllm_plugins_allows(
    vllm_plugins: str | None, expected: set[str]
) -> None:
    report = _load(vllm_plugins)
    assert NAMES & set(report["loaded"]) == expected
    assert report["twice"] == report["once"], "register() is not idempotent"
    if not expected:
        assert report["once"] == report["before"]
