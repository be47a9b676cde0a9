# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How metrics leave the engine core: a small text file, written once a second.

The engine core is a child of the API server and has no HTTP port. In
Prometheus' multiprocess mode (several API servers) the client library carries
the values across by itself. Otherwise the exporter here writes the exposition
text, and ``metrics_collector`` reads it in the API server.

Plugins of the suite that count in the engine core carry this file and
``metrics_collector`` unchanged; a test keeps the copies equal.
"""

import atexit
import logging
import multiprocessing
import os
import stat
import tempfile
import threading
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest, values

PLUGIN = str(__package__).removeprefix("vllm_")
logger = logging.getLogger(f"vllm.plugins.{PLUGIN}")

WRITE_INTERVAL_S = 1.0
CLOSE_TIMEOUT_S = 2.0


class TextfileExporter:
    """Hands the metrics of one engine core to the API server beside it.

    A daemon thread renders and writes, so a slow disk never delays a step, whose
    part is one attribute assignment. Nothing is written
    while the engine is idle. A failure is logged once and costs only metrics.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        engine_index: int = 0,
        *,
        directory: Path | None = None,
        interval_s: float = WRITE_INTERVAL_S,
        server_pid: int | None = None,
    ) -> None:
        """Open the directory and start the writer.

        Args:
            registry: What to export.
            engine_index: Data-parallel rank of this engine core.
            directory: Where to write; by default the user's own directory
                below the system's directory for temporary files.
            interval_s: Least time between two writes.
            server_pid: Process that serves ``/metrics``; by default the one that
                started this one.
        """
        self._registry = registry
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._step_s: float | None = None
        self._written_step_s: float | None = None
        self._failed = False
        self._path: Path | None = None
        self._writer: threading.Thread | None = None
        if _library_shares_values():
            return
        try:
            folder = open_directory(directory or default_directory())
            remove_stale_files(folder)
        except OSError as error:
            self._report(error)
            return
        self._path = folder / file_name(
            server_pid or serving_process_id(), engine_index
        )
        self._writer = threading.Thread(
            target=self._run, name=f"{_dashed()}-metrics", daemon=True
        )
        self._writer.start()
        atexit.register(self.close)

    @property
    def path(self) -> Path | None:
        """Where the file is, or None when nothing is written."""
        return self._path

    def maybe_write(self, now_s: float) -> None:
        """Note that a step ended; the writer exports it within the interval.

        Args:
            now_s: Time of the step, on any clock that never goes back.
        """
        self._step_s = now_s

    def close(self) -> None:
        """Stop the writer and remove the file. Safe to call twice."""
        self._stop.set()
        if self._writer is not None:
            self._writer.join(CLOSE_TIMEOUT_S)
            self._writer = None
            atexit.unregister(self.close)
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            step_s = self._step_s
            if step_s == self._written_step_s or self._path is None:
                continue
            try:
                write_atomically(self._path, generate_latest(self._registry))
            except OSError as error:
                self._report(error)
            else:
                self._written_step_s = step_s

    def _report(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            logger.warning(
                "%s: metrics cannot be handed to the API server (%s); serving is not "
                "affected, /metrics lacks this plugin's values. "
                "Make the directory for temporary files writable, or set TMPDIR.",
                PLUGIN,
                error,
            )


def default_directory() -> Path:
    """Return the directory that this user's servers share."""
    return Path(tempfile.gettempdir()) / f"vllm-{_dashed()}-{os.getuid()}"


def _dashed() -> str:
    return PLUGIN.replace("_", "-")


def open_directory(path: Path, *, create: bool = True) -> Path:
    """Return ``path`` once it is sure that only this user can write there.

    The directory lies in a world-writable place, so somebody else may have
    made it first.

    Raises:
        OSError: If it cannot be made, or belongs to or is open to others.
    """
    if create:
        path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{path} is not a directory; remove it")
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(
            f"{path} must belong to this user with mode 0700; remove it"
        )
    return path


def serving_process_id() -> int:
    """Return the process that serves ``/metrics`` for this engine core."""
    parent = multiprocessing.parent_process()
    pid = parent.pid if parent is not None else None
    return pid if pid is not None else os.getpid()


def file_prefix(server_pid: int) -> str:
    """Return how the names of one server's files start.

    Containers may share a directory for temporary files while each counts its
    processes from one, so the PID namespace is part of the name.
    """
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0  # no procfs: there is one namespace only
    return f"{namespace}-{server_pid}."


def file_name(server_pid: int, engine_index: int) -> str:
    """Return the name of one engine core's file."""
    return f"{file_prefix(server_pid)}{engine_index}.prom"


def remove_stale_files(directory: Path) -> None:
    """Remove what servers that were killed could not remove themselves."""
    own_namespace = file_prefix(0).partition("-")[0]
    for path in directory.glob(f"{own_namespace}-*.prom"):
        pid = path.name.partition("-")[2].partition(".")[0]
        if pid.isdecimal() and not _is_alive(int(pid)):
            path.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` so that a reader sees the old or the new text."""
    draft = path.with_suffix(".tmp")
    draft.write_bytes(content)
    draft.replace(path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _library_shares_values() -> bool:
    """Say whether prometheus_client runs in its multiprocess mode.

    The mode is fixed when the library is imported, so its choice is asked and
    not the environment, which may have changed since.
    """
    return bool(values.ValueClass._multiprocess)
