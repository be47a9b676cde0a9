# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The hash that a server uses: found once for a process, cut to a rank's heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path

from torch import Tensor

from .codes import pack_signs
from .hash_file import HashFile, LayerHash, load
from .paper_file import FORMAT as PAPER_FORMAT
from .paper_file import PaperFile, PaperNetworks, format_of, load_paper
from .scorer_paper import HeadNetworks, PaperScorer


@cache
def hashes(path: str) -> HashFile | PaperFile:
    """Read a file of either kind, once.

    Raises:
        HashFileError: It cannot be used.
    """
    file = Path(path)
    return load_paper(file) if format_of(file) == PAPER_FORMAT else load(file)


def any_layer(file: HashFile | PaperFile) -> LayerHash | PaperNetworks:
    """Return one of the layers, whose shape is that of all."""
    layers: Mapping[int, LayerHash | PaperNetworks] = file.layers
    return next(iter(layers.values()))


def code_bytes(file: HashFile | PaperFile) -> int:
    """Return the size of a key's code for one KV head.

    Raises:
        ValueError: Layers differ.
    """
    sizes = {_code_bytes(file, layer) for layer in file.layers}
    if len(sizes) != 1:
        raise ValueError(
            f"hashattn: the hash has codes of {sorted(sizes)} bytes; all layers need "
            "the same number. Train the whole model with the same settings."
        )
    return sizes.pop()


def _code_bytes(file: HashFile | PaperFile, layer: int) -> int:
    if isinstance(file, HashFile):
        return file.layers[layer].bits // 8
    networks = file.layers[layer]
    kv_heads = file.model.get("num_key_value_heads") or networks.heads
    return networks.bits // 8 * (networks.heads // int(kv_heads))


class LayerCodes:
    """Makes the codes of one layer, as far as the kernels do not.

    Args:
        maps: Of the layer.
        kv_heads: Of this rank.
    """

    def __init__(self, maps: LayerHash | PaperNetworks, kv_heads: int) -> None:
        self._maps = maps
        self._paper: PaperScorer | None = None
        if isinstance(maps, PaperNetworks):
            self._paper = PaperScorer(maps.keys, maps.queries, kv_heads)
        self._kv_heads = kv_heads

    def of_keys(self, keys: Tensor) -> LayerHash | Tensor:
        """Return what `kernels.store` takes for keys, [tokens, kv heads, head_dim]."""
        if not isinstance(self._maps, PaperNetworks):
            return self._maps
        assert self._paper is not None
        return self._paper.describe(keys)

    def of_queries(self, query: Tensor) -> LayerHash | Tensor:
        """Return what `kernels.decode` takes for queries, [sequences, heads, dim].

        The codes of a group's heads, one behind the other, are compared with those of
        a key at once: the distance is the sum over the heads.
        """
        if not isinstance(self._maps, PaperNetworks):
            return self._maps
        codes = pack_signs(self._maps.queries(query.float().transpose(0, 1)))
        joined = codes.transpose(0, 1).reshape(len(query), self._kv_heads, 1, -1)
        return joined.contiguous()


def of_rank(
    maps: LayerHash | PaperNetworks,
    heads: int,
    kv_heads: int,
    rank: Callable[[], int],
) -> LayerHash | PaperNetworks:
    """Return the part of a tensor-parallel rank.

    Args:
        maps: Of all heads.
        heads: Query heads of each rank.
        kv_heads: KV heads of each rank; with more ranks than KV heads they share one.
        rank: Says which; not asked where one rank has all heads.
    """
    if maps.heads == heads:
        return maps
    number = rank()
    asked = slice(number * heads, (number + 1) * heads)
    if isinstance(maps, PaperNetworks):
        return PaperNetworks(
            *(
                HeadNetworks(
                    [weight[asked].contiguous() for weight in side.weights],
                    [bias[asked].contiguous() for bias in side.biases],
                )
                for side in (maps.keys, maps.queries)
            )
        )
    group = maps.heads // maps.key_map.shape[0]
    first = number * heads // group
    stored = slice(first, first + kv_heads)
    parts = {
        part.name: getattr(maps, part.name)[
            stored if part.name.startswith("key") else asked
        ].contiguous()
        for part in fields(maps)
    }
    return type(maps)(**parts)
