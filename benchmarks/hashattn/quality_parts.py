# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A long measurement in parts, each of which is kept as soon as it is done.

An interrupted run goes on where it was: the same command finds the parts in a file
beside the one that it will write, if the settings and the commit are the same.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Parts:
    """Parts that were measured.

    Args:
        path: Of the file that keeps them.
        settings: JSON values; parts of other settings are dropped.
        say: Takes a line about progress.
    """

    def __init__(
        self, path: Path, settings: Row, say: Callable[[str], None] | None = None
    ) -> None:
        self._path = path
        self._say = say or _print
        self._rows: dict[str, list[Row]] = {}
        self._took_s: dict[str, list[float]] = {}
        self._left: dict[str, int] = {}
        head = json.dumps({"settings": settings})
        lines = path.read_text("utf-8").split("\n") if path.is_file() else []
        # Without a line break at its end, the last line was not written whole.
        kept = lines[1:-1] if lines[:1] == [head] else []
        for line in kept:
            part = json.loads(line)
            self._rows[part["key"]] = part["rows"]
        if lines:
            self._say(f"{path}: {len(kept)} parts are there already")
        unfinished = path.with_name(path.name + ".new")
        unfinished.write_text("".join(f"{line}\n" for line in [head, *kept]), "utf-8")
        unfinished.replace(path)

    def plan(self, group: str, keys: Sequence[str]) -> None:
        """Say which parts are to come, for the time that is left.

        Args:
            group: Parts of one group take about as long as each other.
            keys: Of the parts.
        """
        self._left[group] = sum(key not in self._rows for key in keys)

    def measure(self, group: str, key: str, work: Callable[[], list[Row]]) -> list[Row]:
        """Return a part's rows; does the work unless they are there already.

        Args:
            group: As of :meth:`plan`.
            key: Of the part.
            work: Measures it; returns JSON values.
        """
        if key not in self._rows:
            started_s = time.perf_counter()
            rows = work()
            self._took_s.setdefault(group, []).append(time.perf_counter() - started_s)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "rows": rows}) + "\n")
            self._rows[key] = rows
            self._left[group] = max(self._left.get(group, 1) - 1, 0)
            self._say(
                f"{key}: {self._took_s[group][-1]:.0f} s; about "
                f"{self.left_s() / 60:.0f} min left of what is planned"
            )
        return self._rows[key]

    def left_s(self) -> float:
        """Return how long planned parts will take, in seconds.

        A group of which nothing was measured yet counts like the mean of all parts.
        """
        every = [each for took in self._took_s.values() for each in took]
        left = 0.0
        for group, count in self._left.items():
            took = self._took_s.get(group, every)
            left += count * sum(took) / max(len(took), 1)
        return left

    def remove(self) -> None:
        """Forget the parts, once what they were for is written."""
        self._path.unlink()


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
