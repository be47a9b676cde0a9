# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Takes over checkpoints that were published with the paper.

Two forms are known. A *state dict*, written by ``torch.save``, has one network for each
layer, side and query head. A *stacked pickle* (``hat_weights.pkl``) has one list of
stacked tensors for each layer and side. Both are pickles, which can run any code when
they are read the usual way; here nothing is called that does not make a tensor. What
comes out is a safetensors file, and the pickle is needed no more.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from .hash_file import model_fingerprint
from .paper_file import PaperFile, PaperNetworks, misfits
from .scorer_paper import HeadNetworks

STATE_DICT, STACKED = "state dict", "stacked pickle"
_LFS = b"version https://git-lfs"
# How files of torch.save begin: a zip archive, or before torch 1.6 a magic number.
_ZIP, _MAGIC = b"PK\x03\x04", b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_NAME = re.compile(
    r"(\d+)\.learning_to_hash_transformation_([kq])\.(\d+)\.(\d+)\.(weight|bias)"
)
_STACKS = ("key_matrix", "key_bias", "query_matrix", "query_bias")
_SIDES, _KINDS = {"k": "key", "q": "query"}, {"weight": "matrix", "bias": "bias"}
# Of a layer, by name of _STACKS: one stacked tensor for each step.
_Stacks = Mapping[str, Sequence[Tensor]]
_Sizes = tuple[int, ...]
# What unpickling raises where bytes are damaged or were made to do harm.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, AttributeError, ImportError, LookupError),
    *(TypeError, ValueError, RuntimeError, MemoryError, OverflowError, OSError),
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be taken over, and why."""


def import_checkpoint(path: Path, model_folder: Path) -> PaperFile:
    """Read a published checkpoint for a model.

    Args:
        path: The ``.pt`` or ``.pkl`` file.
        model_folder: With ``config.json`` and safetensors files. The checkpoint does
            not say which model it was trained for; only its shape can be checked.

    Raises:
        ValueError: The file is damaged, holds something else than networks, or does
            not fit the model.
    """
    found = read_checkpoint(path, model_fingerprint(model_folder))
    differing = misfits(found.layers, found.model)
    if differing:
        raise CheckpointError(
            f"hashattn: {path} does not fit the model in {model_folder}: it has "
            f"{'; '.join(differing)}. Import the checkpoint of this model, or train a "
            "hash: vllm-hashattn train"
        )
    return found


def read_checkpoint(path: Path, model: Mapping[str, Any]) -> PaperFile:
    """Read a published checkpoint without running code that is in it.

    Args:
        path: The file.
        model: Fingerprint of the model that it is said to be for; not compared.

    Raises:
        CheckpointError: It cannot be read, or holds something else than networks.
        OSError: There is no such file.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        start = file.read(64)
    if start.startswith(_LFS):
        raise CheckpointError(
            f"hashattn: {path} is a pointer of Git LFS, not the weights. Fetch them: "
            f"git lfs pull --include '*{path.name}', or download the file itself."
        )
    by_torch = start.startswith(_ZIP) or start[2:].startswith(_MAGIC)
    try:
        form, stacks = _stacks(_load(path, by_torch))
        layers = {layer: _networks(layer, stacks[layer]) for layer in sorted(stacks)}
    except CheckpointError as error:
        raise CheckpointError(f"hashattn: {path} {error}") from error
    notes = {"imported_from": path.name, "form": form, "sha256": digest}
    dtypes = {t.dtype for one in stacks.values() for name in one for t in one[name]}
    half = len(dtypes) == 1 and dtypes <= {torch.float16, torch.bfloat16}
    return PaperFile(layers, model, notes, dtypes.pop() if half else torch.float32)


def _load(path: Path, by_torch: bool) -> object:
    try:
        if by_torch:
            return torch.load(path, map_location="cpu", weights_only=True)
        with path.open("rb") as file:
            return _TensorsOnly(file).load()
    except CheckpointError:
        raise
    except _DAMAGE as error:
        raise CheckpointError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """Say it without torch's advice to load the file in the unsafe way."""
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused:
        return f"asks for {refused[1]}, which no tensor needs. It is not loaded."
    detail = (str(error) or type(error).__name__).splitlines()[0]
    return f"is damaged or not a checkpoint: {detail[:120]}. Download it again."


class _TensorsOnly(pickle.Unpickler):
    """Makes dicts, lists, numbers, text and tensors, and refuses all else by name."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Return what makes a part of a tensor; nothing of torch is handed out."""
        allowed: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": OrderedDict,
            "torch.storage._load_from_bytes": self._numbers,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        }
        if f"{module}.{name}" not in allowed:
            raise CheckpointError(
                f"asks for {module}.{name}, which no tensor needs. It is not loaded."
            )
        return allowed[f"{module}.{name}"]

    def _numbers(self, data: bytes) -> Tensor:
        """Return all numbers of a storage, [n]; torch itself would load any pickle."""
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(storage, torch.TypedStorage):
            raise CheckpointError(f"has {type(storage).__name__} in place of numbers.")
        return torch.empty(0, dtype=storage.dtype).set_(storage)

    def _tensor(
        self, numbers: Tensor, offset: int, size: _Sizes, stride: _Sizes, *_: object
    ) -> Tensor:
        if math.prod(size) > len(numbers):
            raise CheckpointError(f"has a tensor of {size} in {len(numbers)} numbers.")
        # Refuses what reaches beyond the numbers.
        return torch.as_strided(numbers, size, stride, offset)


def _stacks(content: object) -> tuple[str, Mapping[int, _Stacks]]:
    """Return the form and the stacks of each layer."""
    names = list(content) if isinstance(content, dict) else []
    if names and all(isinstance(name, str) for name in names):
        return STATE_DICT, _of_state_dict(cast("dict[str, object]", content))
    if names and all(type(name) is int for name in names):
        return STACKED, _of_stacked(cast("dict[int, Any]", content))
    raise CheckpointError(
        f"holds {type(content).__name__} where a state dict or a dict of layers is "
        "expected; it is no published checkpoint."
    )


def _of_state_dict(content: Mapping[str, object]) -> dict[int, _Stacks]:
    found: dict[int, dict[str, dict[tuple[int, int], Tensor]]] = {}
    for name, tensor in content.items():
        place = _NAME.fullmatch(name)
        if place is None or not isinstance(tensor, Tensor) or tensor.dim() > 2:
            raise CheckpointError(
                f"holds {name}, which is no weight or bias of a network for each query "
                "head; only those can be imported."
            )
        layer, side, head, step, part = place.groups()
        stacks = found.setdefault(int(layer), {stack: {} for stack in _STACKS})
        stack = stacks[f"{_SIDES[side]}_{_KINDS[part]}"]
        stack[int(head), int(step)] = tensor.t() if part == "weight" else tensor
    return {
        layer: {name: _stack(layer, name, stacks[name]) for name in _STACKS}
        for layer, stacks in found.items()
    }


def _stack(
    layer: int, name: str, found: Mapping[tuple[int, int], Tensor]
) -> list[Tensor]:
    """Join heads: one tensor for each step, which are 0, 2, 4 with SiLU between."""
    heads = len({head for head, _ in found})
    stacked = []
    for step in range(0, 2 * len({step for _, step in found}), 2):
        own = [found[head, step] for head in range(heads) if (head, step) in found]
        shapes = sorted({tuple(one.shape) for one in own})
        if len(own) != heads or len(shapes) != 1:
            raise CheckpointError(
                f"has step {step} of {len(own)} of {heads} heads for the {name} of "
                f"layer {layer}, of the shapes {shapes}; all must be there, and alike."
            )
        stacked.append(torch.stack(own))
    return stacked


def _is_list_of_tensors(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(one, Tensor) for one in found)


def _of_stacked(content: Mapping[int, Any]) -> Mapping[int, _Stacks]:
    for layer, stacks in content.items():
        if (
            not isinstance(stacks, dict)
            or set(stacks) != set(_STACKS)
            or not all(isinstance(steps, list) for steps in stacks.values())
            or not all(
                isinstance(s, Tensor) for steps in stacks.values() for s in steps
            )
        ):
            raise CheckpointError(
                f"has a layer {layer} that does not consist of lists of tensors named "
                f"{', '.join(_STACKS)}; it is no published checkpoint."
            )
    return content


def _networks(layer: int, stacks: _Stacks) -> PaperNetworks:
    for name, steps in stacks.items():
        sizes = 3 if name.endswith("matrix") else 2
        for step in steps:
            if step.dim() != sizes or not step.isfinite().all():
                raise CheckpointError(
                    f"has a tensor of {tuple(step.shape)} for the {name} of layer "
                    f"{layer}; {sizes} sizes, and only finite numbers, are expected."
                )
    whole = [[step.float() for step in stacks[name]] for name in _STACKS]
    try:
        return PaperNetworks(HeadNetworks(*whole[:2]), HeadNetworks(*whole[2:]))
    except ValueError as error:
        detail = str(error).removeprefix("hashattn: ")
        raise CheckpointError(f"cannot be used, layer {layer}: {detail}") from error
