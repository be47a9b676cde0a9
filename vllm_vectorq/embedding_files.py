# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Files that an embedding model is read from: where they are and what they hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

# Documentation, training data and exports to other runtimes, which lie in other
# folders or have other endings, change no vector.
_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_FORMAT = b"vectorq embedding model 1, unit vectors"


def directory_of(model: str) -> Path:
    """Find a model; the network is used only for a name that is not cached.

    Args:
        model: Directory, or name on the Hugging Face hub.

    Raises:
        ValueError: it is neither.
    """
    path = Path(model)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"vectorq: asked for the embedding model {model!r}, which is no directory "
            "and cannot be had from the Hugging Face hub or its local cache; name one "
            f"that is there ({error})."
        ) from error


def fingerprint_of(directory: Path, prompt: str) -> str:
    """Hash everything that decides about vectors: names, contents and the prompt.

    Contents are hashed whole, since retrained weights differ in nothing else.
    """
    files = _files_of(directory)
    total = hashlib.sha256(_FORMAT)
    for part in [prompt, *sorted(files)]:
        total.update(len(part.encode()).to_bytes(8, "big") + part.encode())
    for name in sorted(files):
        with files[name].open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _files_of(directory: Path) -> dict[str, Path]:
    """Files by their path inside the directory."""
    folders = {""}
    modules = directory / "modules.json"
    if modules.exists():
        folders |= {module["path"] for module in json.loads(modules.read_text())}
    return {
        path.relative_to(directory).as_posix(): path
        for folder in folders
        for pattern in _FILES
        for path in (directory / folder).glob(pattern)
    }
