# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Pictures as files, the same bytes for the same data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and SVG and close it; `path` is given without a suffix.

    Returns:
        The files that were written.
    """
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    figure.tight_layout()
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    # The same ids every time, and no date.
    with mpl.rc_context({"svg.hashsalt": "vllm-program-suite"}):
        for file in files:
            date = {"Date": None} if file.suffix == ".svg" else None
            figure.savefig(file, dpi=150, metadata=date)
    plt.close(figure)
    return files
