# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Building of the kernels: once, and with a reason where it cannot be done."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from moe_offload import native
from moe_offload.native import NoKernelsError

# Writes down what it was asked, and makes the file.
_COMPILER = """#!/bin/sh
echo "$@" >> {calls}
while [ "$1" != "-o" ]; do shift; done
echo made > "$2"
"""


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for a compiler; returns the file of its calls."""
    compiler, calls = tmp_path / "compiler", tmp_path / "calls"
    compiler.write_text(_COMPILER.format(calls=calls))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return calls


def test_the_kernels_are_loaded_once() -> None:
    found = native.library_or_reason()
    if isinstance(found, str):
        pytest.skip(found)
    assert native.library() is found
    assert found.moe_offload_level() in range(4)


def test_they_are_built_once(cache_home: Path, calls: Path) -> None:
    built = native._built()
    assert built.read_text() == "made\n"
    assert [each.name for each in cache_home.glob("*/*")] == [built.name]
    compiling, linking = calls.read_text().splitlines()
    assert "host_attention.cpp" in compiling
    assert "-fopenmp" in compiling
    assert "-fopenmp" not in linking
    assert native._built() == built
    assert len(calls.read_text().splitlines()) == 2


@pytest.mark.usefixtures("cache_home")
def test_they_are_built_again_when_their_source_changes(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = native._built()
    shutil.copytree(native._SOURCES, tmp_path / "csrc")
    monkeypatch.setattr(native, "_SOURCES", tmp_path / "csrc")
    assert native._built() == built
    with (tmp_path / "csrc/decode.inc").open("a") as source:
        source.write("\n")
    changed = native._built()
    assert changed != built
    monkeypatch.setattr(native, "_FLAGS", (*native._FLAGS, "-g"))
    assert native._built() not in (built, changed)
    assert len(calls.read_text().splitlines()) == 6


@pytest.mark.usefixtures("cache_home")
def test_without_a_compiler_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(NoKernelsError, match=r"no C\+\+ compiler .* install one"):
        native._built()


def test_what_the_compiler_says_is_said(
    cache_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho what is this >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(NoKernelsError, match=r"failed to build .*\nwhat is this"):
        native._built()
    assert list(cache_home.glob("*/*")) == []
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    with pytest.raises(NoKernelsError, match=r"cannot be built with .*nothing"):
        native._built()


@pytest.mark.usefixtures("calls")
def test_a_cache_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(NoKernelsError, match="set XDG_CACHE_HOME to a folder"):
        native._built()


@pytest.mark.usefixtures("cache_home", "calls")
def test_a_library_that_cannot_be_loaded_is_said() -> None:
    with pytest.raises(NoKernelsError, match=r"\.so cannot be loaded"):
        native.library.__wrapped__()


def test_other_processors_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(native, "library", native.library.__wrapped__)
    reason = native.library_or_reason.__wrapped__()
    assert reason == "the kernels are for x86-64, and this is aarch64"


def test_the_cache_is_in_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    assert native._cache_directory() == Path("/somewhere/.cache/vllm-moe-offload")
