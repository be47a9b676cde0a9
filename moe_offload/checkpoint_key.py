# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which weights a file of experts was made from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def checkpoint_key(folder: Path, dtype: str) -> dict[str, Any]:
    """Return JSON values that are the same for the same weights only.

    Files are told apart by name, size and time of change; reading them whole would take
    as long as loading them.

    Args:
        folder: Of the checkpoint.
        dtype: That the model is computed in.

    Returns:
        With ``name``, a name for the file.
    """
    files = [
        [path.name, path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(folder.glob("*"))
        if path.suffix in (".safetensors", ".bin", ".json")
    ]
    key = {"folder": str(folder.resolve()), "dtype": dtype, "files": files}
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    return {"name": f"{folder.name}-{digest}", **key}
