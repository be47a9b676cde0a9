# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The checks that a plugin makes when it is switched on.

One copy is tested here; another test keeps the copies equal.
"""

import logging
from collections.abc import Iterator

import pytest
import vllm

from vllm_program_sched.activation import check_vllm_version, read_options

VALID = ("policy", "service_unit")


@pytest.fixture(autouse=True)
def _forget_earlier_checks() -> Iterator[None]:
    check_vllm_version.cache_clear()
    yield
    check_vllm_version.cache_clear()


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What the plugin logs; vLLM's loggers do not reach pytest's own handler."""
    found: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    handler = Collector()
    logger = logging.getLogger("vllm.plugins.program_sched")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_the_installed_vllm_is_supported(records: list[logging.LogRecord]) -> None:
    check_vllm_version("program_sched")
    assert [r for r in records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("version", ["0.31.2", "0.9.0", "0.31.1rc1.dev3+gabc"])
def test_an_older_vllm_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(vllm, "__version__", version)
    with pytest.raises(RuntimeError) as refusal:
        check_vllm_version("program_sched")
    text = str(refusal.value)
    assert "0.32" in text
    assert version.split("rc")[0] in text
    assert "pip install" in text


@pytest.mark.parametrize("version", ["0.32.0", "0.33.7", "0.33.1.dev5+gabc.cu130"])
def test_a_tested_vllm_passes_in_silence(
    monkeypatch: pytest.MonkeyPatch, records: list[logging.LogRecord], version: str
) -> None:
    monkeypatch.setattr(vllm, "__version__", version)
    check_vllm_version("program_sched")
    assert records == []


def test_a_newer_vllm_is_warned_about_once(
    monkeypatch: pytest.MonkeyPatch, records: list[logging.LogRecord]
) -> None:
    monkeypatch.setattr(vllm, "__version__", "0.34.0")
    check_vllm_version("program_sched")
    check_vllm_version("program_sched")
    assert [r.levelno for r in records] == [logging.WARNING]
    assert "0.34.0" in records[0].getMessage()


@pytest.mark.parametrize("version", ["dev", "0.1.dev1+g12345"])
def test_a_version_that_tells_no_age_is_let_through(
    monkeypatch: pytest.MonkeyPatch, records: list[logging.LogRecord], version: str
) -> None:
    monkeypatch.setattr(vllm, "__version__", version)
    check_vllm_version("program_sched")
    assert [r.levelno for r in records] == [logging.DEBUG]


@pytest.mark.parametrize("config", [None, {}, {"other": {"policy": 1}}, object()])
def test_no_options_when_the_key_is_absent(config: object) -> None:
    assert read_options(config, "program_sched", VALID) == {}


def test_options_are_returned_as_given() -> None:
    given = {"program_sched": {"policy": "atlas"}, "other": {"x": 1}}
    assert read_options(given, "program_sched", VALID) == {"policy": "atlas"}


def test_an_unknown_option_names_the_closest() -> None:
    given = {"program_sched": {"policies": "atlas"}}
    with pytest.raises(ValueError, match=r"'policies'\. Did you mean 'policy'\?"):
        read_options(given, "program_sched", VALID)


def test_an_unknown_option_far_from_all_lists_them() -> None:
    given = {"program_sched": {"zzz": 1}}
    with pytest.raises(ValueError, match=r"Valid options: policy, service_unit\.$"):
        read_options(given, "program_sched", VALID)


@pytest.mark.parametrize("value", [True, "atlas", ["policy"], None])
def test_a_value_that_is_no_set_of_options_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"--additional-config\.program_sched\.NAME"):
        read_options({"program_sched": value}, "program_sched", VALID)
