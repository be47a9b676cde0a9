# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The file that holds the paper's networks of a model, and the model they belong to.

One safetensors file, as for linear hashes: a weight and a bias for each step of the
networks of each layer, and metadata with the format, how the networks were made and the
model's fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .hash_file import HashFile, HashFileError, write_hash
from .scorer_paper import HeadNetworks

FORMAT = "vllm-hashattn paper 1"
_SIDES = ("keys", "queries")
_PARTS = ("weight", "bias")


@dataclass(frozen=True, slots=True)
class PaperNetworks:
    """Networks of one layer.

    Attributes:
        keys: Of all query heads, for keys.
        queries: The same, for queries.

    Raises:
        ValueError: They do not belong together, or the bits are no whole bytes.
    """

    keys: HeadNetworks
    queries: HeadNetworks

    def __post_init__(self) -> None:
        of_keys, of_queries = (
            (*side.weights[0].shape[:2], side.weights[-1].shape[2])
            for side in (self.keys, self.queries)
        )
        if of_keys != of_queries:
            raise ValueError(
                f"hashattn: heads, head_dim and bits are {of_keys} for keys, but "
                f"{of_queries} for queries; they must be the same."
            )
        if self.bits % 8 or not self.bits:
            raise ValueError(
                f"hashattn: networks of {self.bits} bits; codes are whole bytes, so "
                "the number of bits must be a multiple of 8."
            )

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.keys.weights[0].shape[0]

    @property
    def head_dim(self) -> int:
        """Channels of a key."""
        return self.keys.weights[0].shape[1]

    @property
    def bits(self) -> int:
        """Of the code of one query head."""
        return self.keys.weights[-1].shape[2]


@dataclass(frozen=True, slots=True)
class PaperFile:
    """The paper's networks for a whole model.

    Attributes:
        layers: By index of the layer.
        model: Fingerprint of the model, from `hash_file.model_fingerprint`.
        training: How they were made, for people to read.
        stored: Floating dtype in the file; in memory it is always float32.
    """

    layers: Mapping[int, PaperNetworks]
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    stored: torch.dtype = torch.float32

    def save(self, path: Path) -> None:
        """Write the file; an interrupted write leaves the old one."""
        tensors = {}
        for layer, networks in self.layers.items():
            for side in _SIDES:
                found: HeadNetworks = getattr(networks, side)
                parts = zip(found.weights, found.biases, strict=True)
                for step, pair in enumerate(parts):
                    for part, tensor in zip(_PARTS, pair, strict=True):
                        name = f"layers.{layer}.{side}.{step}.{part}"
                        # Copied, because tensors may share memory.
                        tensors[name] = tensor.to(
                            self.stored,
                            copy=True,
                            memory_format=torch.contiguous_format,
                        )
        write_hash(path, FORMAT, tensors, self.model, self.training)

    def check_model(self, fingerprint: Mapping[str, Any]) -> None:
        """Refuse another model.

        Args:
            fingerprint: Of the model that is to be served.

        Raises:
            HashFileError: It differs; says in what.
        """
        HashFile({}, self.model, self.training).check_model(fingerprint)


def misfits(layers: Mapping[int, PaperNetworks], model: Mapping[str, Any]) -> list[str]:
    """Compare shapes with those of a model.

    Args:
        layers: By index of the layer, in ascending order.
        model: Fingerprint of the model.

    Returns:
        Each difference in words; empty where the networks can be used for the model.

    Raises:
        HashFileError: The model's configuration does not say its shape.
    """
    heads = model.get("num_attention_heads")
    if not heads or not (model.get("head_dim") or model.get("hidden_size")):
        raise HashFileError(
            "hashattn: the model's config.json lacks num_attention_heads, or both "
            "head_dim and hidden_size; networks cannot be compared with it."
        )
    head_dim = model.get("head_dim") or model["hidden_size"] // heads
    compared = {
        "layers": (list(layers), list(range(model["num_hidden_layers"]))),
        "query heads": (sorted({each.heads for each in layers.values()}), [heads]),
        "head_dim": (sorted({each.head_dim for each in layers.values()}), [head_dim]),
    }
    return [
        f"{what} {_brief(has)} where the model has {_brief(wants)}"
        for what, (has, wants) in compared.items()
        if has != wants
    ]


def _brief(numbers: list[int]) -> str:
    """Write 0 to 31 for a whole range, else the numbers."""
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(str(number) for number in numbers) or "none"


def format_of(path: Path) -> str | None:
    """Return the format that a safetensors file names, to choose how it is loaded.

    Raises:
        HashFileError: It is missing, damaged or no safetensors file.
    """
    return _read(path, names_only=True)[0].get("format")


def load_paper(path: Path) -> PaperFile:
    """Read a file of the paper's networks.

    Raises:
        HashFileError: It is missing, damaged or of another kind.
    """
    metadata, tensors = _read(path, names_only=False)
    if metadata.get("format") != FORMAT:
        raise HashFileError(
            f"hashattn: {path} has the format {metadata.get('format')!r}, not "
            f"{FORMAT!r}. Make one with: vllm-hashattn import"
        )
    try:
        layers = _layers(tensors)
        model = json.loads(metadata["model"])
        training = json.loads(metadata["training"])
    except (LookupError, ValueError) as error:
        raise HashFileError(
            f"hashattn: {path} is damaged: {str(error).removeprefix('hashattn: ')}"
        ) from error
    stored = {tensor.dtype for tensor in tensors.values()}
    dtype = stored.pop() if len(stored) == 1 else torch.float32
    return PaperFile(layers, model, training, dtype)


def _read(path: Path, names_only: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = [] if names_only else list(file.keys())
            return file.metadata() or {}, {
                name: file.get_tensor(name) for name in names
            }
    except (OSError, SafetensorError) as error:
        raise HashFileError(
            f"hashattn: {path} cannot be read as a hash file: {error}"
        ) from error


def _layers(tensors: Mapping[str, Tensor]) -> dict[int, PaperNetworks]:
    """Raises ValueError where names or shapes do not belong together."""
    found: dict[int, dict[str, dict[tuple[int, str], Tensor]]] = {}
    for name, tensor in tensors.items():
        place = name.split(".")
        if len(place) != 5 or place[2] not in _SIDES or place[4] not in _PARTS:
            raise ValueError(f"it holds {name}")
        sides = found.setdefault(int(place[1]), {side: {} for side in _SIDES})
        sides[place[2]][int(place[3]), place[4]] = tensor.float()
    return {
        layer: PaperNetworks(*(_side(layer, side, found[layer]) for side in _SIDES))
        for layer in sorted(found)
    }


def _side(
    layer: int, side: str, found: Mapping[str, Mapping[tuple[int, str], Tensor]]
) -> HeadNetworks:
    parts = found[side]
    steps = range(len(parts) // 2)
    missing = [(i, part) for i in steps for part in _PARTS if (i, part) not in parts]
    if missing or not parts or len(parts) % 2:
        raise ValueError(f"a weight or bias for the {side} of layer {layer} is missing")
    return HeadNetworks(
        [parts[i, "weight"] for i in steps], [parts[i, "bias"] for i in steps]
    )
