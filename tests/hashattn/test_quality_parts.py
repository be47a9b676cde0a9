# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A measurement in parts that is interrupted, and goes on."""

from pathlib import Path

import pytest

from benchmarks.hashattn.quality_parts import Parts, Row

KEYS = ["one", "two", "three"]


class Interrupted(Exception):
    pass


def measure(parts: Parts, done: list[str], stop_at: str = "") -> list[Row]:
    def work(key: str) -> list[Row]:
        if key == stop_at:
            raise Interrupted
        done.append(key)
        return [{"key": key, "number": 0.1 + len(key)}]

    parts.plan("all", KEYS)
    found = (parts.measure("all", key, lambda key=key: work(key)) for key in KEYS)
    return [row for rows in found for row in rows]


def started(path: Path, lines: list[str], **settings: object) -> Parts:
    return Parts(path, {"tokens": 5, **settings}, lines.append)


def test_an_interrupted_measurement_goes_on(tmp_path: Path) -> None:
    path, lines = tmp_path / "found.parts", list[str]()
    whole = measure(started(tmp_path / "whole.parts", lines), [])
    done: list[str] = []
    with pytest.raises(Interrupted):
        measure(started(path, lines), done, stop_at="three")
    assert done == KEYS[:2]
    # The process ended while it wrote the last part.
    path.write_text(path.read_text("utf-8")[:-5], "utf-8")
    done.clear()
    again = started(path, lines)
    assert measure(again, done) == whole
    assert done == KEYS[1:]
    done.clear()
    assert measure(started(path, lines), done) == whole and not done
    again.remove()
    assert not path.exists()


def test_parts_of_other_settings_are_dropped(tmp_path: Path) -> None:
    path, done = tmp_path / "found.parts", list[str]()
    measure(started(path, []), done)
    measure(started(path, [], commit="other"), done)
    assert done == KEYS * 2


def test_the_time_that_is_left_is_told(tmp_path: Path) -> None:
    lines: list[str] = []
    parts = started(tmp_path / "found.parts", lines)
    parts.plan("later", ["a", "b"])
    measure(parts, [])
    assert [line.split(":")[0] for line in lines] == KEYS
    assert all("min left" in line for line in lines)
    took_s = parts._took_s["all"]
    # Nothing is left of the group but the one that was planned and not measured.
    assert parts.left_s() == pytest.approx(2 * sum(took_s) / 3)
