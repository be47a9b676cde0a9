# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Wheels, sdists and throw-away environments, made once without a network."""

import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Plugin:
    """Names of one distribution of the suite, and what it installs with it."""

    folder: str
    distribution: str
    entry_point: str
    requirements: tuple[str, ...] = ()

    @property
    def file_stem(self) -> str:
        """Name that a wheel or sdist file starts with."""
        return self.distribution.replace("-", "_")


PLUGINS = (
    Plugin("vllm_program_sched", "vllm-program-sched", "program_sched"),
    Plugin(
        "vllm_vectorq",
        "vllm-vectorq",
        "vectorq",
        (
            "faiss-cpu>=1.8",
            "numpy>=1.26",
            "sentence-transformers>=3.0",
            "threadpoolctl>=3.1",
        ),
    ),
    Plugin(
        "vllm_hashattn",
        "vllm-hashattn",
        "hashattn",
        ("safetensors>=0.4", "transformers>=4.56"),
    ),
    Plugin("moe_offload", "vllm-moe-offload", "moe_offload", ("numpy>=1.26",)),
)


@dataclass(frozen=True)
class Built:
    """The two archives of one plugin."""

    wheel: Path
    sdist: Path


class EmptyEnvironment:
    """A virtual environment with nothing in it; pip reaches into it from outside."""

    def __init__(self, folder: Path) -> None:
        """Create the environment in ``folder``."""
        self.folder = folder
        self._python = str(folder / "bin" / "python")
        venv.create(folder, symlinks=True, with_pip=False)

    def python(self, *arguments: str) -> str:
        """Run its interpreter outside the repository and return the output."""
        return _run([self._python, "-I", *arguments], self.folder)

    def pip(self, *arguments: str) -> str:
        """Run pip on it."""
        pip = [sys.executable, "-m", "pip", "--python", self._python]
        return _run([*pip, *arguments], self.folder)

    def install(self, *wheels: Path) -> None:
        """Install wheels without looking anything up."""
        offline = ("--no-index", "--no-deps", "--quiet")
        self.pip("install", *offline, *map(str, wheels))


def _run(command: list[str], folder: Path) -> str:
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _build(plugin: Plugin, root: Path, folder: Path) -> Built:
    # A copy, so that tests leave no file in the checkout; without bytecode, as a
    # fresh clone has none.
    source = folder / "source" / plugin.folder
    shutil.copytree(
        root / plugin.folder, source, ignore=shutil.ignore_patterns("__pycache__")
    )
    target = folder / "dist"
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir"]
    _run([*build, str(target), str(source)], folder)
    [wheel] = target.glob(f"{plugin.file_stem}-*.whl")
    [sdist] = target.glob(f"{plugin.file_stem}-*.tar.gz")
    return Built(wheel, sdist)


@pytest.fixture(scope="session")
def built(
    repository_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Built]:
    """Archives of every plugin, by folder name; the wheel is made from the sdist."""
    folder = tmp_path_factory.mktemp("built")
    return {p.folder: _build(p, repository_root, folder) for p in PLUGINS}


@pytest.fixture
def empty_environment(tmp_path: Path) -> EmptyEnvironment:
    """A fresh environment for one test."""
    return EmptyEnvironment(tmp_path / "environment")


@pytest.fixture(params=PLUGINS, ids=lambda plugin: plugin.folder)
def plugin(request: pytest.FixtureRequest) -> Plugin:
    """Each plugin of the suite in turn."""
    chosen: Plugin = request.param
    return chosen
