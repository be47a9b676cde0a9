# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Tables for a terminal, and the numbers in them."""

from __future__ import annotations

from collections.abc import Sequence

_TEXT = str.ljust
_NUMBER = str.rjust


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table; columns of numbers are aligned to the right.

    Args:
        header: Names of the columns.
        rows: Cells, as many per row as there are names.
    """
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    align = [
        _NUMBER if rows and all(_is_number(row[i]) for row in rows) else _TEXT
        for i in range(len(header))
    ]
    return "\n".join(
        "  ".join(
            put(cell, width)
            for put, cell, width in zip(align, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def percent(share: float) -> str:
    """A share in percent, with digits that a budget of 0.1 % needs."""
    return f"{100 * share:.2f}%"


def size(num_bytes: int) -> str:
    """An amount of memory."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def duration(seconds: float) -> str:
    """A length of time in its largest whole unit."""
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell == "-"
