# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The file that holds the trained hash of a model, and the model it belongs to.

One safetensors file: four tensors for each layer, and metadata with the format, which
says how keys are coded, the settings and the model's fingerprint. A hash says nothing
about another model, a fine-tune whose keys moved, or other rotary embeddings, so a file
is only loaded for the model that it was made for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .scorer_levels import LevelHash
from .scorer_linear import LinearHash

LayerHash = LinearHash | LevelHash
SIGNS_FORMAT = "vllm-hashattn linear 1"
LEVELS_FORMAT = "vllm-hashattn levels 1"
_KINDS: dict[str, type[LayerHash]] = {
    SIGNS_FORMAT: LinearHash,
    LEVELS_FORMAT: LevelHash,
}
# What of a model's configuration decides its queries and keys.
_CONFIG = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
)


class HashFileError(ValueError):
    """A hash file that cannot be used, and why."""


@dataclass(frozen=True, slots=True)
class HashFile:
    """A trained hash.

    Attributes:
        layers: By index of the layer.
        model: Fingerprint of the model, from :func:`model_fingerprint`.
        training: How it was made, for people to read.
    """

    layers: Mapping[int, LayerHash]
    model: Mapping[str, Any]
    training: Mapping[str, Any]

    @property
    def format(self) -> str:
        """Name of how keys are coded.

        Raises:
            ValueError: Layers differ, or there are none.
        """
        found = {type(maps) for maps in self.layers.values()}
        named = [name for name, kind in _KINDS.items() if {kind} == found]
        if not named:
            raise ValueError(
                "hashattn: a hash file holds one kind of code in all layers; here are "
                f"{sorted(kind.__name__ for kind in found)}."
            )
        return named[0]

    def save(self, path: Path) -> None:
        """Write the file; an interrupted write leaves the old one.

        Raises:
            ValueError: Layers differ in kind, or there are none.
        """
        tensors = {
            f"layers.{index}.{part.name}": getattr(maps, part.name).contiguous()
            for index, maps in self.layers.items()
            for part in fields(maps)
        }
        write_hash(path, self.format, tensors, self.model, self.training)

    def check_model(self, fingerprint: Mapping[str, Any]) -> None:
        """Refuse another model.

        Args:
            fingerprint: Of the model that is to be served.

        Raises:
            HashFileError: It differs; says in what.
        """
        differing = [
            f"{name} {fingerprint.get(name)!r} instead of {self.model.get(name)!r}"
            for name in sorted({*self.model, *fingerprint})
            if fingerprint.get(name) != self.model.get(name)
        ]
        if differing:
            raise HashFileError(
                "hashattn: the hash was trained for another model: this one has "
                f"{'; '.join(differing)}. Train one with: vllm-hashattn train --model "
                "MODEL"
            )


def write_hash(
    path: Path,
    kind: str,
    tensors: dict[str, Tensor],
    model: Mapping[str, Any],
    training: Mapping[str, Any],
) -> None:
    """Write a hash file of any format; an interrupted write leaves the old one."""
    from safetensors.torch import save_file

    metadata = {
        "format": kind,
        "model": json.dumps(model),
        "training": json.dumps(training),
    }
    unfinished = path.with_name(path.name + ".part")
    save_file(tensors, unfinished, metadata)
    unfinished.replace(path)


def load(path: Path) -> HashFile:
    """Read a hash file.

    Raises:
        HashFileError: It is missing, damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            kind = _KINDS.get(metadata.get("format", ""))
            if kind is None:
                raise HashFileError(
                    f"hashattn: {path} has the format {metadata.get('format')!r}, not "
                    f"one of {sorted(_KINDS)}. Make one with: vllm-hashattn train"
                )
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise HashFileError(
            f"hashattn: {path} cannot be read as a hash file: {error}"
        ) from error
    return HashFile(
        _layers(path, kind, tensors),
        json.loads(metadata["model"]),
        json.loads(metadata["training"]),
    )


def _layers(
    path: Path, kind: type[LayerHash], tensors: dict[str, Tensor]
) -> dict[int, LayerHash]:
    wanted = {part.name for part in fields(kind)}
    parts: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        _, layer, part = name.split(".")
        parts.setdefault(int(layer), {})[part] = tensor
    for layer_index, found in parts.items():
        if set(found) != wanted:
            missing = ", ".join(sorted(wanted - set(found)))
            raise HashFileError(
                f"hashattn: {path} lacks {missing} of layer {layer_index}"
            )
    return {index: kind(**parts[index]) for index in sorted(parts)}


def model_fingerprint(folder: Path) -> dict[str, Any]:
    """Return what identifies a model as far as queries and keys go.

    Args:
        folder: With ``config.json`` and safetensors files.

    Returns:
        Fields of the configuration, and ``keys``: SHA-256 of the key projections of
        the first and the last layer as they are stored; missing where no safetensors
        file holds them.

    Raises:
        HashFileError: The folder holds no configuration.
    """
    from safetensors import safe_open

    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise HashFileError(
            f"hashattn: {folder} is no folder of a model: {error}"
        ) from error
    config = config.get("text_config", config)
    found = {name: config[name] for name in _CONFIG if config.get(name) is not None}
    digest = hashlib.sha256()
    hashed = 0
    if "num_hidden_layers" not in config:
        raise HashFileError(
            f"hashattn: the config.json in {folder} lacks num_hidden_layers; give the "
            "folder of a model that transformers can load."
        )
    last = config["num_hidden_layers"] - 1
    wanted = [f"layers.{index}.self_attn.k_proj.weight" for index in (0, last)]
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                if name.endswith(tuple(wanted)):
                    data = file.get_tensor(name).contiguous().view(torch.uint8)
                    digest.update(name.encode() + data.numpy().tobytes())
                    hashed += 1
    if hashed:
        found["keys"] = digest.hexdigest()
    return found
