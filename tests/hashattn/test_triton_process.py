# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Runs tests of Triton kernels in Triton's interpreter, in a process of their own.

Whether kernels are interpreted is decided when they, and Triton's own functions in
Triton itself, are defined. A process that has imported Triton without the interpreter
(vLLM does) cannot turn to it, and one with it could not run other tests as they are. So
the modules of such tests are run once more by a pytest with ``TRITON_INTERPRET=1``, and
each test here reports what the one of its name did there: its failure is this one's
failure, with its text. With ``TRITON_INTERPRET=1`` in the environment pytest runs them
where it is, which is how to use a debugger.
"""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import ParamSpec

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_ROOT = Path(__file__).resolve().parents[2]
_Arguments = ParamSpec("_Arguments")
# Modules with such tests in this session, which share one process: to start one takes
# as long as many of the tests.
_MODULES: set[Path] = set()


def interpreted(test: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """Have a test run where kernels are interpreted."""
    module = sys.modules[test.__module__].__file__
    assert module is not None
    _MODULES.add(Path(module).resolve())

    @wraps(test)
    def reported(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        if INTERPRETED:
            test(*args, **kwargs)
        else:
            current = os.environ["PYTEST_CURRENT_TEST"].rsplit(" ", 1)[0]
            report(current, frozenset(_MODULES))

    return reported


def report(test: str, modules: frozenset[Path]) -> None:
    """Do as a test did in the interpreter.

    Args:
        test: As pytest names it.
        modules: That are run there.
    """
    file, _, name = test.partition("::")
    outcomes, printed = run_interpreted(modules)
    kind, text = outcomes.get((_ROOT / file, name), ("lost", printed))
    if kind == "skipped":
        pytest.skip(text)
    elif kind != "passed":
        pytest.fail(f"{kind} in the interpreter:\n{text}", pytrace=False)


@cache
def run_interpreted(
    modules: frozenset[Path],
) -> tuple[dict[tuple[Path, str], tuple[str, str]], str]:
    """Run tests in the interpreter.

    Args:
        modules: All of their tests are run.

    Returns:
        By module and name of a test: ``passed``, ``failure``, ``error`` or ``skipped``,
        and its text; and the end of what pytest printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                f"--config-file={_ROOT / 'pyproject.toml'}",
                # Says in which file a test is.
                *("-o", "junit_family=xunit1", f"--junitxml={report}"),
                *sorted(map(str, modules)),
            ],
            cwd=_ROOT,
            env={**os.environ, "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
        )
        printed = (done.stdout + done.stderr)[-4000:]
        if not report.is_file():
            return {}, printed
        found = {}
        for case in ElementTree.parse(report).iter("testcase"):
            file = (_ROOT / case.attrib.get("file", "")).resolve()
            found[file, case.attrib["name"]] = _outcome(case)
        return found, printed


def _outcome(case: ElementTree.Element) -> tuple[str, str]:
    for kind in ("error", "failure", "skipped"):
        found = case.find(kind)
        if found is not None:
            return kind, found.text or found.attrib.get("message", "")
    return "passed", ""


@interpreted
def test_kernels_are_interpreted() -> None:
    triton = pytest.importorskip("triton")
    from triton.runtime.interpreter import InterpretedFunction

    assert isinstance(triton.jit(lambda: None), InterpretedFunction)
    # Triton's own functions, which kernels call, too.
    assert isinstance(triton.language.sum, InterpretedFunction)


def test_failures_in_the_interpreter_are_failures_here(tmp_path: Path) -> None:
    module = tmp_path.resolve() / "test_wrong.py"
    module.write_text(
        "import pytest\n"
        "def test_wrong() -> None:\n"
        "    assert 6 * 9 == 42\n"
        "def test_right() -> None:\n"
        "    pass\n"
        "def test_left_out() -> None:\n"
        "    pytest.skip('because')\n"
    )
    modules = frozenset([module])
    report(f"{module}::test_right", modules)
    with pytest.raises(pytest.skip.Exception, match="because"):
        report(f"{module}::test_left_out", modules)
    with pytest.raises(pytest.fail.Exception, match=r"assert \(6 \* 9\) == 42"):
        report(f"{module}::test_wrong", modules)
    with pytest.raises(pytest.fail.Exception, match="lost in the interpreter"):
        report(f"{module}::test_absent", modules)
