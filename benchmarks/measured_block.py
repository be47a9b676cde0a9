# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The part of a document that a benchmark writes.

It is made from published rows alone, and tests make it again: a number in a document
cannot differ from what was measured.
"""

END = "<!-- measured: end -->"


def begin(writer: str) -> str:
    """Return the line that opens the part of one writer, a module's name."""
    return f"<!-- measured: begin; written by {writer} -->"


def with_block(document: str, writer: str, text: str) -> str:
    """Return the document with the part of `writer` replaced.

    Raises:
        ValueError: The document does not hold the writer's part once.
    """
    before, opened, rest = document.partition(begin(writer))
    _, closed, after = rest.partition(END)
    if not opened or not closed or begin(writer) in after:
        raise ValueError(
            f"the document needs {begin(writer)!r} once, and {END!r} after it"
        )
    return f"{before}{opened}\n{text}\n{END}{after}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [_line(head), "|" + "---|" * len(head), *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
