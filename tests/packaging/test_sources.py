# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Rules that keep each plugin liftable out of the repository."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.requirements import PLUGIN_FOLDERS
from tests.packaging.conftest import PLUGINS, Plugin

COPIED_FILES = ("activation.py", "LICENSE")
# Of the plugins that count in the engine core or in a worker.
SHARED_FILES = ("metrics_textfile.py", "metrics_collector.py", "metrics_process.py")


def _imported_roots(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def _executed_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run on import: no function bodies, no TYPE_CHECKING blocks."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(
            statement.test
        ):
            continue
        yield statement


def test_the_set_up_knows_every_plugin() -> None:
    assert set(PLUGIN_FOLDERS) == {p.folder for p in PLUGINS}


@pytest.mark.parametrize("name", COPIED_FILES)
def test_copies_are_equal(repository_root: Path, name: str) -> None:
    contents = {(repository_root / p.folder / name).read_bytes() for p in PLUGINS}
    assert len(contents) == 1


@pytest.mark.parametrize("name", SHARED_FILES)
def test_copies_of_some_are_equal(repository_root: Path, name: str) -> None:
    copies = [repository_root / p.folder / name for p in PLUGINS]
    contents = [copy.read_bytes() for copy in copies if copy.is_file()]
    assert len(contents) > 1 and len(set(contents)) == 1


def test_no_plugin_imports_another_or_the_repository(
    repository_root: Path, plugin: Plugin
) -> None:
    foreign = {p.folder for p in PLUGINS} - {plugin.folder}
    foreign |= {"benchmarks", "examples", "scripts", "tests"}
    for path in sorted((repository_root / plugin.folder).rglob("*.py")):
        found = set(_imported_roots(ast.parse(path.read_text("utf-8")))) & foreign
        assert not found, f"{path} imports {found}"


def test_importing_the_package_needs_the_standard_library_only(
    repository_root: Path, plugin: Plugin
) -> None:
    source = (repository_root / plugin.folder / "__init__.py").read_text("utf-8")
    for statement in _executed_at_import(ast.parse(source).body):
        assert set(_imported_roots(statement)) <= set(sys.stdlib_module_names)
