# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The file under a SQLite store: who may use it, whose it is, and setting it aside."""

from __future__ import annotations

import fcntl
import itertools
import os
import stat
import threading
import time
from pathlib import Path

from .store import StoreError

APPLICATION_ID = 0x76656351  # "vecQ" in the header of every file of ours
_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_JOURNALS = ("-wal", "-journal")

# A POSIX lock dies with its process and is not inherited by children, which other
# locks are; but it does not keep out the process that holds it, so that is done here.
_held: set[Path] = set()
_held_guard = threading.Lock()


class StoreFile:
    """One database file, for one process at a time.

    Args:
        path: Where it is or shall be; its directory exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lock: int | None = None

    def acquire(self) -> None:
        """Keep every other store out until :meth:`release` or the process ends.

        Raises:
            StoreError: It is in use, or the directory cannot be written.
        """
        lock_path = self._beside(".lock")
        with _held_guard:
            if self.path in _held:
                raise self._in_use()
            try:
                descriptor = os.open(
                    lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600
                )
            except OSError as error:
                raise self._unusable(error) from error
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if isinstance(error, (BlockingIOError, PermissionError)):
                    raise self._in_use() from error
                raise self._unusable(error) from error
            _held.add(self.path)
            self._lock = descriptor

    def release(self) -> None:
        """Let others in; safe to call twice."""
        with _held_guard:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
                _held.discard(self.path)

    def check(self) -> str:
        """Make the file if it is missing, else look whose it is.

        Must not be called while SQLite has the file open in this process: closing it
        would drop SQLite's own locks.

        Returns:
            What is wrong with a file of ours; empty when nothing is.

        Raises:
            StoreError: It is not ours, or not for this user to open.
        """
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            os.close(os.open(self.path, flags, 0o600))
            return ""
        except FileExistsError:
            pass
        except OSError as error:
            raise self._unusable(error) from error
        self._check_owner()
        try:
            with open(self.path, "r+b") as file:
                return self._check_header(file.read(_HEADER_BYTES))
        except OSError as error:
            raise self._unusable(error) from error

    def set_aside(self) -> Path:
        """Rename the file and its journals; return the new name of the file.

        Raises:
            StoreError: The directory cannot be written.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        for count in itertools.count(1):
            target = self._beside(f".damaged-{stamp}-{count}")
            if not target.exists():
                break
        try:
            for suffix in _JOURNALS:
                if self._beside(suffix).exists():
                    self._beside(suffix).rename(f"{target}{suffix}")
            self._beside("-shm").unlink(missing_ok=True)
            self.path.rename(target)
        except OSError as error:
            raise self._unusable(error) from error
        return target

    def size_bytes(self) -> int:
        """Disk space of the file and its write-ahead log."""
        total = 0
        for path in (self.path, self._beside("-wal")):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue  # no log between two checkpoints
        return total

    def _check_owner(self) -> None:
        status = self.path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(
                f"vectorq: asked to keep the cache in {self.path}, which is no file. "
                "Name a file, or one that does not exist yet."
            )
        if status.st_uid != os.geteuid():
            raise StoreError(
                f"vectorq: asked to keep the cache in {self.path}, which belongs to "
                f"user {status.st_uid} and not to this process's user "
                f"{os.geteuid()}. Name another file or change its owner."
            )
        # It holds prompts. A volume may have been mounted with wider permissions.
        if status.st_mode & 0o177:
            os.chmod(self.path, 0o600)

    def _check_header(self, header: bytes) -> str:
        if not header:
            return ""  # a server that was killed while making the file
        if header[68:72] == APPLICATION_ID.to_bytes(4, "big"):
            if header[:16] != _MAGIC or not {header[18], header[19]} <= {1, 2}:
                return "its header is damaged"
            return ""
        if len(header) < 72 and header[:16] == _MAGIC[: len(header)]:
            return "it ends within its header"
        raise StoreError(
            f"vectorq: asked to keep the cache in {self.path}, which was not made by "
            "this plugin; it is left as it is. Name another file."
        )

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _in_use(self) -> StoreError:
        return StoreError(
            f"vectorq: asked to keep the cache in {self.path}, which another server "
            "or API-server process uses. Several processes share a cache through "
            "PostgreSQL: set store to postgresql://USER@HOST/DATABASE, or give each "
            "process a file of its own."
        )

    def _unusable(self, error: OSError) -> StoreError:
        return StoreError(
            f"vectorq: asked to keep the cache in {self.path}, which cannot be used: "
            f"{error.strerror or error}. Name a file in an existing directory of a "
            "local disk that this user may write."
        )
