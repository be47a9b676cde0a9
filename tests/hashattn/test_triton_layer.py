# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The backend for GPUs in vLLM's own layers, with caches as vLLM's workers make them.

Runs in the interpreter, see test_triton_process.py. vLLM turns Triton off on CPUs, but
for a build of Triton with a backend of that name. Here the interpreter is that backend,
so that vLLM's own kernels write and read the widened rows. They are run with float16:
the interpreter multiplies matrices of bfloat16 as if they were integers.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tests.hashattn.test_triton_decode import drawn
from tests.hashattn.test_triton_process import INTERPRETED, interpreted
from vllm_hashattn.attention import attend_biased
from vllm_hashattn.budget import Budget
from vllm_hashattn.scorer import Scorer, of_group
from vllm_hashattn.scorer_levels import LevelHash, LevelScorer
from vllm_hashattn.scorer_linear import LinearScorer
from vllm_hashattn.selection import pivotal_tokens

if INTERPRETED:
    from triton.backends import backends

    backends.setdefault("cpu", SimpleNamespace(driver=None))
    from vllm.forward_context import set_forward_context
    from vllm.model_executor.layers.attention import Attention
    from vllm.triton_utils import HAS_TRITON
    from vllm.v1.attention.backend import CommonAttentionMetadata
    from vllm.v1.kv_cache_interface import (
        KVCacheLayout,
        KVCacheTensor,
        create_kv_cache_views,
    )
    from vllm.v1.worker.utils import customize_attention_spec

    from tests.hashattn.test_backend_cuda import configured, current
    from vllm_hashattn.backend_cuda import (
        HashAttnCudaBackend,
        HashAttnCudaMetadataBuilder,
    )

HEADS, KV_HEADS, DIM, BLOCK_TOKENS, BLOCKS = 9, 3, 64, 16, 40
BUDGET = Budget(0.2, min_tokens=0, sink_tokens=4, recent_tokens=4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(
    request: pytest.FixtureRequest,
    model_path: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:  # noqa: ANN401
    """Of a server that asks for the plugin, with codes of the kind a test names."""
    if not INTERPRETED:
        return None
    levels = getattr(request, "param", "levels") == "levels"
    return configured(model_path, tmp_path_factory.mktemp("hash"), levels=levels)


@dataclass
class Served:
    """A layer of vLLM with a cache, and all that was ever written to it.

    Attributes:
        layer: vLLM's.
        builder: Of the metadata.
        blocks: Block table, int32 [sequences, blocks].
        keys: Of each sequence, [tokens, kv heads, head_dim].
        values: Likewise.
    """

    config: Any
    layer: Any
    builder: Any
    blocks: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    def step(self, new: list[int]) -> tuple[Tensor, Tensor]:
        """Give new tokens to the sequences; return queries and what comes out."""
        count = sum(new)
        query, key, value = (
            torch.randn(count, heads, DIM).half() for heads in (9, 3, 3)
        )
        slots = []
        for i, (k, v) in enumerate(zip(key.split(new), value.split(new), strict=True)):
            place = len(self.keys[i]) + torch.arange(new[i])
            block = self.blocks[i].long()[place // BLOCK_TOKENS]
            slots.append(block * BLOCK_TOKENS + place % BLOCK_TOKENS)
            self.keys[i] = torch.cat([self.keys[i], k])
            self.values[i] = torch.cat([self.values[i], v])
        starts = torch.tensor([0, *new]).cumsum(0).to(torch.int32)
        lengths = torch.tensor([len(keys) for keys in self.keys], dtype=torch.int32)
        slot_mapping = torch.cat(slots)
        step = self.builder.build(
            0,
            CommonAttentionMetadata(
                query_start_loc=starts,
                query_start_loc_cpu=starts,
                seq_lens=lengths,
                num_reqs=len(new),
                num_actual_tokens=count,
                max_query_len=max(new),
                max_seq_len=int(lengths.max()),
                block_table_tensor=self.blocks,
                slot_mapping=slot_mapping,
            ),
        )
        name = self.layer.layer_name
        context = set_forward_context(
            {name: step}, self.config, slot_mapping={name: slot_mapping}
        )
        with context:
            return query, self.layer(query, key, value).view(count, HEADS, DIM)

    def codes(self, sequence: int) -> Tensor:
        """In the cache, uint8 [tokens, kv heads, bytes]."""
        place = torch.arange(len(self.keys[sequence]))
        block = self.blocks[sequence].long()[place // BLOCK_TOKENS]
        rows = self.layer.kv_cache[block, :, place % BLOCK_TOKENS]
        return rows[..., 2 * DIM :].contiguous().view(torch.uint8)

    def exact(self, sequence: int, query: Tensor, budget: Budget) -> Tensor:
        """For the newest tokens in float64, [new, query heads, head_dim]."""
        results = []
        for i, one in enumerate(query):
            length = len(self.keys[sequence]) - len(query) + i + 1
            bias = torch.zeros(KV_HEADS, length).double()
            codes, maps = self.codes(sequence)[:length], self.layer.impl._maps
            if isinstance(maps, LevelHash):
                bias = drawn(one, maps, codes, budget)
            elif not budget.is_dense(length):
                scores = of_group(LinearScorer(maps).score(one, codes), KV_HEADS)
                bias.fill_(-torch.inf)
                bias.scatter_(1, pivotal_tokens(scores, budget), 0.0)
            cached = self.keys[sequence], self.values[sequence]
            wide = [one.double(), *(each[:length].double() for each in cached)]
            results.append(attend_biased(*wide, DIM**-0.5, bias))
        return torch.stack(results)

    def scorer(self) -> Scorer:
        """What makes the codes of this layer."""
        maps = self.layer.impl._maps
        return LevelScorer(maps) if isinstance(maps, LevelHash) else LinearScorer(maps)


def serve(config: Any, index: int, layout: str = "LBHNC", **more: Any) -> Served:  # noqa: ANN401
    """Make a layer as a model of vLLM does, and its cache as vLLM's workers do."""
    torch.manual_seed(0)
    name = f"model.layers.{index}.self_attn.attn"
    config.compilation_config.static_forward_context.pop(name, None)
    with current(config):
        layer = Attention(
            *(HEADS, DIM, DIM**-0.5, KV_HEADS),
            cache_config=config.cache_config,
            prefix=name,
            attn_backend=HashAttnCudaBackend,
            **more,
        )
        found = layer.get_kv_cache_spec(config)
        spec = customize_attention_spec(HashAttnCudaBackend, found)
        spec = spec.copy_with_new_block_size(BLOCK_TOKENS)
        builder = HashAttnCudaMetadataBuilder(spec, [name], config, CPU)
    page = spec.page_size_bytes
    raw = torch.full((BLOCKS * page,), -1, dtype=torch.int8)  # no numbers
    placed = KVCacheTensor(raw.numel(), [name], BLOCKS * page, page)
    (view,) = create_kv_cache_views(raw, spec, BLOCKS, KVCacheLayout[layout], placed)
    layer.kv_cache = view
    blocks = (1 + torch.randperm(BLOCKS - 1))[:36].view(3, 12).to(torch.int32)
    empty = [torch.zeros(0, KV_HEADS, DIM).half() for _ in range(3)]
    return Served(config, layer, builder, blocks, empty, list(empty))


@pytest.fixture(autouse=True)
def newest_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of vLLM asks for it before it writes the cache, to set its tile."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=4e-3, atol=4e-3)


@interpreted
@pytest.mark.parametrize(
    ("config", "layout", "first"),
    [("levels", "LBHNC", 80), ("signs", "LBNHC", 40)],
    indirect=["config"],
)
def test_steps_of_a_sparse_layer(config: Any, layout: str, first: int) -> None:  # noqa: ANN401
    assert HAS_TRITON
    served = serve(config, 5, layout)
    assert served.layer.kv_cache.shape == (BLOCKS, KV_HEADS, 16, 2 * DIM + 8)
    new = [first, 20, 10]
    query, out = served.step(new)
    for i, (asked, got) in enumerate(
        zip(query.split(new), out.split(new), strict=True)
    ):
        close(got, served.exact(i, asked, Budget(1.0)))
        differing = served.scorer().describe(served.keys[i]) != served.codes(i)
        assert differing.float().mean() < 0.001  # sums near zero, in another order
    # Two sequences decode, of which one is short, and one gets more of its prompt.
    query, out = served.step([1, 1, 24])
    close(out[:1], served.exact(0, query[:1], BUDGET))
    assert not torch.allclose(
        *(out[:1].double(), served.exact(0, query[:1], Budget(1.0))), atol=4e-3
    )
    close(out[1:2], served.exact(1, query[1:2], Budget(1.0)))
    close(out[2:], served.exact(2, query[2:], Budget(1.0)))
    query, out = served.step([1, 1, 1])
    close(out[:1], served.exact(0, query[:1], BUDGET))
    close(out[2:], served.exact(2, query[2:], BUDGET))


@interpreted
def test_the_first_layers_are_dense_and_their_codes_are_not_written(
    config: Any,  # noqa: ANN401
) -> None:
    served = serve(config, 1)
    served.step([40, 5, 5])
    query, out = served.step([1, 1, 1])
    for i in range(3):
        close(out[i : i + 1], served.exact(i, query[i : i + 1], Budget(1.0)))
    assert (served.codes(0) == 0xFF).all()
    assert served.layer.impl._workspace is None


@interpreted
def test_layers_with_sliding_windows_are_left_to_vllm(config: Any) -> None:  # noqa: ANN401
    served = serve(config, 6, per_layer_sliding_window=24)
    assert served.layer.kv_cache.shape[3] == 2 * DIM
    served.step([40, 5, 5])
    query, out = served.step([1, 1, 1])
    served.keys[0], served.values[0] = served.keys[0][-24:], served.values[0][-24:]
    close(out[:1], served.exact(0, query[:1], Budget(1.0)))


@interpreted
@pytest.mark.parametrize("config", ["levels", "signs"], indirect=True)
def test_profiling_allocates_what_serving_needs(config: Any) -> None:  # noqa: ANN401
    served = serve(config, 7)
    query = torch.randn(4, HEADS, DIM).half()
    key = torch.randn(4, KV_HEADS, DIM).half()
    served.layer.kv_cache = torch.tensor([])
    with set_forward_context({served.layer.layer_name: None}, config, slot_mapping={}):
        out = served.layer(query, key, key)
    assert (out == 0.0).all()
    space = served.layer.impl._workspace
    assert space.distances.shape == (64, KV_HEADS, 8192)
    most = BUDGET.tokens(8192)
    drawing = isinstance(served.layer.impl._maps, LevelHash)
    assert space.positions.shape[2] == most + (most // 4 if drawing else 0)
    # One for all layers.
    again = serve(config, 8)
    again.layer.impl._is_sparse(again.layer, CPU)
    assert again.layer.impl._workspace is space
