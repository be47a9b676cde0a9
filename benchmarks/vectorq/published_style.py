# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How the published numbers are written."""

from __future__ import annotations

from typing import Any

Report = dict[str, Any]
Row = dict[str, Any]


def percent(share: float, digits: int = 2) -> str:
    """A share, without needless zeros from two digits on."""
    text = f"{100 * share:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if digits > 1 else text} %"


def fixed(share: float) -> str:
    """A share with two digits."""
    return f"{100 * share:.2f} %"
