# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The command line as a whole: help, exit statuses, what is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_vectorq import __version__
from vllm_vectorq.cli import main
from vllm_vectorq.cli_progress import Progress
from vllm_vectorq.cli_table import duration, percent, size, table

COMMANDS = ("inspect", "export", "import", "replay", "plot")


def status_of(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"vllm-vectorq {command} " in text.partition("example")[2]
    assert "--json" in text


def test_the_commands_and_the_version_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status_of("--help") == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert status_of("--version") == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frob",),
        ("export", "only-a-store"),
        ("replay", "log", "--policy", "frob"),
        ("replay", "log", "--shuffle", "-1"),
        ("replay", "log", "--shuffle", "x"),
        ("plot", "result.json", "--out", "picture.gif"),
        ("plot", "result.json"),
    ],
)
def test_what_cannot_be_understood_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    assert status_of(*arguments) == 2


def test_an_option_out_of_range_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(tmp_path / "log"), "--delta", "2"]) == 2
    assert "vectorq.delta=2.0 cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("inspect", "{tmp}/none.db"), "there is no store {tmp}/none.db"),
        (("inspect", "memory"), "a store in memory ends with its server"),
        (("inspect", "mysql://h/d"), "'mysql', which is not known"),
        (("export", "{tmp}/none.db", "{tmp}/out"), "there is no store"),
        (("import", "{tmp}/new.db", "-"), "save it first"),
        (("import", "{tmp}/new.db", "{tmp}/none"), "No such file"),
        (("replay", "{tmp}/none"), "No such file"),
        (("plot", "{tmp}/none", "--out", "{tmp}/p.png"), "No such file"),
    ],
)
def test_errors_are_one_sentence_on_standard_error(
    arguments: tuple[str, ...],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([part.format(tmp=tmp_path) for part in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vllm-vectorq: ")
    assert reason.format(tmp=tmp_path) in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(url: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vllm_vectorq.cli_inspect.store_url", interrupted)
    assert main(["inspect", "x.db"]) == 130
    assert capsys.readouterr().err == "vllm-vectorq: interrupted.\n"


def test_output_that_nobody_reads_is_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vllm_vectorq.cli", "inspect"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"XDG_CACHE_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_light_commands_load_neither_torch_nor_vllm() -> None:
    code = (
        "import sys, vllm_vectorq.cli, json;"
        "print(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    heavy = {"torch", "vllm", "faiss", "sentence_transformers", "matplotlib", "psycopg"}
    assert not heavy & set(json.loads(found.stdout))


# -- tables and progress -----------------------------------------------------------


def test_columns_of_numbers_are_aligned_to_the_right() -> None:
    rows = [("a", "1", "1 h"), ("bbb", "20", "-")]
    assert table(("name", "n", "age"), rows).splitlines() == [
        "name   n  age",
        "a      1  1 h",
        "bbb   20    -",
    ]
    assert table(("a", "b"), []) == "a  b"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.00123), "0.12%"),
        (size(1023), "1023 B"),
        (size(1024), "1.0 KiB"),
        (size(5 << 40), "5120.0 GiB"),
        (duration(-1), "0 s"),
        (duration(59.4), "59 s"),
        (duration(60), "1 min"),
        (duration(7_200), "2 h"),
        (duration(172_800), "2 d"),
    ],
)
def test_numbers_are_readable(shown: str, expected: str) -> None:
    assert shown == expected


def test_progress_in_a_log_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 0.0
    monkeypatch.setattr("vllm_vectorq.cli_progress.time.monotonic", lambda: now_s)
    progress = Progress("read", 100)
    for done in range(100):
        now_s += 0.25
        progress(done)
    progress.end()
    assert capsys.readouterr().err == "read: 39 of 100\nread: 79 of 100\n"


def test_progress_on_a_terminal_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 0.0
    monkeypatch.setattr("vllm_vectorq.cli_progress.time.monotonic", lambda: now_s)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = Progress("read")
    for done in (1, 2):
        now_s += 0.25
        progress(done)
    progress.end()
    progress.end()
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.endswith("\r\x1b[Kread: 2\n")
