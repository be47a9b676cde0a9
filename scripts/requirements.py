# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the root project asks for, and a fingerprint of everything that decides it."""

import hashlib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

PLUGIN_FOLDERS = ("vllm_program_sched", "vllm_vectorq", "vllm_hashattn", "moe_offload")
SETUP_EXTRAS = ("cpu", "dev")

_OWN_EXTRAS = re.compile(r"vllm-program-suite\[(?P<names>[^]]+)\]")


def external_requirements(root: Path, extras: Iterable[str]) -> list[str]:
    """Requirements of the root project's extras, without the suite's own packages.

    The plugins are left out because the set-up installs them editable, which a
    requirement in ``pyproject.toml`` cannot express.

    Raises:
        KeyError: an extra does not exist.
    """
    table = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    optional: dict[str, list[str]] = table["optional-dependencies"]
    found: dict[str, None] = {}
    pending = list(extras)
    while pending:
        for requirement in optional[pending.pop(0)]:
            if own := _OWN_EXTRAS.fullmatch(requirement):
                pending.extend(own["names"].split(","))
            elif "{root:uri}" not in requirement:
                found[requirement] = None
    return list(found)


def fingerprint(root: Path) -> str:
    """Hash of the folder and of the files that decide the environment."""
    files = [root / "pyproject.toml", *sorted((root / "scripts").glob("*.py"))]
    for folder in PLUGIN_FOLDERS:
        files += [root / folder / "pyproject.toml", root / folder / "__init__.py"]
    digest = hashlib.sha256(str(root).encode())
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
