# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The vLLM symbols that the packages rely on."""

import inspect
from importlib import import_module

import pytest

PACKAGES = ("vllm_hashattn", "moe_offload")


@pytest.mark.parametrize("package", PACKAGES)
def test_vllm_has_the_symbols_with_their_parameters(package: str) -> None:
    coupled: dict[str, tuple[str, ...]] = import_module(
        f"{package}.compat"
    ).COUPLED_SYMBOLS
    assert coupled
    for symbol, parameters in coupled.items():
        module, path = symbol.split(":")
        found = import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
        assert callable(found)
        assert set(parameters) <= set(inspect.signature(found).parameters)
