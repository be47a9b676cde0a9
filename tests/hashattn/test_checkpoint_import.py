# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Published checkpoints: what they become, and that no code in them runs."""

import argparse
import io
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vllm_hashattn.checkpoint_import import (
    CheckpointError,
    import_checkpoint,
    read_checkpoint,
)
from vllm_hashattn.cli_import import add_parser
from vllm_hashattn.hash_file import HashFileError, model_fingerprint
from vllm_hashattn.paper_file import PaperFile, load_paper
from vllm_hashattn.scorer_paper import PaperScorer

LAYERS, HEADS, KV_HEADS, DIM, HIDDEN, BITS = 2, 4, 2, 16, 24, 32


class Published(nn.Module):
    """A layer's networks, with the names that the published files have."""

    def __init__(self, sizes: tuple[int, ...] = (DIM, HIDDEN, HIDDEN, BITS)) -> None:
        super().__init__()

        def one() -> nn.Sequential:
            steps: list[nn.Module] = []
            for inputs, outputs in pairwise(sizes):
                steps += [nn.Linear(inputs, outputs), nn.SiLU()]
            return nn.Sequential(*steps[:-1])

        for side in "kq":
            heads = nn.ModuleList(one() for _ in range(HEADS))
            self.add_module(f"learning_to_hash_transformation_{side}", heads)

    def heads(self, side: str) -> list[nn.Sequential]:
        return list(getattr(self, f"learning_to_hash_transformation_{side}"))


@pytest.fixture
def published() -> nn.ModuleList:
    torch.manual_seed(7)
    return nn.ModuleList(Published() for _ in range(LAYERS)).to(torch.bfloat16)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "hidden_size": HEADS * DIM,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


Write = Callable[[nn.ModuleList, Path], None]
Content = dict[int, dict[str, list[Tensor]]]


def stacked(modules: nn.ModuleList) -> Content:
    """As the hub stacks them: [heads, inputs, outputs] for each step."""
    content: Content = {}
    for index, layer in enumerate(modules):
        content[index] = {}
        for side, name in (("q", "query"), ("k", "key")):
            linears = [[s for s in head if isinstance(s, nn.Linear)]
                       for head in layer.heads(side)]  # fmt: skip
            steps = list(zip(*linears, strict=True))
            content[index][f"{name}_matrix"] = [
                torch.stack([s.weight.detach().T for s in step]) for step in steps
            ]
            content[index][f"{name}_bias"] = [
                torch.stack([s.bias.detach() for s in step]) for step in steps
            ]
    return content


def write_state_dict(modules: nn.ModuleList, path: Path) -> None:
    torch.save(modules.state_dict(), path)


def write_old_state_dict(modules: nn.ModuleList, path: Path) -> None:
    torch.save(modules.state_dict(), path, _use_new_zipfile_serialization=False)


def write_stacked(modules: nn.ModuleList, path: Path) -> None:
    path.write_bytes(pickle.dumps(stacked(modules)))


def write_stacked_parameters(modules: nn.ModuleList, path: Path) -> None:
    content = {
        layer: {n: [nn.Parameter(t) for t in steps] for n, steps in stacks.items()}
        for layer, stacks in stacked(modules).items()
    }
    path.write_bytes(pickle.dumps(content))


def write_stacked_by_torch(modules: nn.ModuleList, path: Path) -> None:
    torch.save(stacked(modules), path)


FORMS = [
    write_state_dict,
    write_old_state_dict,
    write_stacked,
    write_stacked_parameters,
    write_stacked_by_torch,
]


@pytest.mark.parametrize("write", FORMS)
def test_an_imported_scorer_agrees_with_the_published_modules(
    write: Write, published: nn.ModuleList, model: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "checkpoint", tmp_path / "hash.safetensors"
    write(published, path)
    found = import_checkpoint(path, model)
    assert found.stored is torch.bfloat16
    found.save(out)
    back = load_paper(out)
    back.check_model(model_fingerprint(model))
    assert back.training["imported_from"] == "checkpoint"
    assert len(back.training["sha256"]) == 64

    random = torch.Generator().manual_seed(1)
    keys = torch.randn(50, KV_HEADS, DIM, generator=random)
    query = torch.randn(HEADS, DIM, generator=random)
    published.float()
    for layer, networks in back.layers.items():
        scorer = PaperScorer(networks.keys, networks.queries, KV_HEADS)
        scores = scorer.score(query, scorer.describe(keys))
        for head in range(HEADS):
            of_keys = published[layer].heads("k")[head]
            of_queries = published[layer].heads("q")[head]
            with torch.no_grad():
                key_signs = of_keys(keys[:, head // (HEADS // KV_HEADS)]).sign()
                asked = of_queries(query[head]).sign()
            assert torch.equal(scores[head], key_signs @ asked)
        assert scores.unique().numel() > 8


def test_networks_of_two_steps_and_32_bit_numbers_are_taken_over(
    model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    modules = nn.ModuleList(Published((DIM, HIDDEN, 64)) for _ in range(LAYERS))
    write_state_dict(modules, path)
    found = import_checkpoint(path, model)
    assert found.stored is torch.float32
    assert [tuple(w.shape) for w in found.layers[1].keys.weights] == [
        (HEADS, DIM, HIDDEN),
        (HEADS, HIDDEN, 64),
    ]


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.trace}'",)


class EvilStorage:
    """Gives torch's own loader of storages, which loads any pickle, an evil one."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        inner = io.BytesIO()
        torch.save(Evil(self.trace), inner)
        return torch.storage._load_from_bytes, (inner.getvalue(),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "checkpoint"
    for evil in (Evil(trace), EvilStorage(trace)):
        data = pickle.dumps({0: {"key_matrix": [evil]}})
        # It does what it is meant to where nobody refuses.
        pickle.loads(data)
        assert trace.exists()
        trace.unlink()
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"asks for posix\.system"):
            read_checkpoint(path, {})
        torch.save({"0.weight": evil}, path)
        with pytest.raises(CheckpointError, match=r"asks for .*It is not loaded"):
            read_checkpoint(path, {})
        torch.save([evil], path, _use_new_zipfile_serialization=False)
        with pytest.raises(CheckpointError, match=r"asks for .*It is not loaded"):
            read_checkpoint(path, {})
        assert not trace.exists()


@pytest.mark.parametrize(
    "call",
    [
        (eval, ("1",)),
        (getattr, (1, "real")),
        (torch.load, ("x",)),
        (subprocess.Popen, (["true"],)),
        (torch.nn.Linear, (2, 2)),
        (torch.hub.load, ("x", "y")),
    ],
)
def test_all_that_tensors_do_not_need_is_refused_by_name(
    call: tuple[Callable[..., Any], tuple[Any, ...]], tmp_path: Path
) -> None:
    class Called:
        def __reduce__(self) -> tuple[Any, ...]:
            return call

    path = tmp_path / "checkpoint"
    path.write_bytes(pickle.dumps({0: Called()}))
    name = f"{call[0].__module__}.{call[0].__qualname__}"
    with pytest.raises(CheckpointError, match=f"asks for {name}, which no tensor"):
        read_checkpoint(path, {})


def test_a_tensor_larger_than_its_numbers_is_refused(tmp_path: Path) -> None:
    class Larger:
        def __init__(self, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
            self.shape = size, stride

        def __reduce__(self) -> tuple[Any, ...]:
            made, given = torch.arange(6.0).__reduce_ex__(2)
            size, stride = self.shape
            return made, (given[0], given[1], size, stride, *given[4:])

    path = tmp_path / "checkpoint"
    for size, stride, reason in (
        ((10**12,), (0,), r"has a tensor of \(1000000000000,\) in 6 numbers"),
        ((3, 2), (4, 1), "is damaged or not a checkpoint: setStorage"),
        ((6,), (-1,), "is damaged or not a checkpoint: as_strided"),
    ):
        path.write_bytes(pickle.dumps({0: Larger(size, stride)}))
        with pytest.raises(CheckpointError, match=reason):
            read_checkpoint(path, {})


@pytest.mark.parametrize("write", FORMS)
def test_truncated_files_are_refused(
    write: Write, published: nn.ModuleList, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint"
    write(published, path)
    data = path.read_bytes()
    for length in (0, 3, 60, len(data) // 3, len(data) - 20):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="is damaged or not a checkpoint"):
            read_checkpoint(path, {})
    path.write_bytes(b"<!DOCTYPE html><html>Not found</html>")
    with pytest.raises(CheckpointError, match="is damaged or not a checkpoint"):
        read_checkpoint(path, {})
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "missing", {})


def test_a_pointer_of_git_lfs_is_named(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\n"
        f"oid sha256:{64 * '0'}\nsize 157096174\n"
    )
    with pytest.raises(CheckpointError, match=r"pointer of Git LFS.*git lfs pull"):
        import_checkpoint(path, model)


def change_first(content: Content, change: Callable[[Tensor], Tensor]) -> Content:
    content[0]["key_matrix"][0] = change(content[0]["key_matrix"][0])
    return content


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t[:, :, :-1], r"layer 0: a weight of \(4, 16, 23\) with a bias"),
        (lambda t: t[:, :-1], r"layer 0: heads, head_dim and bits are \(4, 15, 32\)"),
        (lambda t: t[0], r"tensor of \(16, 24\) for the key_matrix of layer 0"),
        (lambda t: t * float("nan"), "only finite numbers"),
        (lambda t: [t], "does not consist of lists of tensors"),
    ],
)
def test_wrong_stacks_are_refused(
    change: Callable[[Tensor], Tensor],
    reason: str,
    published: nn.ModuleList,
    tmp_path: Path,
) -> None:
    path = tmp_path / "checkpoint.pkl"
    path.write_bytes(pickle.dumps(change_first(stacked(published), change)))
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(path, {})


K0 = "0.learning_to_hash_transformation_k"


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        (f"{K0}.1.2.weight", None, "step 2 of 3 of 4 heads for the key_matrix of lay"),
        (f"{K0}.3.0.bias", torch.zeros(9), r"of the shapes \[\(9,\), \(24,\)\]"),
        (f"{K0}.9.0.bias", torch.zeros(24), "step 0 of 4 of 5 heads for the key_bias"),
        (f"{K0}.0.1.weight", torch.zeros(2, 2), "step 6 of 0 of 4 heads"),
        (f"{K0}.0.0.weight", torch.zeros(2, 2, 2), "holds 0.learning_to_hash_tr"),
        (f"{K0}.0.0.weight", 3, "holds 0.learning_to_hash_transformation_k.0.0.weigh"),
        ("model.norm.weight", torch.zeros(4), "holds model.norm.weight"),
    ],
)
def test_wrong_state_dicts_are_refused(
    name: str,
    tensor: Tensor | int | None,
    reason: str,
    published: nn.ModuleList,
    tmp_path: Path,
) -> None:
    path = tmp_path / "checkpoint.pt"
    content: dict[str, Any] = OrderedDict(published.state_dict())
    content.pop(name, None)
    if tensor is not None:
        content[name] = tensor
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(path, {})


@pytest.mark.parametrize("content", [{}, [1, 2], {0: {}}, {1: 2}, {"a": 0, 1: 0}])
def test_other_pickles_are_no_checkpoint(content: object, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="no published checkpoint"):
        read_checkpoint(path, {})


def test_a_checkpoint_of_another_model_is_refused_and_all_differences_named(
    published: nn.ModuleList, model: Path, model_path: str, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    write_state_dict(published, path)
    with pytest.raises(
        CheckpointError,
        match="layers 0, 1 where the model has 0 to 29; query heads 4 where the model "
        "has 9; head_dim 16 where the model has 64",
    ):
        import_checkpoint(path, Path(model_path))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "head_dim": 32}))
    with pytest.raises(CheckpointError, match="it has head_dim 16 where the model has"):
        import_checkpoint(path, model)
    (model / "config.json").write_text(json.dumps({"num_hidden_layers": 2}))
    with pytest.raises(HashFileError, match="lacks num_attention_heads"):
        import_checkpoint(path, model)


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    options = parser.parse_args(["import", *arguments])
    return int(options.run(options))


def test_command_writes_a_hash_file(
    published: nn.ModuleList,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = tmp_path / "hat_weights.pkl", tmp_path / "hash.safetensors"
    write_stacked(published, path)
    assert run(str(path), "--model", str(model), "--out", str(out)) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "stacked pickle of 2 layers, 4 query heads of 32 bits" in printed.err
    found: PaperFile = load_paper(out)
    assert list(found.layers) == [0, 1]
    assert run(str(path), "--model", str(model), "--out", str(out), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["query_heads"], facts["head_dim"]) == (HEADS, DIM)


def test_help_needs_no_torch() -> None:
    code = (
        "import argparse, sys; import vllm_hashattn.cli_import as one, "
        "vllm_hashattn.cli_plot as other; p = argparse.ArgumentParser(); "
        "s = p.add_subparsers(); one.add_parser(s); other.add_parser(s); "
        "print({'torch', 'transformers', 'vllm', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
