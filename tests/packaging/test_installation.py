# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Wheels installed into an environment that holds nothing else."""

import json
from typing import TypedDict

from tests.packaging.conftest import PLUGINS, Built, EmptyEnvironment, Plugin

# Prints every entry point of the suite, and imports each package.
INVENTORY = """
import importlib, json, sys
from importlib import metadata
points = {
    group: sorted(p.name for p in metadata.entry_points(group=group))
    for group in ("vllm.general_plugins", "vllm.endpoint_plugins")
}
before = set(sys.modules)
versions = {n: importlib.import_module(n).__version__ for n in sys.argv[1:]}
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
third_party = sorted(loaded - set(sys.stdlib_module_names) - set(sys.argv[1:]))
print(json.dumps(dict(points=points, versions=versions, third_party=third_party)))
"""


class Inventory(TypedDict):
    """What an environment offers."""

    points: dict[str, list[str]]
    versions: dict[str, str]
    third_party: list[str]


def _inventory(environment: EmptyEnvironment, *folders: str) -> Inventory:
    result: Inventory = json.loads(environment.python("-c", INVENTORY, *folders))
    return result


def test_one_plugin_installs_alone(
    built: dict[str, Built], empty_environment: EmptyEnvironment, plugin: Plugin
) -> None:
    empty_environment.install(built[plugin.folder].wheel)
    found = _inventory(empty_environment, plugin.folder)
    assert found["points"]["vllm.general_plugins"] == [plugin.entry_point]
    assert list(found["versions"]) == [plugin.folder]
    assert not found["third_party"], "importing the package pulled in more than it may"
    if not plugin.requirements:  # which this environment lacks
        empty_environment.pip("check")


def test_all_install_together_and_leave_one_by_one(
    built: dict[str, Built], empty_environment: EmptyEnvironment
) -> None:
    empty_environment.install(*(archives.wheel for archives in built.values()))
    left = list(PLUGINS)
    while left:
        found = _inventory(empty_environment, *(p.folder for p in left))
        names = sorted(p.entry_point for p in left)
        assert found["points"]["vllm.general_plugins"] == names
        assert sorted(found["versions"]) == sorted(p.folder for p in left)
        gone = left.pop(0)
        empty_environment.pip("uninstall", "--quiet", "--yes", gone.distribution)
        packages = empty_environment.folder.glob(
            f"lib/python*/site-packages/{gone.folder}*"
        )
        assert not list(packages)
