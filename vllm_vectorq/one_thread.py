# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Linear algebra in the background on one core only.

BLAS takes all cores for matrices of a few hundred rows and spins while it waits for
them. Beside an engine that uses the same cores this was ten times slower than one
thread, and held the engine up meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController

# The limit is the process's: two that overlap would restore each other's.
_LOCK = threading.Lock()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread meanwhile; one caller at a time."""
    with _LOCK, _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> ThreadpoolController:
    # Looking through the loaded libraries takes milliseconds.
    return ThreadpoolController()
