# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Hashes for the quality benchmark: of all kinds, trained on the same texts.

Essays and Python's own sources; the files that quality is measured on are others. The
paper's networks take several times as long, and are trained for the small model alone.
What was trained is kept in the cache directory.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.hashattn.long_model import ensure_long_model
from scripts.model_cache import cache_dir, demo_model_dir
from vllm_hashattn.capture import capture, offsets
from vllm_hashattn.hash_file import HashFile, LayerHash, load, model_fingerprint
from vllm_hashattn.paper_file import PaperFile, PaperNetworks, load_paper
from vllm_hashattn.training import Captured, TrainingSettings, train_layer
from vllm_hashattn.training_levels import train_levels
from vllm_hashattn.training_paper import PAPER_SETTINGS, train_paper_layer
from vllm_hashattn.training_texts import read_documents

TOKENS = 4096
DOCUMENTS = 12
STEPS = 240
_QUERIES = 256
_TRAINED_MODULES = ("argparse", "inspect", "subprocess", "pickle", "zipfile")
MEASURED_MODULES = ("tarfile", "typing", "datetime", "doctest")
_TRAINED_ESSAYS = slice(0, 10)
MEASURED_ESSAYS = slice(10, 20)


@dataclass(frozen=True)
class Hashes:
    """Of one model.

    Attributes:
        levels: 128 bits for each KV head, sixteen levels of 32 channels.
        signs: As many bits, signs.
        paper: 32 bits for each query head; None where they were not trained.
    """

    levels: HashFile
    signs: HashFile
    paper: PaperFile | None


def essays(which: slice) -> list[Path]:
    """Return some of the essays, longer ones, in a fixed order.

    Raises:
        ValueError: They are not on this machine.
    """
    folder = Path(os.environ.get("SUITE_DATA_DIR", "../shared/data")) / "essays"
    found = [path for path in folder.glob("*.txt") if path.stat().st_size > 12_000]
    if len(found) < MEASURED_ESSAYS.stop:
        raise ValueError(
            f"{folder} holds {len(found)} long essays; {MEASURED_ESSAYS.stop} are "
            "needed. Set SUITE_DATA_DIR to the folder of the benchmarks' data."
        )
    return sorted(found, key=lambda path: (path.stat().st_size, path.name))[which]


def modules(names: tuple[str, ...]) -> list[Path]:
    """Return sources of Python's library."""
    return [Path(os.__file__).parent / f"{name}.py" for name in names]


def hashes_of(model_folder: Path) -> Hashes:
    """Return trained hashes; trains them at the first call."""
    folder = cache_dir() / "hashattn" / f"{model_folder.name}-{TOKENS}-{STEPS}"
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: folder / f"{kind}.safetensors" for kind in ("levels", "signs")}
    paper = folder / "paper.safetensors"
    with_paper = model_folder == demo_model_dir()
    wanted = [*files.values(), *([paper] if with_paper else [])]
    if not all(path.is_file() for path in wanted):
        captured = _captured(model_folder)
        fingerprint = model_fingerprint(model_folder)
        for kind, path in files.items():
            if not path.is_file():
                _trained(kind, captured, fingerprint).save(path)
        if with_paper and not paper.is_file():
            _paper(captured, fingerprint).save(paper)
    levels, signs = (load(path) for path in files.values())
    return Hashes(levels, signs, load_paper(paper) if with_paper else None)


def _trained(
    kind: str, captured: list[dict[int, Captured]], fingerprint: dict[str, Any]
) -> HashFile:
    settings = TrainingSettings(codes=kind, steps=STEPS)
    train = train_levels if kind == "levels" else train_layer
    layers: dict[int, LayerHash] = {}
    for layer in sorted(captured[0]):
        started_s = time.perf_counter()
        for _, maps in train([each[layer] for each in captured], settings):
            layers[layer] = maps
        _say(f"layer {layer}: {kind} {time.perf_counter() - started_s:.0f} s")
    return HashFile(layers, fingerprint, asdict(settings))


def _paper(
    captured: list[dict[int, Captured]], fingerprint: dict[str, Any]
) -> PaperFile:
    settings = replace(PAPER_SETTINGS, steps=STEPS)
    layers: dict[int, PaperNetworks] = {}
    for layer in sorted(captured[0]):
        started_s = time.perf_counter()
        documents = [each[layer] for each in captured]
        for _, keys, queries in train_paper_layer(documents, settings):
            networks = keys, queries
        layers[layer] = PaperNetworks(*networks)
        _say(f"layer {layer}: paper {time.perf_counter() - started_s:.0f} s")
    return PaperFile(layers, fingerprint, asdict(settings))


def _captured(model_folder: Path) -> list[dict[int, Captured]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    texts = essays(_TRAINED_ESSAYS)
    code = modules(_TRAINED_MODULES)
    half = DOCUMENTS // 2
    # By turns, so that both lie at early and at late positions.
    pairs = zip(
        read_documents(texts, tokenizer, TOKENS, half, 0).training,
        read_documents(code, tokenizer, TOKENS, half, 0).training,
        strict=True,
    )
    documents = [each for pair in pairs for each in pair]
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
    found = []
    places = offsets(len(documents), TOKENS, model.config.max_position_embeddings)
    for number, token_ids in enumerate(documents):
        found.append(capture(model, token_ids, _QUERIES, number, places[number]))
        _say(f"{model_folder.name}: document {number + 1} of {len(documents)}")
    return found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    for each in (ensure_long_model(), demo_model_dir()):
        hashes_of(each)
