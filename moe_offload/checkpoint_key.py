# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which weights a file of experts was made from."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any


def checkpoint_key(model: str, commit: str | None, dtype: str) -> dict[str, Any]:
    """Return JSON values that are the same for the same weights only.

    Files are told apart by name, size and time of change; reading them whole would take
    as long as loading them.

    Args:
        model: Folder of the checkpoint, or its name on a hub.
        commit: Of a hub; None where it is not known, and nothing is the same then.
        dtype: That the model is computed in.

    Returns:
        With ``name``, a name for the file.
    """
    folder = Path(model)
    if folder.is_dir():
        weights: Any = [
            [path.name, path.stat().st_size, path.stat().st_mtime_ns]
            for path in sorted(folder.glob("*"))
            if path.suffix in (".safetensors", ".bin", ".json")
        ]
        model = str(folder.resolve())
    else:
        weights = commit or str(uuid.uuid4())
    key = {"model": model, "dtype": dtype, "weights": weights}
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    return {"name": f"{folder.name}-{digest}", **key}
