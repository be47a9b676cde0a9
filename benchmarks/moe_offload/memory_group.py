# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A limit on memory, page cache included, for a process and what it does from then on.

What a process has when it joins a group is not counted: so both what experts are
computed from and what the system caches for a mapped file can be given the same room.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


class NoGroupError(RuntimeError):
    """Memory cannot be limited here, and why."""


@contextmanager
def limited(name: str, limit_bytes: int) -> Iterator[Path]:
    """Make a group, and take it away at the end.

    Args:
        name: Of the group.
        limit_bytes: Of memory and page cache.

    Yields:
        The file that a process joins by.

    Raises:
        NoGroupError: Groups cannot be made: that takes root and a writable cgroup.
    """
    version_1 = _V1.is_dir()
    folder = (_V1 if version_1 else _V2) / name
    limit = folder / ("memory.limit_in_bytes" if version_1 else "memory.max")
    try:
        folder.mkdir(exist_ok=True)
        limit.write_text(str(limit_bytes), "utf-8")
    except OSError as error:
        raise NoGroupError(
            f"the memory of a process cannot be limited here ({error}); run as root "
            "where control groups can be written"
        ) from error
    try:
        yield folder / "cgroup.procs"
    finally:
        folder.rmdir()


def join(procs: Path) -> None:
    """Have what this process uses from now on counted.

    Args:
        procs: As yielded by :func:`limited`.
    """
    procs.write_text(str(os.getpid()), "utf-8")
