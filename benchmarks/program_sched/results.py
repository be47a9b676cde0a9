# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The result file: settings, environment and every cell, safe against interruption."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.program_sched.report import Cell, summarize


class ResultFile:
    """Cells measured so far; written after each one, so that a run can resume.

    Attributes:
        capacity: Programs per second that plain vLLM finishes on this machine, the
            unit of load; None until it has been measured.
        cells: The measured cells.
        unloaded: Cells of programs that ran one at a time.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open `path`, keeping the cells of an earlier run with equal settings.

        Raises:
            ValueError: The file holds cells that were measured with other settings or
                on another machine.
        """
        self.path = path
        # Through JSON and back, so that a tuple equals the list that is read.
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.capacity: float | None = None
        self.cells: list[Cell] = []
        self.unloaded: list[Cell] = []
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            data = json.loads(self.path.read_text())
            found = data["settings"]
        except (json.JSONDecodeError, KeyError) as problem:
            raise ValueError(
                f"{self.path} is not a result file of this benchmark ({problem!r}); "
                "move it away or choose another --out"
            ) from problem
        changed = sorted(
            name
            for name in found.keys() | self._settings.keys()
            if found.get(name) != self._settings.get(name)
        )
        if changed:
            raise ValueError(
                f"{self.path} was measured with another {', '.join(changed)}; move it "
                "away or choose another --out"
            )
        measured, here = data["environment"], environment.describe()
        for part in ("cpu", "cores"):
            if measured[part] != here[part]:
                raise ValueError(
                    f"{self.path} was measured on another machine ({part}: "
                    f"{measured[part]}, here {here[part]}), whose rows do not compare "
                    "with rows from here; move it away or choose another --out"
                )
        self.capacity = data["capacity"]
        self.cells = [Cell.from_json(row) for row in data["cells"]]
        self.unloaded = [Cell.from_json(row) for row in data["unloaded"]]

    def has(self, policy: str, load: float, seed: int) -> bool:
        """Return whether this cell has been measured."""
        key = (policy, load, seed)
        return any((cell.policy, cell.load, cell.seed) == key for cell in self.cells)

    def add(self, cell: Cell, *, unloaded: bool = False) -> None:
        """Keep a cell and write the file."""
        (self.unloaded if unloaded else self.cells).append(cell)
        self.write()

    def write(self) -> None:
        """Write the file; a reader sees the old or the new one, never a part."""
        data = {
            "settings": self._settings,
            "environment": environment.describe(),
            "capacity": self.capacity,
            "summaries": [
                {
                    "policy": cell.policy,
                    "load": cell.load,
                    "rate": cell.rate,
                    "seed": cell.seed,
                    **summarize(cell).to_json(),
                }
                for cell in self.cells
            ],
            "cells": [cell.to_json() for cell in self.cells],
            "unloaded": [cell.to_json() for cell in self.unloaded],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(one_row_a_line(data))
        os.replace(partial, self.path)


def one_row_a_line(data: Mapping[str, Any]) -> str:
    """Return JSON that a person can scan and `git diff` can follow."""
    fields = []
    for name, value in data.items():
        if isinstance(value, list):
            rows = ",\n ".join(json.dumps(row) for row in value)
            text = f"[\n {rows}\n]" if rows else "[]"
        else:
            text = json.dumps(value, indent=1)
        fields.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(fields) + "\n}\n"
