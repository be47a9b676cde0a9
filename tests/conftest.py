# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Fixtures shared by every test folder."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.model_cache import resolve_model

# Set-up is the only step that may use the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """Directory that holds the root ``pyproject.toml``."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def model_path() -> str:
    """Model for tests with a real engine: ``$MODEL``, else the demo model."""
    try:
        return resolve_model()
    except FileNotFoundError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Function that returns a TCP port free on the loopback interface."""

    def find() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port: int = listener.getsockname()[1]
            return port

    return find
