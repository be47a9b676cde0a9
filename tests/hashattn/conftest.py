# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A hash for the demo model."""

from pathlib import Path

import pytest

from tests.hashattn.paged_cases import random_level_maps
from vllm_hashattn.hash_file import HashFile, model_fingerprint


@pytest.fixture(scope="session")
def hash_file(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps that nobody trained: what is chosen does not matter here."""
    path = tmp_path_factory.mktemp("hash") / "hash.safetensors"
    layers = {
        layer: random_level_maps(9, 3, 64, 128, seed=layer) for layer in range(30)
    }
    HashFile(layers, model_fingerprint(Path(model_path)), {}).save(path)
    return path
