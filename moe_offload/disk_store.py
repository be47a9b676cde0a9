# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""All experts of a model in one file on a disk.

Reads go around the page cache of the system (``O_DIRECT``), straight to where the
kernel reads: a model that is larger than memory would push everything else out of the
cache and still find nothing in it, since layers are read in turns. File systems
without direct reads are read through the cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .aligned_memory import aligned_memory, view_of
from .expert_format import ALIGNMENT, ExpertFormat
from .page_store import Page, PageStore

_FORMAT = 1
_CHUNK_BYTES = 8 << 20


class DiskStore(PageStore):
    """Pages in a file.

    A file that was written whole is used again by the next store with the same key;
    :meth:`missing` is empty then.

    Args:
        path: Of the file; its folder is made.
        key: JSON values that say which weights these are, and in which form.
        layers: With experts.
        experts: Of each layer.
        form: Of the pages.
        threads: Reads at once.

    Attributes:
        path: Of the file.
        reused: Whether all pages were there already.
        direct: Whether reads go around the page cache.

    Raises:
        OSError: The file cannot be made, or the disk has no room for it.
    """

    def __init__(
        self,
        path: Path,
        key: dict[str, Any],
        layers: int,
        experts: int,
        form: ExpertFormat,
        threads: int = 2,
    ) -> None:
        super().__init__(layers, experts, form)
        self.path = path
        self._key = json.dumps(
            {"format": _FORMAT, "bytes": self.total_bytes, **key}, sort_keys=True
        )
        self._bounce = threading.local()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.reused = self._complete()
        if self.reused:
            self._written[:] = True
        else:
            self._make()
        self._file, self.direct = _opened(path)
        self._pool = ThreadPoolExecutor(threads, "moe_offload-read")

    @property
    def _note(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def _complete(self) -> bool:
        if not self._note.is_file() or not self.path.is_file():
            return False
        same = self._note.read_text("utf-8") == self._key
        return same and self.path.stat().st_size == self.total_bytes

    def _make(self) -> None:
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        room = shutil.disk_usage(self.path.parent).free
        if room < self.total_bytes:
            raise OSError(
                f"moe_offload: {self.path} would hold {self.total_bytes / 2**30:.1f} "
                f"GiB of experts and its disk has room for {room / 2**30:.1f} GiB. "
                "Free some, or name a folder on another disk."
            )
        with self.path.open("wb") as file:
            # Now, so that the disk is not found to be full when serving.
            os.posix_fallocate(file.fileno(), 0, max(self.total_bytes, ALIGNMENT))

    def finish(self) -> None:
        """Say that all pages are there, so that the next start finds them.

        Raises:
            ValueError: Some are not.
        """
        missing = self.missing()
        if missing:
            raise ValueError(
                f"moe_offload: {len(missing)} pages were not in the checkpoint, the "
                f"first is {missing[0]}. Is the checkpoint complete?"
            )
        os.fsync(self._file)
        unfinished = self._note.with_suffix(".new")
        unfinished.write_text(self._key, "utf-8")
        unfinished.replace(self._note)

    def read(self, page: Page, into: Tensor) -> None:
        """Copy a page from the disk, with several reads at once."""
        target = view_of(into)
        start = self.offset_of(page)
        places = [
            (start + at, target[at : at + _CHUNK_BYTES])
            for at in range(0, len(target), _CHUNK_BYTES)
        ]
        if len(places) == 1:
            self._read(*places[0])
        else:
            list(self._pool.map(lambda place: self._read(*place), places))

    def close(self) -> None:
        """Close the file; it stays."""
        self._pool.shutdown()
        os.close(self._file)

    def _put(self, page: Page, content: Tensor) -> None:
        size = self.form.stored_bytes(page.part)
        with self._bounced(size) as (memory, view):
            length = self.form.page_bytes(page.part)
            memory[:length].copy_(content.contiguous().view(-1).view(torch.uint8))
            start = self.offset_of(page)
            done = 0
            while done < size:
                done += os.pwrite(self._file, view[done:], start + done)

    def _read(self, start: int, target: memoryview) -> None:
        aligned = len(target) % ALIGNMENT == 0 and _address(target) % ALIGNMENT == 0
        if aligned or not self.direct:
            self._fill(start, target)
            return
        size = -(-len(target) // ALIGNMENT) * ALIGNMENT
        with self._bounced(size) as (_, view):
            self._fill(start, view)
            target[:] = view[: len(target)]

    def _fill(self, start: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            found = os.preadv(self._file, [target[done:]], start + done)
            if found <= 0:
                raise OSError(
                    f"moe_offload: {self.path} ends at {start + done} bytes and "
                    f"{self.total_bytes} were written. Delete it; the next start "
                    "writes it again."
                )
            done += found

    @contextlib.contextmanager
    def _bounced(self, size: int) -> Iterator[tuple[Tensor, memoryview]]:
        """Aligned memory of this thread."""
        memory: Tensor | None = getattr(self._bounce, "memory", None)
        if memory is None or len(memory) < size:
            memory = self._bounce.memory = aligned_memory(size)
        yield memory, view_of(memory)[:size]


def _opened(path: Path) -> tuple[int, bool]:
    """A file, and whether its reads are direct."""
    try:
        return os.open(path, os.O_RDWR | os.O_DIRECT), True
    except OSError:
        # Such as tmpfs.
        return os.open(path, os.O_RDWR), False


def _address(view: memoryview) -> int:
    return torch.frombuffer(view, dtype=torch.uint8).data_ptr()
