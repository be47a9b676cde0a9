# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Stores give back every page as it was written, from memory and from a disk."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_offload.aligned_memory import aligned_memory, view_of
from moe_offload.disk_store import DiskStore
from moe_offload.expert_format import ALIGNMENT, ExpertFormat, Part
from moe_offload.page_store import MemoryStore, Page, PageStore

LAYERS, EXPERTS = 3, 5
# One whose pages are whole blocks of a disk, and one whose pages are not.
WHOLE = ExpertFormat((64, 64), (64, 32), torch.float32)
ODD = ExpertFormat((6, 35), (35, 3), torch.bfloat16)
KEY = {"weights": "some"}


def pages() -> Iterator[Page]:
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            for part in Part:
                yield Page(layer, expert, part)


def content(form: ExpertFormat, page: Page) -> Tensor:
    generator = torch.Generator().manual_seed(hash(page) % 2**31)
    return torch.randn(form.shape(page.part), generator=generator).to(form.dtype)


def filled(store: PageStore) -> PageStore:
    for page in pages():
        store.write(page, content(store.form, page))
    return store


def check(store: PageStore) -> None:
    for page in pages():
        into = torch.full(store.form.shape(page.part), float("nan")).to(
            store.form.dtype
        )
        store.read(page, into)
        assert torch.equal(into, content(store.form, page)), page


@pytest.mark.parametrize("form", [WHOLE, ODD], ids=["whole", "odd"])
def test_pages_come_back_from_memory(form: ExpertFormat) -> None:
    store = filled(MemoryStore(LAYERS, EXPERTS, form))
    assert store.missing() == []
    check(store)


@pytest.mark.parametrize("form", [WHOLE, ODD], ids=["whole", "odd"])
@pytest.mark.parametrize("threads", [1, 3])
def test_pages_come_back_from_a_disk(
    tmp_path: Path, form: ExpertFormat, threads: int
) -> None:
    store = DiskStore(tmp_path / "pages", KEY, LAYERS, EXPERTS, form, threads)
    filled(store)
    check(store)
    # Aligned memory too, which is read into directly.
    for page in pages():
        memory = aligned_memory(form.stored_bytes(page.part))
        into = memory[: form.page_bytes(page.part)].view(form.dtype)
        into = into.view(form.shape(page.part))
        store.read(page, into)
        assert torch.equal(into, content(form, page))
    store.close()


def test_long_pages_are_read_in_chunks(tmp_path: Path) -> None:
    # 20 MiB and a little: three chunks, the last one short and no whole blocks.
    form = ExpertFormat((5 << 20, 1), (7, 3), torch.float32)
    form = ExpertFormat((form.gate_up[0] + 3, 1), form.down, form.dtype)
    store = DiskStore(tmp_path / "pages", KEY, 1, 1, form, 2)
    written = torch.arange(form.gate_up[0], dtype=torch.float32)[:, None]
    store.write(Page(0, 0, Part.GATE_UP), written)
    into = torch.zeros(form.gate_up)
    store.read(Page(0, 0, Part.GATE_UP), into)
    assert torch.equal(into, written)
    store.close()


def test_a_whole_file_is_used_again_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "pages"
    first = DiskStore(path, KEY, LAYERS, EXPERTS, WHOLE)
    assert len(first.missing()) == LAYERS * EXPERTS * 2
    with pytest.raises(ValueError, match=r"30 pages were not in the checkpoint"):
        first.finish()
    filled(first)
    first.close()
    # Nobody said that it was whole.
    again = DiskStore(path, KEY, LAYERS, EXPERTS, WHOLE)
    assert len(again.missing()) == LAYERS * EXPERTS * 2
    filled(again)
    again.finish()
    again.close()
    third = DiskStore(path, KEY, LAYERS, EXPERTS, WHOLE)
    assert third.missing() == []
    check(third)
    third.close()
    other = DiskStore(path, {"weights": "others"}, LAYERS, EXPERTS, WHOLE)
    assert len(other.missing()) == LAYERS * EXPERTS * 2
    other.close()


def test_a_file_that_was_cut_short_is_an_error_that_says_so(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "pages", KEY, LAYERS, EXPERTS, WHOLE)
    filled(store)
    with store.path.open("r+b") as file:
        file.truncate(ALIGNMENT * 3)
    with pytest.raises(OSError, match=r"ends at .* Delete it"):
        store.read(Page(2, 4, Part.DOWN), torch.zeros(WHOLE.down))
    store.close()


def test_a_disk_without_room_is_refused(tmp_path: Path) -> None:
    form = ExpertFormat((1 << 30, 1 << 10), (1, 1), torch.float32)
    with pytest.raises(OSError, match=r"GiB of experts and its disk has room for"):
        DiskStore(tmp_path / "pages", KEY, 64, 64, form)
    assert not (tmp_path / "pages").exists()


def test_pages_that_do_not_exist_or_have_another_form_are_refused() -> None:
    store = MemoryStore(LAYERS, EXPERTS, WHOLE)
    with pytest.raises(ValueError, match=r"3 layers with 5 experts"):
        store.write(Page(0, 5, Part.DOWN), torch.zeros(WHOLE.down))
    with pytest.raises(ValueError, match=r"holds torch.float32 \(64, 32\)"):
        store.write(Page(0, 0, Part.DOWN), torch.zeros(WHOLE.gate_up))
    with pytest.raises(ValueError, match=r"holds torch.float32"):
        store.write(Page(0, 0, Part.DOWN), torch.zeros(WHOLE.down).bfloat16())


def test_pages_lie_apart_at_whole_blocks() -> None:
    store = MemoryStore(LAYERS, EXPERTS, ODD)
    taken: list[range] = []
    for page in pages():
        start = store.offset_of(page)
        assert start % ALIGNMENT == 0
        taken.append(range(start, start + ODD.page_bytes(page.part)))
    for before, after in pairwise(taken):
        assert before.stop <= after.start
    assert taken[-1].stop <= store.total_bytes


def test_the_bytes_of_a_strided_tensor_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be contiguous"):
        view_of(torch.zeros(4, 4).t()[1:])
