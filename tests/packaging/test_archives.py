# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What is inside the wheels and sdists."""

import configparser
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

from tests.packaging.conftest import Built, Plugin


def _metadata(built: Built) -> Message:
    return Parser().parsestr(_dist_info_text(built, "METADATA"))


def _dist_info_text(built: Built, name: str) -> str:
    with zipfile.ZipFile(built.wheel) as wheel:
        [path] = [n for n in wheel.namelist() if n.endswith(f".dist-info/{name}")]
        return wheel.read(path).decode()


def _modules(repository_root: Path, plugin: Plugin) -> set[str]:
    folder = repository_root / plugin.folder
    # Kernels are compiled where they run.
    files = [*folder.rglob("*.py"), *folder.glob("csrc/*")]
    return {path.relative_to(folder).as_posix() for path in files}


def test_wheel_holds_the_package_and_nothing_else(
    built: dict[str, Built], plugin: Plugin, repository_root: Path
) -> None:
    with zipfile.ZipFile(built[plugin.folder].wheel) as wheel:
        names = {n for n in wheel.namelist() if ".dist-info/" not in n}
    modules = {f"{plugin.folder}/{m}" for m in _modules(repository_root, plugin)}
    assert names == modules | {f"{plugin.folder}/py.typed"}


def test_sdist_holds_the_package_and_its_documents(
    built: dict[str, Built], plugin: Plugin, repository_root: Path
) -> None:
    with tarfile.open(built[plugin.folder].sdist) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames()}
    documents = {"README.md", "CHANGELOG.md", "LICENSE", "py.typed", "pyproject.toml"}
    unlisted = names - documents - _modules(repository_root, plugin)
    assert unlisted <= {"PKG-INFO", ".gitignore"}
    assert documents | _modules(repository_root, plugin) <= names


def test_archives_contain_no_tests(built: dict[str, Built], plugin: Plugin) -> None:
    with zipfile.ZipFile(built[plugin.folder].wheel) as wheel:
        names = wheel.namelist()
    with tarfile.open(built[plugin.folder].sdist) as sdist:
        names += sdist.getnames()
    assert not [n for n in names if "test" in Path(n).name or "/tests/" in n]


def test_metadata_names_licence_python_and_version(
    built: dict[str, Built], plugin: Plugin, repository_root: Path
) -> None:
    metadata = _metadata(built[plugin.folder])
    source = (repository_root / plugin.folder / "__init__.py").read_text()
    assert metadata["Name"] == plugin.distribution
    assert f'__version__ = "{metadata["Version"]}"' in source
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == "<3.15,>=3.11"
    assert metadata["Summary"]
    assert plugin.distribution in str(metadata.get_payload())


def test_installing_pulls_in_no_vllm_and_no_torch(
    built: dict[str, Built], plugin: Plugin
) -> None:
    requirements = _metadata(built[plugin.folder]).get_all("Requires-Dist", [])
    unconditional = [r for r in requirements if "extra ==" not in r]
    assert sorted(unconditional) == list(plugin.requirements)
    # vLLM is offered as an extra only; torch comes with vLLM.
    assert any(r.startswith("vllm") and "extra == 'vllm'" in r for r in requirements)
    assert not any(r.startswith("torch") for r in requirements)


def test_entry_points_share_one_name(built: dict[str, Built], plugin: Plugin) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(_dist_info_text(built[plugin.folder], "entry_points.txt"))
    groups = {group: dict(parser[group]) for group in parser.sections()}
    name = plugin.entry_point
    expected = {"vllm.general_plugins": {name: f"{plugin.folder}:register"}}
    if plugin.folder == "vllm_program_sched":
        endpoint = "vllm_program_sched.programs_api:ProgramsEndpoint"
        expected["vllm.endpoint_plugins"] = {name: endpoint}
    if plugin.folder == "vllm_hashattn":
        expected["console_scripts"] = {"vllm-hashattn": "vllm_hashattn.cli:main"}
    if plugin.folder == "moe_offload":
        expected["console_scripts"] = {"vllm-moe-offload": "moe_offload.cli:main"}
    if plugin.folder == "vllm_vectorq":
        endpoint = "vllm_vectorq.admin_api:VectorQEndpoint"
        expected["vllm.endpoint_plugins"] = {name: endpoint}
        expected["console_scripts"] = {"vllm-vectorq": "vllm_vectorq.cli:main"}
    assert groups == expected


def test_no_module_is_named_like_one_of_the_standard_library(
    repository_root: Path, plugin: Plugin
) -> None:
    stems = {Path(m).stem for m in _modules(repository_root, plugin)}
    assert not stems & set(sys.stdlib_module_names)
