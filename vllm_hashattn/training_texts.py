# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Documents to train on, out of text files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KINDS = (".txt", ".md", ".rst", ".py")


@dataclass(frozen=True, slots=True)
class Documents:
    """Token ids of equal length.

    Attributes:
        training: int64 [tokens] each.
        held_out: The same, from files that no training document holds a part of.
    """

    training: Sequence[Tensor]
    held_out: Sequence[Tensor]


def read_documents(
    paths: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    training: int,
    held_out: int,
) -> Documents:
    """Join files to documents, in the order of their names.

    Args:
        paths: Text files, or folders of them (.txt, .md, .rst, .py).
        tokenizer: Of the model.
        tokens: Length of each document.
        training: Documents to train on.
        held_out: Documents to report recall on; they come from the last files.

    Raises:
        ValueError: There is not enough text.
    """
    files = [file for path in paths for file in _files(path)]
    last = list(islice(_join(reversed(files), tokenizer, tokens), held_out))
    kept_apart = {source for _, sources in last for source in sources}
    others = (file for file in files if file not in kept_apart)
    first = list(islice(_join(others, tokenizer, tokens), training))
    if len(last) < held_out or len(first) < training:
        raise ValueError(
            f"hashattn: {training} documents to train on and {held_out} held out, of "
            f"{tokens:,} tokens each, need more text than {len(files)} files hold. "
            "Give more files, or fewer or shorter documents."
        )
    return Documents([ids for ids, _ in first], [ids for ids, _ in last])


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"hashattn: {path} is neither a text file nor a folder.")
    return sorted(file for kind in _KINDS for file in path.rglob(f"*{kind}"))


def _join(
    files: Iterable[Path], tokenizer: PreTrainedTokenizerBase, tokens: int
) -> Iterator[tuple[Tensor, frozenset[Path]]]:
    """Documents and the files that they are made of."""
    ids: list[int] = []
    sources: set[Path] = set()
    for file in files:
        text = file.read_text("utf-8", errors="replace")
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        sources.add(file)
        while len(ids) >= tokens:
            yield torch.tensor(ids[:tokens]), frozenset(sources)
            ids = ids[tokens:]
            sources = {file} if ids else set()
