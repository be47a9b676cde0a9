# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Where the demo model lives, and which model a run should use."""

import os
from pathlib import Path

DEMO_MODEL_NAME = "smollm2-135m-instruct"
MANIFEST_NAME = "manifest.json"


def cache_dir() -> Path:
    """Directory that the set-up downloads into, shared by all checkouts."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "vllm-program-suite"


def demo_model_dir() -> Path:
    """Directory of the converted demo model, whether it exists or not."""
    return cache_dir() / DEMO_MODEL_NAME


def resolve_model() -> str:
    """Return the model to run: ``$MODEL`` if set, else the demo model.

    Raises:
        FileNotFoundError: the demo model is wanted and has not been set up.
    """
    if chosen := os.environ.get("MODEL"):
        return chosen
    directory = demo_model_dir()
    if not (directory / MANIFEST_NAME).is_file():
        raise FileNotFoundError(
            f"the demo model is not at {directory}. Run `make setup` to create it, "
            "or set MODEL to a model directory or hub id."
        )
    return str(directory)
