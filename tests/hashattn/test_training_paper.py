# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The paper's networks learn which keys matter, and come back from their file."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.hashattn.paged_cases import random_maps
from vllm_hashattn.budget import Budget
from vllm_hashattn.hash_file import HashFile, HashFileError
from vllm_hashattn.paper_file import (
    FORMAT,
    PaperFile,
    PaperNetworks,
    format_of,
    load_paper,
)
from vllm_hashattn.recall import measure_recall
from vllm_hashattn.scorer import RandomScorer, Scorer
from vllm_hashattn.scorer_paper import HeadNetworks, PaperScorer
from vllm_hashattn.training import Captured, TrainingSettings
from vllm_hashattn.training_paper import PAPER_SETTINGS, paper_loss, train_paper_layer

HEADS, KV_HEADS, DIM, TOKENS = 4, 2, 32, 600
SETTINGS = TrainingSettings(
    codes="signs",
    bits=32,
    steps=150,
    queries=24,
    positives=8,
    sink_tokens=4,
    recent_tokens=16,
)
FEW = replace(SETTINGS, bits=16, steps=3, queries=4)
BUDGET = Budget(0.1, min_tokens=0, sink_tokens=4, recent_tokens=16)


def document(seed: int) -> Captured:
    """Queries look at a few directions of the keys."""
    random = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(99)
    looks = torch.randn(HEADS, DIM, 4, generator=shared)
    keys = torch.randn(TOKENS, KV_HEADS, DIM, generator=random)
    wishes = torch.randn(64, HEADS, 4, generator=random)
    queries = torch.einsum("qhr,hdr->qhd", wishes, looks)
    return Captured(queries, torch.arange(TOKENS - 64, TOKENS), keys)


def recall(scorer: Scorer, held_out: Captured) -> float:
    found = []
    for query, position in zip(
        held_out.queries, held_out.positions.tolist(), strict=True
    ):
        keys = held_out.keys[: position + 1]
        scores = scorer.score(query, scorer.describe(keys))
        found.append(measure_recall(scores, query, keys, BUDGET, 8).recall)
    return sum(found) / len(found)


def head_by_head(networks: HeadNetworks) -> list[nn.Sequential]:
    """One torch module for each head, written out."""
    modules = []
    for head in range(len(networks.weights[0])):
        steps: list[nn.Module] = []
        for weight, bias in zip(networks.weights, networks.biases, strict=True):
            linear = nn.Linear(*weight.shape[1:])
            linear.weight.data, linear.bias.data = weight[head].T, bias[head]
            steps += [linear, nn.SiLU()]
        modules.append(nn.Sequential(*steps[:-1]))
    return modules


def test_trained_networks_find_more_than_untrained_ones() -> None:
    steps = list(train_paper_layer([document(1), document(2)], SETTINGS))
    assert len(steps) == SETTINGS.steps
    losses = [loss for loss, _, _ in steps]
    held_out = document(3)
    first, trained = (
        recall(PaperScorer(keys, queries, KV_HEADS), held_out)
        for _, keys, queries in (steps[0], steps[-1])
    )
    chance = recall(RandomScorer(), held_out)
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    assert trained > 2 * first
    assert trained > 4 * chance


def test_loss_is_that_of_the_heads_one_by_one() -> None:
    given = document(1)
    _, keys, queries = list(train_paper_layer([given], FEW))[-1]
    picked = torch.tensor([3, 60])
    total, count = 0.0, 0
    for head, (of_keys, of_queries) in enumerate(
        zip(head_by_head(keys), head_by_head(queries), strict=True)
    ):
        own_keys = given.keys[:, head // (HEADS // KV_HEADS)]
        for index in picked.tolist():
            query, position = given.queries[index, head], int(given.positions[index])
            # Neither the first 4 nor the newest 16 of those that the query sees.
            middle = own_keys[4 : position - 15]
            best = (middle @ query).topk(8).indices
            wanted = torch.zeros(len(middle)).index_fill(0, best, 1.0)
            with torch.no_grad():
                logits = of_keys(middle).tanh() @ of_queries(query).tanh()
            total += float(
                binary_cross_entropy_with_logits(
                    logits, wanted, 1.0 + 19.0 * wanted, reduction="sum"
                )
            )
            count += len(middle)
    found = paper_loss(keys, queries, given, picked, FEW)
    assert float(found) == pytest.approx(total / count, rel=1e-5)


def test_a_step_is_one_of_adam_on_that_loss() -> None:
    one_query = document(1)
    one_query = Captured(one_query.queries[:1], one_query.positions[:1], one_query.keys)
    steps = list(train_paper_layer([one_query], FEW))
    # With one query there is nothing to draw: each loss follows from the networks
    # before it.
    for (_, keys, queries), (loss, _, _) in pairwise(steps):
        again = paper_loss(keys, queries, one_query, torch.zeros(4).long(), FEW)
        assert float(again) == pytest.approx(loss, rel=1e-5)
    # Adam moves every number that has a gradient by the learning rate at most, and
    # nearly so at first.
    (_, first, _), (_, second, _) = steps[:2]
    for before, after in zip(first.weights, second.weights, strict=True):
        moved = (after - before).abs()
        assert float(moved.max()) == pytest.approx(FEW.learning_rate, rel=0.05)


def test_networks_start_as_linear_layers_do_and_no_two_heads_alike() -> None:
    _, keys, queries = next(train_paper_layer([document(1)], FEW))
    shapes = [tuple(weight.shape) for weight in keys.weights]
    assert shapes == [(4, 32, 128), (4, 128, 128), (4, 128, 16)]
    for networks in (keys, queries):
        for weight, bias in zip(networks.weights, networks.biases, strict=True):
            bound = weight.shape[1] ** -0.5
            for part in (weight, bias):
                # One step has been made.
                assert 0.9 * bound < part.abs().max() <= bound + 1.1e-3
            assert not torch.allclose(weight[0], weight[1], atol=0.01)
    assert not torch.allclose(keys.weights[0], queries.weights[0], atol=0.01)


def test_training_can_be_repeated() -> None:
    one, again, other = (
        list(train_paper_layer([document(1)], replace(FEW, seed=seed)))
        for seed in (0, 0, 1)
    )
    assert [step[0] for step in one] == [step[0] for step in again]
    assert torch.equal(one[-1][1].weights[0], again[-1][1].weights[0])
    assert not torch.equal(one[-1][1].weights[0], other[-1][1].weights[0])
    # What was given before is not changed by later steps.
    assert not torch.equal(one[0][2].weights[1], one[-1][2].weights[1])


def test_vectors_from_inference_mode_can_be_trained_on() -> None:
    normal = document(1)
    with torch.inference_mode():
        captured = Captured(
            normal.queries.clone(), normal.positions.clone(), normal.keys.clone()
        )
    one, other = (list(train_paper_layer([d], FEW)) for d in (normal, captured))
    assert one[-1][0] == other[-1][0]


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="35 tokens; training needs 36"):
        next(train_paper_layer([short(20), short(35)], FEW))
    with pytest.raises(ValueError, match="12 bits were asked for"):
        next(train_paper_layer([document(1)], replace(FEW, bits=12)))
    assert PAPER_SETTINGS.bits == 32


def short(tokens: int) -> Captured:
    long = document(1)
    return Captured(long.queries, long.positions, long.keys[:tokens])


def networks(seed: int = 0, sizes: tuple[int, ...] = (32, 24, 16)) -> PaperNetworks:
    random = torch.Generator().manual_seed(seed)

    def side() -> HeadNetworks:
        steps = list(pairwise(sizes))
        return HeadNetworks(
            [torch.randn(6, *step, generator=random) for step in steps],
            [torch.randn(6, step[1], generator=random) for step in steps],
        )

    return PaperNetworks(side(), side())


@pytest.fixture
def whole() -> PaperFile:
    layers = {index: networks(index) for index in (0, 1, 11)}
    return PaperFile(layers, {"hidden_size": 64, "keys": "abc"}, {"steps": 3})


def tensors_of(found: PaperNetworks) -> list[Tensor]:
    return [
        tensor
        for side in (found.keys, found.queries)
        for tensor in (*side.weights, *side.biases)
    ]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_everything_comes_back(
    whole: PaperFile, stored: torch.dtype, tmp_path: Path
) -> None:
    path = tmp_path / "hash.safetensors"
    replace(whole, stored=stored).save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert format_of(path) == FORMAT
    found = load_paper(path)
    assert (found.model, found.training) == (whole.model, whole.training)
    assert found.stored is stored
    assert {tensor.dtype for tensor in load_file(path).values()} == {stored}
    assert list(found.layers) == [0, 1, 11]
    for index, given in whole.layers.items():
        shape = found.layers[index]
        assert (shape.heads, shape.head_dim, shape.bits) == (6, 32, 16)
        for mine, theirs in zip(tensors_of(shape), tensors_of(given), strict=True):
            assert mine.dtype == torch.float32
            assert torch.equal(mine, theirs.to(stored).float())


def test_another_model_is_refused_and_the_difference_named(whole: PaperFile) -> None:
    whole.check_model({"hidden_size": 64, "keys": "abc"})
    with pytest.raises(HashFileError, match="hidden_size 128 instead of 64"):
        whole.check_model({"hidden_size": 128, "keys": "abc"})


def test_other_files_are_refused_with_the_reason(
    whole: PaperFile, tmp_path: Path
) -> None:
    with pytest.raises(HashFileError, match="cannot be read"):
        load_paper(tmp_path / "missing.safetensors")
    path = tmp_path / "hash.safetensors"
    HashFile({0: random_maps(4, 2, 64, 128)}, {}, {}).save(path)
    with pytest.raises(HashFileError, match="'vllm-hashattn linear 1', not 'vllm-h"):
        load_paper(path)
    whole.save(path)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(HashFileError, match="cannot be read"):
        load_paper(cut)


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("layers.0.keys.1.bias", None, "bias for the keys of layer 0 is missing"),
        ("layers.1.queries.0.weight", torch.zeros(6, 32, 8), r"\(6, 32, 8\) with"),
        ("layers.1.queries.0.weight", torch.zeros(6), "not enough values"),
        ("layers.1.queries.1.weight", torch.zeros(6, 24), "index out of range"),
        ("layers.1.queries.2.weight", torch.zeros(6, 16, 8), "queries of layer 1"),
        ("layers.1.values.0.weight", torch.zeros(1), "holds layers.1.values.0.weight"),
        ("norm", torch.zeros(1), "holds norm"),
    ],
)
def test_a_file_with_other_tensors_is_refused(
    name: str, tensor: Tensor | None, reason: str, whole: PaperFile, tmp_path: Path
) -> None:
    path = tmp_path / "hash.safetensors"
    whole.save(path)
    tensors = load_file(path)
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, path, {"format": FORMAT, "model": "{}", "training": "{}"})
    with pytest.raises(HashFileError, match=f"is damaged: .*{reason}"):
        load_paper(path)


def test_networks_that_do_not_belong_together_are_refused() -> None:
    wide, narrow = networks(), networks(sizes=(32, 8))
    with pytest.raises(ValueError, match=r"\(6, 32, 16\) for keys, but \(6, 32, 8\)"):
        PaperNetworks(wide.keys, narrow.queries)
    odd = networks(sizes=(32, 16)).keys
    odd = HeadNetworks([odd.weights[0][..., :9]], [odd.biases[0][:, :9]])
    with pytest.raises(ValueError, match="networks of 9 bits"):
        PaperNetworks(odd, odd)
